"""Many situations in turn, kept as they are done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dense import MISSING_TREES, baselines, has_trees
from .k_sparse import sparse_probes
from .method import Method
from .quivers import Quiver
from .regimes import Situation
from .trials import Trial, digest, trial


def quiver(
    situations: Sequence[Situation],
    methods: Sequence[Method] | None = None,
    *,
    path: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Quiver:
    """Every method in every situation: the best dense baseline beside the best with the dictionary.

    Args:
        methods: by default `[*baselines(seed=seed), *sparse_probes()]`. Dense ones are to come first, since
            of equal ones the first is picked.
        path: a file of JSON that is written after each situation; what it holds of these situations, methods
            and seed is not done again.

    Raises:
        ValueError: no situations, methods of one name, none that is dense or none that reads the dictionary.

    >>> import torch
    >>> from .dense import DenseLogistic
    >>> from .examples import Examples
    >>> from .k_sparse import KSparse
    >>> from .regimes import normal
    >>> generator = torch.Generator().manual_seed(0)
    >>> labels = torch.arange(80) % 2
    >>> features = torch.rand(80, 5, generator=generator) * torch.tensor([1, 0, 1, 0, 1])
    >>> features[:, 3] = labels
    >>> texts = Examples("x", torch.randn(80, 4, generator=generator), features, labels)
    >>> found = quiver(normal(texts, texts), [DenseLogistic(), KSparse(1)], progress=False)
    >>> found.comparison().picked, found.comparison().both.mean
    (1, 1.0)
    """
    from tqdm import tqdm

    methods = [*baselines(seed=seed), *sparse_probes()] if methods is None else list(methods)
    _check(situations, methods)
    how: dict[str, Any] = {"methods": [repr(method) for method in methods], "seed": seed}
    if not has_trees():
        how["notes"] = [MISSING_TREES]
    kept = _kept(path)
    found: list[Trial] = []
    off = None if progress is None else not progress
    with tqdm(situations, desc="situations", unit="situation", disable=off) as bar:
        for situation in bar:
            bar.set_postfix_str(f"{situation.regime} {situation.data}", refresh=False)
            before = kept.get(digest(situation, methods, seed)) if kept else None
            found.append(before or trial(situation, methods, seed=seed))
            if path is not None and before is None:
                later = [one for key, one in kept.items() if key not in {done.digest for done in found}]
                Quiver((*found, *later), how).save(path)
    done = Quiver(tuple(found), how)
    if path is not None:
        done.save(path)
    return done


def _check(situations: Sequence[Situation], methods: Sequence[Method]) -> None:
    if not situations:
        raise ValueError("There are no situations to probe in.")
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Several methods are named {twice[0]!r}.")
    kinds = {method.sparse for method in methods}
    if kinds != {True, False}:
        lacking = "reads the dictionary" if True not in kinds else "is a dense baseline"
        raise ValueError(f"None of the methods {lacking}; both are compared.")


def _kept(path: str | Path | None) -> dict[str, Trial]:
    if path is None or not Path(path).exists():
        return {}
    return {one.digest: one for one in Quiver.load(path).trials}
