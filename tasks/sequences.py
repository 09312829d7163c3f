"""A random sequence that comes again."""

from __future__ import annotations

import math
import random
from collections.abc import Collection

from .pair import Pair
from .task import Task


def induction(
    n: int = 100,
    seed: int = 0,
    *,
    vocab_size: int = 256,
    length: int = 8,
    opening: tuple[int, ...] = (),
    exclude: Collection[int] = (),
) -> Task:
    """The second time round, what came next comes next: random token ids 5 3 8 5 3, then 8 (Olsson et al.
    2022, arXiv:2209.11895).

    A sequence of `length` different tokens below `vocab_size` and not in `exclude` comes twice, without
    its last token the second time: that is the answer. `opening` (a token that begins every text, say) goes
    before it all. In the patch another sequence that shares no token with this one comes first, so that
    nothing is repeated; its last token is the foil.

    >>> induction(n=1, vocab_size=10, length=3).pairs[0]
    Pair(clean=(6, 9, 0, 6, 9), patch=(2, 4, 3, 6, 9), answers=(0,), foils=(3,), case='')
    """
    tokens = sorted(set(range(vocab_size)) - set(exclude))
    if length < 2 or len(tokens) < 2 * length:
        raise ValueError(
            f"Two sequences of at least 2 tokens, all different, are drawn; {len(tokens)} tokens "
            f"do not make two of {length}."
        )
    total = math.perm(len(tokens), length)
    if not 0 < n <= total:
        raise ValueError(f"There are {total} different sequences to choose from: cannot choose {n}.")
    rng = random.Random(seed)
    pairs: dict[tuple[int, ...], Pair] = {}
    while len(pairs) < n:
        drawn = tuple(rng.sample(tokens, 2 * length))
        first, other = drawn[:length], drawn[length:]
        clean, patch = (opening + start + first[:-1] for start in (first, other))
        pairs.setdefault(first, Pair(clean, patch, first[-1:], other[-1:]))
    return Task("induction", list(pairs.values()), description="Induction: 5 3 8 5 3 8, in random tokens")
