"""Where an intervention applies: which tokens of the prompt, which generated ones, under which condition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate
from os.path import commonprefix
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .conditions import Condition
from .passage import Passage

Region = Bool[Tensor, "row text"]


class Tokens(ABC):
    """Some tokens of a prompt, or of what was generated. `a | b`, `a & b` and `~a` combine."""

    # Whether it can be told of a token without those that come after it, as of a generated one it must be.
    causal: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, passage: Passage, region: Region, read: Callable[[Tensor], str]) -> Region:
        """Which tokens of `region` are meant; `read` makes text of token ids."""

    def __or__(self, other: Tokens) -> Tokens:
        return _Both(self, other, "|")

    def __and__(self, other: Tokens) -> Tokens:
        return _Both(self, other, "&")

    def __invert__(self) -> Tokens:
        return _Not(self)


@dataclass(frozen=True)
class _Both(Tokens):
    one: Tokens
    other: Tokens
    how: Literal["|", "&"]

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return self.one.causal and self.other.causal

    def __call__(self, passage: Passage, region: Region, read: Callable[[Tensor], str]) -> Region:
        one, other = (tokens(passage, region, read) for tokens in (self.one, self.other))
        return one | other if self.how == "|" else one & other

    def __str__(self) -> str:
        return f"({self.one} {'or' if self.how == '|' else 'and'} {self.other})"


@dataclass(frozen=True)
class _Not(Tokens):
    tokens: Tokens

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return self.tokens.causal

    def __call__(self, passage: Passage, region: Region, read: Callable[[Tensor], str]) -> Region:
        return region & ~self.tokens(passage, region, read)

    def __str__(self) -> str:
        return f"not {self.tokens}"


@dataclass(frozen=True)
class at(Tokens):
    """Tokens at these positions, counted from 0, or from the end where they are negative."""

    positions: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", tuple(int(i) for i in self.positions))

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return all(i >= 0 for i in self.positions)

    def __call__(self, passage: Passage, region: Region, read: Callable[[Tensor], str]) -> Region:
        index, count = _counted(region)
        found, shortest = torch.zeros_like(region), int(count.min())
        for i in self.positions:
            if not shortest > i >= -shortest and bool((region & passage.prompted).any()):
                raise ValueError(f"Position {i} is out of range: there is a prompt of {shortest} tokens.")
            found |= index == (i if i >= 0 else count[:, None] + i)
        return found & region

    def __str__(self) -> str:
        last = self.positions == (-1,)
        return "last" if last else ", ".join(map(str, self.positions))


@dataclass(frozen=True)
class span(Tokens):
    """Tokens from one position to before another, as in a slice."""

    start: int | None = None
    stop: int | None = None
    step: int | None = None

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return (self.start or 0) >= 0 and (self.stop is None or self.stop >= 0) and (self.step or 1) > 0

    def __call__(self, passage: Passage, region: Region, read: Callable[[Tensor], str]) -> Region:
        index, count = _counted(region)
        found = torch.zeros_like(region)
        for row, n in enumerate(count.tolist()):
            wanted = range(n)[slice(self.start, self.stop, self.step)]
            inside = torch.zeros(n + 1, dtype=torch.bool, device=region.device)
            inside[list(wanted)] = True
            found[row] = inside[index[row].clamp(0, n)] & region[row]
        return found

    def __str__(self) -> str:
        parts = ["" if x is None else str(x) for x in (self.start, self.stop)]
        return ":".join(parts if self.step is None else [*parts, str(self.step)])


Place = tuple[int, int, list[int]]  # the first and the last column of a text, and all that it is written with


@dataclass(frozen=True)
class _Said(Tokens):
    """Tokens that stand in a relation to a piece of text."""

    text: str

    @abstractmethod
    def columns(self, places: Sequence[Place]) -> Sequence[slice | int | list[int]]:
        """Which columns of a row are meant, where the text stands at these places of it."""

    def __call__(self, passage: Passage, region: Region, read: Callable[[Tensor], str]) -> Region:
        if not self.text:
            raise ValueError("An empty text stands everywhere: give the text that the tokens are about.")
        found = torch.zeros_like(region)
        for row, (ids, inside) in enumerate(zip(passage.text, region, strict=True)):
            places = _places(ids[inside], inside.nonzero()[:, 0].tolist(), self.text, read)
            for part in self.columns(places):
                found[row, part] = True
        return found & region

    def __str__(self) -> str:
        return f"{type(self).__name__.replace('_', ' ')} {self.text!r}"


class after(_Said):
    """Tokens after the first place where this text stands."""

    def columns(self, places: Sequence[Place]) -> list[slice]:
        return [slice(last + 1, None) for _, last, _ in places[:1]]


class before(_Said):
    """Tokens before the first place where this text stands; none where it does not."""

    causal: ClassVar[bool] = False

    def columns(self, places: Sequence[Place]) -> list[slice]:
        return [slice(first) for first, _, _ in places[:1]]


class within(_Said):
    """Tokens that this text is written with, wherever it stands."""

    causal: ClassVar[bool] = False

    def columns(self, places: Sequence[Place]) -> list[list[int]]:
        return [columns for _, _, columns in places]


class end_of(_Said):
    """The last token of this text, wherever it stands."""

    def columns(self, places: Sequence[Place]) -> list[int]:
        return [last for _, last, _ in places]


class matching(Tokens):
    """Tokens that are one of these: ids, or texts with or without the space before them.

    A callable is asked about the text of every token instead.
    """

    def __init__(self, *wanted: int | str | Callable[[str], bool]):
        if not wanted:
            raise ValueError("`matching` needs at least one token id, text or callable.")
        self.wanted = wanted

    def __call__(self, passage: Passage, region: Region, read: Callable[[Tensor], str]) -> Region:
        ids = passage.text[region].unique().tolist()
        meant = [i for i in ids if any(self._is(w, i, read) for w in self.wanted)]
        return region & torch.isin(passage.text, passage.text.new_tensor(meant))

    @staticmethod
    def _is(wanted: int | str | Callable[[str], bool], token: int, read: Callable[[Tensor], str]) -> bool:
        if isinstance(wanted, int):
            return wanted == token
        text = read(torch.tensor([token]))
        return text.strip() == wanted.strip() if isinstance(wanted, str) else bool(wanted(text))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, matching) and self.wanted == other.wanted

    def __hash__(self) -> int:
        return hash(self.wanted)

    def __str__(self) -> str:
        return f"matching {', '.join(map(repr, self.wanted))}"


Clause = Tokens | Sequence[int] | slice | int | Literal["all"] | None


@dataclass(frozen=True)
class Where:
    """Which tokens an intervention changes, told apart by whether the prompt or the model wrote them.

    A clause is `"all"`, None (no tokens), a position, positions, a slice, or one of `after`, `before`,
    `within`, `end_of`, `matching` and their combinations by `|`, `&`, `~`. Positions count the tokens of the
    prompt, or the generated ones, from 0; padding is not counted, and a cache changes nothing. Of generated
    tokens a clause may not ask what comes after them. `rows` are rows of the batch; `when` is a condition on
    activations.

    A generated token is touched when it is read, to write the next one. So the first one is written
    from the prompt's last token: `Where.writing()` touches that and all generated ones.

    >>> Where(prompt=-1, generation=slice(0, 5))
    Where(prompt last, generation 0:5)
    >>> Where(prompt=after("Human:") & ~matching("."), generation=None)
    Where(prompt (after 'Human:' and not matching '.'), generation none)
    """

    prompt: Clause = "all"
    generation: Clause = "all"
    rows: Sequence[int] | None = None
    when: Condition | Callable[[Tensor, Passage], Tensor] | None = None
    _clauses: tuple[Tokens | None, Tokens | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        clauses = (_clause(self.prompt, "prompt"), _clause(self.generation, "generation"))
        if clauses[1] is not None and not clauses[1].causal:
            raise ValueError(
                f"generation={clauses[1]}: of a generated token it is not known what will come after it; "
                "count from the first one, or use `after`, `end_of` or `matching`."
            )
        object.__setattr__(self, "_clauses", clauses)
        if self.rows is not None:
            object.__setattr__(self, "rows", tuple(int(row) for row in self.rows))
            if any(row < 0 for row in self.rows):
                raise ValueError(f"rows={self.rows}: rows are counted from 0.")

    @classmethod
    def writing(cls) -> Where:
        """Every token that the model writes a new one from: the prompt's last one, and all generated ones."""
        return cls(prompt=-1)

    @property
    def everywhere(self) -> bool:
        return self._clauses == (_ALL, _ALL) and self.rows is None and self.when is None

    def misses(self, passage: Passage) -> bool:
        """Whether it is plain that no token of the pass is meant."""
        return passage.only_generated and self._clauses[1] is None

    @property
    def watches(self) -> Set[str]:
        """Names of further sites that the condition reads."""
        return self.when.sites if isinstance(self.when, Condition) else frozenset()

    def touched(
        self,
        passage: Passage,
        x: Float[Tensor, "row pos d_model"],
        seen: Mapping[str, Tensor],
        read: Any = None,
    ) -> Bool[Tensor, "row pos"] | None:
        """Which tokens of the pass are changed; None means all of them.

        `x` is the tensor at the site, `seen` those of this pass at the sites that the condition reads.
        """
        every = self._placed(passage, read)
        if self.when is None:
            return every
        when = self.when
        holds = when(passage, x, seen) if isinstance(when, Condition) else when(x, passage)
        if holds.shape != x.shape[:2] or holds.dtype != torch.bool:
            raise ValueError(
                f"The condition gave {holds.dtype} {tuple(holds.shape)}, and must give a boolean for each "
                f"token, {tuple(x.shape[:2])}."
            )
        return holds if every is None else every & holds

    def _placed(self, passage: Passage, read: Any) -> Bool[Tensor, "row pos"] | None:
        if self.rows is None and passage.only_generated and self._clauses[1] is _ALL:
            return None
        if id(self) in passage.placed:
            return passage.placed[id(self)]
        found = torch.zeros_like(passage.real)
        for clause, region in zip(self._clauses, (passage.prompted, passage.generated), strict=True):
            if clause is _ALL:
                found |= region
            elif clause is not None:
                found |= clause(passage, region, read or _unread) & region
        if self.rows is not None:
            if outside := [row for row in self.rows if row >= passage.n_rows]:
                raise ValueError(f"Row {outside[0]} is out of range: the batch has {passage.n_rows} rows.")
            found &= torch.isin(passage.rows, torch.tensor(self.rows, device=found.device))[:, None]
        passage.placed[id(self)] = passage.of_this_pass(found)
        return passage.placed[id(self)]

    def __repr__(self) -> str:
        parts = [
            f"{name} {clause or 'none'}"
            for name, clause in zip(("prompt", "generation"), self._clauses, strict=True)
        ]
        if self.rows is not None:
            parts.append(f"rows {', '.join(map(str, self.rows))}")
        if self.when is not None:
            parts.append(f"when {getattr(self.when, '__name__', repr(self.when))}")
        return f"Where({', '.join(parts)})"


