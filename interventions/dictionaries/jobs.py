"""Many dictionaries in training, side by side in one process and on one stream of activations.

Each has its own weights, optimiser and clipping, so a dictionary does not depend on which others are trained
beside it, as long as the sites that are read are the same. The loss is the fraction of variance unexplained,
plus what the recipe asks, plus a term that revives dead features (AuxK; Gao et al. 2024, arXiv 2406.04093):
they alone predict what the others leave unexplained.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..model import Model
from ..sites import Site
from .checkpoint import Checkpoint
from .coders import SparseCoder
from .learner import Learner
from .log import LogLike, log_to
from .pool import Pool
from .recipes import Recipe
from .stream import capacity
from .texts import TextLike, text

_LOGGED = 50  # steps between two lines of the log


@dataclass(frozen=True)
class Job:
    """A dictionary to train.

    `reads` is the site it writes by default, which makes an autoencoder; another one makes a transcoder,
    with `skip` one that has a linear path beside its features. `lr` is Adam's, by default
    `2e-4 / sqrt(n_features / 2**14)`; `auxk` weighs the term that revives features silent for `dead_after`
    steps; `seed` is that of the weights at the beginning.

    >>> from interventions.dictionaries import recipes
    >>> job = Job("mlp.1", 512, recipes.TopK(16), reads="mlp_in.1")
    >>> print(f"{job.rate:.1e}")
    1.1e-03
    """

    writes: str | Site
    n_features: int
    recipe: Recipe
    _: KW_ONLY
    reads: str | Site | None = None
    skip: bool = False
    lr: float | None = None
    auxk: float = 1 / 32
    dead_after: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_features < 1:
            raise ValueError(f"A dictionary has at least one feature, not {self.n_features}.")
        if getattr(self.recipe, "k", 0) >= self.n_features:
            raise ValueError(f"{self.recipe} needs more than {self.n_features} features to choose from.")

    @property
    def rate(self) -> float:
        """The learning rate between warm-up and decay."""
        return 2e-4 / (self.n_features / 2**14) ** 0.5 if self.lr is None else self.lr

    def sites(self, model: Model) -> tuple[Site, Site]:
        """What it reads and what it writes."""
        writes = model.site(self.writes)
        return (writes if self.reads is None else model.site(self.reads)), writes

    def settings(self, model: Model) -> dict[str, Any]:
        """What it is, in plain JSON."""
        reads, writes = self.sites(model)
        recipe = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.recipe))
        own = {name: getattr(self, name) for name in ("n_features", "skip", "auxk", "dead_after", "seed")}
        return {"reads": reads.name, "writes": writes.name, "recipe": recipe, "lr": self.rate, **own}


def train_jobs(
    model: Model,
    tokens: TextLike,
    jobs: Mapping[str, Job],
    *,
    steps: int = 10_000,
    batch_size: int = 512,
    warmup: float = 0.02,
    decay: float = 0.2,
    ignore: Collection[int] | None = None,
    pool: int | None = None,
    dtype: torch.dtype = torch.float32,
    context: int | None = None,
    column: str | None = None,
    checkpoint: str | Path | None = None,
    every: int = 1000,
    keep_checkpoint: bool = False,
    log: LogLike = None,
    progress: bool | None = None,
    seed: int = 0,
) -> dict[str, SparseCoder]:
    """The dictionaries of several jobs by their names: other sites, widths, recipes or seeds.

    All see the same activations, each of which is read from the model once. They are returned in the units of
    the model, and `meta` says how they were trained and how far they came.

    Args:
        tokens: tokens (row pos), strings, a file, a dataset, batches of tokens, or what `own_samples`
            returns: see `activations`, also for `ignore`, `context` and `column`.
        batch_size: positions per step.
        warmup: share of the run over which learning rates grow; over the last `decay` they fall to 0.
        pool: positions held at a time, by default what fits into 1 GiB. Text that fits is read only once;
            otherwise it is read anew in every epoch.
        dtype: of the activations held; steps are taken in float32.
        checkpoint: folder in which the training is kept after `every` so many steps, and on Ctrl-C, and
            from which the same call goes on. On a CPU with the same number of threads, the dictionaries are
            the same bit for bit. It takes up to the size of the pool, and is removed at the end unless
            `keep_checkpoint`.
        log: a path to which lines of JSON are appended, or a callable that is given what is in one, one for
            each dictionary after every 50 steps: step, name, fvu, l0, dead (shares), lr. Forwarded to
            TensorBoard or to W&B, these are

                log=lambda line: writer.add_scalar(f"{line['name']}/fvu", line["fvu"], line["step"])
                log=lambda line: wandb.log({f"{line['name']}/{key}": line[key] for key in ("fvu", "l0")})
        progress: whether there is a bar; by default where stderr is a terminal.
        seed: of the order of the activations.

    Raises:
        ValueError: no jobs, a recipe that keeps more than `n_features`, unusable text, or a checkpoint of
            another training: says what differs.
        FloatingPointError: a loss that is not finite; names the job.

    >>> from interventions.dictionaries import recipes
    >>> jobs = {f"seed {i}": Job("resid.0", 512, recipes.TopK(16), seed=i) for i in range(3)}
    >>> train_jobs(model, "corpus.txt", jobs, checkpoint="run", log="run.jsonl")  # doctest: +SKIP
    {'seed 0': SparseCoder(SAE 64 -> 512 features, TopK(k=16), at resid.0), ...}
    """
    if not jobs:
        raise ValueError("Train at least one dictionary: there are no jobs.")
    if steps < 1 or every < 1:
        raise ValueError(
            f"Training takes at least one step, not {steps}, and is kept after some, not {every}."
        )
    source = text(model, tokens, context=context, column=column, seed=seed)
    sites = list(dict.fromkeys(site for job in jobs.values() for site in job.sites(model)))
    size = max(batch_size, capacity(sites, dtype)) if pool is None else pool
    ignored = sorted(source.special if ignore is None else ignore)
    described = {name: job.settings(model) for name, job in jobs.items()}
    whose = getattr(model, "fingerprint", None)
    saved = None
    if checkpoint is not None:
        settings = {"jobs": described, "steps": steps, "batch_size": batch_size, "warmup": warmup}
        settings |= {"decay": decay, "ignore": ignored, "pool": size, "dtype": str(dtype), "seed": seed}
        saved = Checkpoint(checkpoint, settings | {"model": whose, "text": source.identity()})

    state = saved.pool() if saved else None
    held = Pool(model, source, sites, size=size, ignore=ignored, dtype=dtype, seed=seed, state=state)
    learners = {
        name: Learner(*job.sites(model), job.n_features, job.recipe, held, skip=job.skip, seed=job.seed)
        for name, job in jobs.items()
    }
    if saved:
        saved.restore(learners)
    lines = log_to(log, saved.log if saved else None)
    done = saved.step if saved else 0
    between = True  # steps, where nothing is half done

    def keep() -> None:
        if saved:
            saved.save(done, held, learners, log=lines.size)

    bar = tqdm(
        total=steps, initial=done, desc="dictionaries", mininterval=0.5,
        disable=None if progress is None else not progress,
    )  # fmt: skip
    with bar, _interruptions(saved is not None) as asked:
        try:
            while done < steps and not asked:
                between = False
                pace = _pace(done, steps, warmup, decay)
                batch = held.batch(batch_size)
                for name, job in jobs.items():
                    learner = learners[name]
                    learner.step(
                        batch[learner.reads],
                        batch[learner.writes],
                        done / steps,
                        lr=job.rate * pace,
                        auxk=job.auxk,
                        dead_after=job.dead_after,
                    )
                done, between = done + 1, True
                if done % _LOGGED == 0 or done == steps:
                    states = {name: _state(name, learners[name], job) for name, job in jobs.items()}
                    for name, now in states.items():
                        lines({"step": done, "name": name, **now, "lr": jobs[name].rate * pace})
                    bar.set_postfix(_means(list(states.values())), refresh=False)
                bar.update()
                if done % every == 0 and done < steps:
                    keep()
        except KeyboardInterrupt:
            if between:
                keep()
            raise
        if done < steps or (keep_checkpoint and saved and done > saved.step):
            keep()
        if done < steps:
            raise KeyboardInterrupt
    run = {"steps": steps, "batch_size": batch_size, "model": whose}
    finished = {
        name: learners[name].finished(held, {**described[name], **run, **_state(name, learners[name], job)})
        for name, job in jobs.items()
    }
    if saved and not keep_checkpoint:
        saved.remove()
    return finished


def _pace(step: int, steps: int, warmup: float, decay: float) -> float:
    """What the learning rate is of its greatest value."""
    falling = (1 - step / steps) / decay if decay else 1.0
    return min((step + 1) / max(1.0, warmup * steps), falling, 1.0)


def _state(name: str, learner: Learner, job: Job) -> dict[str, float]:
    try:
        return learner.state(job.dead_after)
    except FloatingPointError as error:
        raise FloatingPointError(f"{name}: {error}") from None


def _means(states: list[dict[str, float]]) -> dict[str, str]:
    return {key: f"{sum(state[key] for state in states) / len(states):.3g}" for key in states[0]}


@contextmanager
def _interruptions(noted: bool) -> Iterator[Collection[Any]]:
    """While open, the first Ctrl-C is noted, and the step at hand is finished; another one ends it."""
    asked: list[int] = []
    usual: Callable[..., Any] = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if not noted or not main or signal.getsignal(signal.SIGINT) is not usual:
        yield asked
        return

    def note(number: int, _frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, usual)
