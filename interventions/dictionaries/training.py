"""Trains dictionaries for several sites of a model, side by side on one stream of its activations.

Each site has its own weights, optimiser and clipping, so a dictionary does not depend on which others are
trained beside it. The loss is the fraction of variance unexplained, plus what the recipe asks, plus a term
that revives dead features (AuxK; Gao et al. 2024, arXiv 2406.04093): they alone predict what the others
leave unexplained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from ..model import Model
from ..sites import Site
from .coders import SparseCoder
from .learner import Learner
from .pool import Pool
from .recipes import Recipe


def train(
    model: Model,
    tokens: Int[Tensor, "row pos"] | Iterable[Int[Tensor, "batch pos"]],
    sites: Sequence[str | Site | tuple[str | Site, str | Site]],
    *,
    n_features: int,
    recipe: Recipe,
    steps: int = 10_000,
    batch_size: int = 512,
    lr: float | None = None,
    warmup: float = 0.02,
    decay: float = 0.2,
    auxk: float = 1 / 32,
    dead_after: int = 200,
    skip: bool = False,
    ignore: Collection[int] = (),
    pool: int | None = None,
    seed: int = 0,
) -> dict[str, SparseCoder]:
    """One dictionary for each site, keyed by the name of the site that it writes.

    A site trains a sparse autoencoder, a pair `(reads, writes)` a transcoder; with `skip`, transcoders have a
    linear skip path. Dictionaries are returned in the units of the model, their decoder rows of unit norm,
    and `meta` says how they were trained and how far they came.

    Args:
        tokens: text of one length each (row pos), shuffled anew in every epoch; or batches, read in order.
        recipe: `recipes.TopK(16)`, `recipes.BatchTopK(16)`, `recipes.L1(0.1)`.
        batch_size: positions per step.
        lr: of Adam; by default `2e-4 / sqrt(n_features / 2**14)`. It grows over the first `warmup` of the
            run and falls to 0 over the last `decay`.
        auxk: weight of the term that revives dead features: those silent for `dead_after` steps.
        ignore: token ids whose positions are left out, such as padding.
        pool: positions held at a time, by default what fits into 1 GiB. Text that fits is read only once;
            otherwise it is read anew in every epoch.

    Raises:
        ValueError: two dictionaries for one site, a recipe that keeps more than `n_features`, unusable text.
        FloatingPointError: a loss that is not finite; names the site.

    >>> from interventions.dictionaries import recipes
    >>> train(model, tokens, ["resid.0", ("mlp_in.1", "mlp.1")],
    ...       n_features=512, recipe=recipes.TopK(16))  # doctest: +SKIP
    {'resid.0': SparseCoder(SAE 64 -> 512 features, TopK(k=16), at resid.0),
     'mlp.1': SparseCoder(transcoder 64 -> 512 features -> 64, TopK(k=16), mlp_in.1 -> mlp.1)}
    """
    if isinstance(sites, str) or (
        isinstance(tokens, list) and any(isinstance(row, str) for row in tokens[:1])
    ):
        raise TypeError("Pass a list of sites, and tokens (row pos): training reads no texts.")
    pairs = [site if isinstance(site, tuple) else (site, site) for site in sites]
    pairs = [(model.site(reads), model.site(writes)) for reads, writes in pairs]
    written = [writes for _, writes in pairs]
    if not written or len(set(written)) < len(written):
        raise ValueError(f"One dictionary per site, and at least one; these write {written}.")
    if steps < 1:
        raise ValueError(f"Training takes at least one step, not {steps}.")
    if getattr(recipe, "k", 0) >= n_features:
        raise ValueError(f"{recipe} needs more than {n_features} features to choose from.")
    top = 2e-4 / (n_features / 2**14) ** 0.5 if lr is None else lr

    read = list(dict.fromkeys(site for pair in pairs for site in pair))
    if pool is None:
        pool = max(batch_size, 2**28 // sum(site.width for site in read))
    held = Pool(model, tokens, read, size=pool, ignore=ignore, seed=seed)
    learners = [Learner(*pair, n_features, recipe, held, skip=skip, seed=seed) for pair in pairs]
    with tqdm(total=steps, desc="dictionaries", disable=None, mininterval=0.5) as bar:
        for step in range(steps):
            progress = step / steps
            batch = held.batch(batch_size)
            pace = min((step + 1) / max(1.0, warmup * steps), (1 - progress) / decay if decay else 1.0, 1.0)
            for learner in learners:
                learner.step(
                    batch[learner.reads],
                    batch[learner.writes],
                    progress,
                    lr=top * pace,
                    auxk=auxk,
                    dead_after=dead_after,
                )
            if step % 50 == 49 or step == steps - 1:
                states = [learner.state(dead_after) for learner in learners]
                mean = {key: sum(state[key] for state in states) / len(states) for key in states[0]}
                bar.set_postfix({key: f"{value:.3g}" for key, value in mean.items()}, refresh=False)
            bar.update()
    settings = {
        "recipe": repr(recipe),
        "steps": steps,
        "batch_size": batch_size,
        "lr": top,
        "seed": seed,
        "model": getattr(model, "fingerprint", None),
    }
    return {
        learner.writes.name: learner.finished(held, {**settings, **learner.state(dead_after)})
        for learner in learners
    }