@dataclass(frozen=True)
class _All(Tokens):
    def __call__(self, passage: Passage, region: Region, read: Callable[[Tensor], str]) -> Region:
        return region

    def __str__(self) -> str:
        return "all"


_ALL = _All()


def _clause(given: Any, name: str) -> Tokens | None:
    if given is None or isinstance(given, Tokens):
        return given
    if isinstance(given, str) and given == "all":
        return _ALL
    if isinstance(given, bool):
        return _ALL if given else None
    if isinstance(given, int):
        return at([given])
    if isinstance(given, slice):
        return span(given.start, given.stop, given.step)
    if isinstance(given, range):
        return at(list(given))
    if isinstance(given, Sequence) and not isinstance(given, str):
        return at(given) if len(given) else None
    raise TypeError(
        f"{name}={given!r} is no clause: give 'all', None, a position, positions, a slice, or `after`, "
        "`before`, `within`, `end_of`, `matching`."
    )


def _unread(_ids: Tensor) -> str:
    raise ValueError(
        "A clause about text needs a tokenizer; this model has none. Give positions or token ids."
    )


def _counted(region: Region) -> tuple[Tensor, Tensor]:
    """For each token of the region its number in it, -1 elsewhere; and how many there are in a row."""
    return torch.where(region, region.long().cumsum(-1) - 1, -1), region.sum(-1)


def _places(
    ids: Tensor, columns: Sequence[int], text: str, read: Callable[[Tensor], str]
) -> list[tuple[int, int, list[int]]]:
    """Where a text stands among tokens: the first and the last column, and all between."""
    whole = read(ids) if len(ids) else ""
    start = whole.find(text)
    if start < 0:
        return []
    parts = [read(ids[: i + 1]) for i in range(len(ids))]  # with stand-ins for characters not complete
    known = [len(commonprefix([part, whole])) for part in parts]  # noqa: RUF071
    most = list(accumulate(known, max))
    places = []
    while start >= 0:
        stop = start + len(text)
        first = next(i for i, part in enumerate(parts) if most[i] >= start and len(part) > start)
        last = next((i for i, n in enumerate(known) if n >= stop), len(ids) - 1)
        places.append((columns[first], columns[last], list(columns[first : last + 1])))
        start = whole.find(text, stop)
    return places
