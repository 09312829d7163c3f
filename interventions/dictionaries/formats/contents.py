"""What lies in one file: taken out by name, so that nothing is left that was not understood."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from ..coders import SparseCoder
from .source import Source


@dataclass
class Contents:
    """The tensors of a file. `take` gives one out, `coder` sees that none is left."""

    file: str
    entries: dict[str, Any]
    _asked: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, source: Source, file: str) -> Contents:
        """What is in a file of a source. Raises ValueError where it cannot be read."""
        name = source.name if source.name.endswith(f"/{file}") else f"{source.name}/{file}"
        return cls(name, dict(source.tensors(file)))

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def take(self, *names: str) -> Tensor:
        """The tensor under the first of these names that is there. Raises ValueError if none is."""
        tensor = self.maybe(*names)
        if tensor is None:
            there = ", ".join(sorted(self.entries)) or "nothing else"
            raise self.error(f"it lacks {' or '.join(names)}; it has {there}")
        return tensor

    def maybe(self, *names: str) -> Tensor | None:
        """The tensor under the first of these names that is there, or None."""
        self._asked += names
        for name in names:
            if name not in self.entries:
                continue
            tensor = self.entries.pop(name)
            if not isinstance(tensor, Tensor):
                raise self.error(f"{name} is a {type(tensor).__name__}, not a tensor")
            if not tensor.isfinite().all():
                raise self.error(f"{name} has entries that are not finite")
            return tensor
        return None

    def number(self, name: str) -> float | None:
        """The one number under a name, or None."""
        self._asked.append(name)
        if name not in self.entries:
            return None
        value = self.entries.pop(name)
        if isinstance(value, Tensor):
            value = value.item() if value.numel() == 1 else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{name} is not a number")
        if not math.isfinite(value):
            raise self.error(f"{name} is {value}")
        return value

    def drop(self, *patterns: str) -> None:
        """Leaves out what is known not to matter at inference."""
        for name in [name for name in self.entries if any(fnmatchcase(name, p) for p in patterns)]:
            del self.entries[name]

    def coder(self, make: Callable[..., SparseCoder] = SparseCoder, **parts: Any) -> SparseCoder:
        """The dictionary of these parts, made if the file holds nothing else.

        Raises ValueError for names that were not asked for, and for shapes that do not fit each other.
        """
        self.end()
        try:
            return make(**parts)
        except (ValueError, RuntimeError) as error:
            raise self.error(str(error).rstrip(".")) from error

    def end(self) -> None:
        """Raises ValueError for names that were not asked for: they may change the result."""
        if self.entries:
            raise self.error(
                f"it has {', '.join(sorted(self.entries))}, which is none of {', '.join(self._asked)}"
            )

    def error(self, why: str) -> ValueError:
        return ValueError(f"{self.file} cannot be read: {why}.")
