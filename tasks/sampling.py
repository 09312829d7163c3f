"""Random choices without repetition."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any


def choices(n: int, seed: int, *axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """`n` different tuples with one element of each axis, in random order.

    The product of the axes is never built. ValueError if it has fewer than `n` elements.

    >>> choices(3, 0, "ab", range(100))
    [('a', 98), ('b', 94), ('b', 7)]
    """
    sizes = [len(axis) for axis in axes]
    total = math.prod(sizes)
    if not 0 < n <= total:
        raise ValueError(f"There are {total} different pairs to choose from: cannot choose {n}.")
    chosen = []
    for number in random.Random(seed).sample(range(total), n):
        places = []
        for size in reversed(sizes):
            number, place = divmod(number, size)
            places.append(place)
        chosen.append(tuple(axis[place] for axis, place in zip(axes, reversed(places), strict=True)))
    return chosen
