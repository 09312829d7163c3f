"""Trains dictionaries for several sites of a model, side by side on one stream of its activations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from ..model import Model
from ..sites import Site
from .coders import SparseCoder
from .jobs import Job, train_jobs
from .log import LogLike
from .recipes import Recipe
from .texts import TextLike


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
    return train_jobs(
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
