"""Trains dictionaries side by side, in one process and on one stream of activations.

Each has its own weights, optimiser and clipping, so a dictionary does not depend on which others are trained
beside it. The loss is the fraction of variance unexplained, plus what the recipe asks, plus a term that
revives dead features (AuxK; Gao et al. 2024, arXiv 2406.04093): they alone predict what the others leave
unexplained.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from ..model import Model
from ..sites import Site
from .checkpoint import Checkpoint
from .coders import SparseCoder
from .cross_layer import CrossLayerTranscoder
from .jobs import AnyJob, Job
from .log import LogLike, log_to
from .pool import Pool
from .recipes import Recipe
from .stream import capacity
from .texts import TextLike, text
from .trainee import Trainee

_LOGGED = 50  # steps between two lines of the log


def train(
    model: Model,
    tokens: TextLike,
    sites: Sequence[str | Site | tuple[str | Site, str | Site]],
    *,
    n_features: int,
    recipe: Recipe,
    skip: bool = False,
    lr: float | None = None,
    auxk: float = 1 / 32,
    dead_after: int = 200,
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
    """One dictionary for each site, keyed by the name of the site that it writes.

    A site trains a sparse autoencoder, a pair `(reads, writes)` a transcoder; with `skip`, transcoders have a
    linear skip path. Dictionaries are returned in the units of the model, their decoder rows of unit norm,
    and `meta` says how they were trained and how far they came. Several widths, recipes or seeds at once are
    the work of `train_jobs`.

    Args:
        tokens: text of one length each (row pos), shuffled anew in every epoch; strings, a file, a dataset,
            batches read in order: see `activations`.
        recipe: `recipes.TopK(16)`, `recipes.BatchTopK(16)`, `recipes.L1(0.1)`, ...
        lr: of Adam; by default `2e-4 / sqrt(n_features / 2**14)`. It grows over the first `warmup` of the
            run and falls to 0 over the last `decay`.
        auxk: weight of the term that revives dead features: those silent for `dead_after` steps.
        ignore: token ids whose positions are left out, such as padding; by default the tokenizer's special
            tokens where strings, a file or a dataset are given, none where tokens are.
        checkpoint: a folder; the same call goes on from there after an interruption.

    The other options are those of `train_jobs`.

    Raises:
        ValueError: two dictionaries for one site, a recipe that keeps more than `n_features`, unusable text.
        FloatingPointError: a loss that is not finite; names the site.

    >>> from interventions.dictionaries import recipes
    >>> train(model, tokens, ["resid.0", ("mlp_in.1", "mlp.1")],
    ...       n_features=512, recipe=recipes.TopK(16))  # doctest: +SKIP
    {'resid.0': SparseCoder(SAE 64 -> 512 features, TopK(k=16), at resid.0),
     'mlp.1': SparseCoder(transcoder 64 -> 512 features -> 64, TopK(k=16), mlp_in.1 -> mlp.1)}
    """
    if isinstance(sites, str):
        raise TypeError(f"Pass a list of sites, and tokens (row pos) or texts, not the site {sites!r}.")
    pairs = [site if isinstance(site, tuple) else (site, site) for site in sites]
    pairs = [(model.site(reads), model.site(writes)) for reads, writes in pairs]
    written = [writes for _, writes in pairs]
    if not written or len(set(written)) < len(written):
        raise ValueError(f"One dictionary per site, and at least one; these write {written}.")
    jobs = {
        writes.name: Job(
            writes, n_features, recipe, reads=reads, skip=skip, lr=lr, auxk=auxk, dead_after=dead_after,
            seed=seed,
        )
        for reads, writes in pairs
    }  # fmt: skip
    trained = train_jobs(
        model,
        tokens,
        jobs,
        steps=steps,
        batch_size=batch_size,
        warmup=warmup,
        decay=decay,
        ignore=ignore,
        pool=pool,
        dtype=dtype,
        context=context,
        column=column,
        checkpoint=checkpoint,
        every=every,
        keep_checkpoint=keep_checkpoint,
        log=log,
        progress=progress,
        seed=seed,
    )
    return cast("dict[str, SparseCoder]", trained)


def train_jobs(
    model: Model,
    tokens: TextLike,
    jobs: Mapping[str, AnyJob],
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
) -> dict[str, SparseCoder | CrossLayerTranscoder]:
    """The dictionaries of several jobs by their names: of other sites, widths, recipes or seeds.

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
            the same bit for bit. It takes the size of the pool and three times that of the weights, and is
            removed at the end unless `keep_checkpoint`.
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
    if batch_size < 1 or (pool is not None and pool < 1):
        raise ValueError(f"A batch has at least one position, not {batch_size}; so has the pool, not {pool}.")
    source = text(model, tokens, context=context, column=column, seed=seed)
    pairs = [pair for job in jobs.values() for pair in job.pairs(model)]
    if late := next((pair for pair in pairs if pair[0] > pair[1]), None):
        raise ValueError(f"{late[1]} cannot be predicted from {late[0]}, which is computed only later.")
    sites = list(dict.fromkeys(site for pair in pairs for site in pair))
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
    learners = {name: job.learner(model, held) for name, job in jobs.items()}
    if saved:
        saved.restore(learners)
    done = saved.step if saved else 0
    lines = log_to(
        log, saved.log if saved else None, lambda line: line["name"] in jobs and line["step"] > done
    )
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
                    learners[name].advance(
                        batch, done / steps, lr=job.rate * pace, auxk=job.auxk, dead_after=job.dead_after
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


def _state(name: str, learner: Trainee, job: AnyJob) -> dict[str, float]:
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
