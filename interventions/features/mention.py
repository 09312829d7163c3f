"""Where a text mentions one of several entities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..steering.token_choice import Ids, Within, _text


@dataclass(frozen=True)
class Mention:
    """The tokens of the last mention of any of some names, the longest that stands there; with `end`, the
    last of them only.

    A choice of tokens, for `separation(tokens=...)` and `attention_to(to=...)`, over texts of which each is
    about another entity. Raises ValueError for a text with none of the names.

    >>> Mention(("Lily", "Tom"), end=True)
    Mention(2 names, the last token)
    """

    names: tuple[str, ...]
    end: bool = False

    def __post_init__(self) -> None:
        names = (self.names,) if isinstance(self.names, str) else tuple(self.names)
        if not names or not all(names):
            raise ValueError("A mention is of at least one name, and none is empty.")
        object.__setattr__(self, "names", names)

    def __call__(self, ids: Ids, tokenizer: Any) -> list[int]:
        text, _ = _text(ids, tokenizer)
        found = [(text.rfind(name) + len(name), len(name), name) for name in self.names if name in text]
        if not found:
            raise ValueError(f"it mentions none of {', '.join(map(repr, self.names[:5]))}")
        tokens = Within(max(found)[2])(ids, tokenizer)
        return tokens[-1:] if self.end else tokens

    def __repr__(self) -> str:
        n = len(self.names)
        return f"Mention({n} name{'s' * (n != 1)}{', the last token' if self.end else ''})"
