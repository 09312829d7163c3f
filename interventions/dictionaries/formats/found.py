"""A dictionary that was seen among the files of a source, and not read yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...acts import Dictionary


@dataclass(frozen=True)
class Found:
    """A dictionary that a format found.

    `label` is its path in the source, "" where the source is this dictionary alone. `writes` and `reads` are
    the names of hooks, in any vocabulary that `names` knows; None where the files do not say. `reads` is
    None also where a dictionary reads what it writes. `read` reads the weights; what it returns keeps the
    dtype that they have on disk.
    """

    label: str
    read: Callable[[], Dictionary]
    writes: str | None
    reads: str | None = None

    def __post_init__(self) -> None:
        for hook in (self.writes, self.reads):
            if not isinstance(hook, str | None):
                raise ValueError(f"{repr(hook)[:80]}, where it belongs, is no name of a hook or of a module")
