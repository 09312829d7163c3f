"""A recurrent state, as a value: what a model knows of the tokens that it has read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .carrier import Carry, joined
from .couples import Couple, combined, common, stepped


@dataclass(frozen=True, eq=False, repr=False)
class State(Mapping[str, Tensor]):
    """What a recurrent model carries after some tokens: a mapping from names to tensors (batch ...).

    Names are `conv.N` and `recurrent.N` for layer N of state-space models, `channel_shift.N`, `time_shift.N`,
    `num.N`, `den.N`, `max.N` of RWKV, `c.N`, `n.N`, `m.N` of xLSTM, `h.N` and `c.N` of torch's own modules.
    `a - b` is a difference, which may be scaled and added; where a state keeps numbers as `part * exp(scale)`
    (num and den of RWKV, c and n of xLSTM) the arithmetic is that of the numbers. Keys and values of the
    attention layers of a hybrid travel along for the sake of resuming; they take no part in arithmetic.

    >>> from transformers import MambaConfig, MambaForCausalLM
    >>> from interventions import Model
    >>> from interventions.recurrence import read_state
    >>> config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    >>> model = Model.load(MambaForCausalLM(config))
    >>> state = read_state(model, torch.tensor([[3, 1, 4]]))
    >>> state
    State(batch 1, after 3 tokens: conv.0 to conv.1 (64 4), recurrent.0 to recurrent.1 (64 4))
    >>> (0.5 * (state - state.rows([0]))).only("recurrent.1")
    State(batch 1, a difference: recurrent.1 (64 4))
    """

    tensors: Mapping[str, Tensor]
    fingerprint: str  # of the model
    lengths: tuple[int, ...] = ()  # tokens that each row has read; none for a difference
    couples: tuple[Couple, ...] = ()
    rest: Mapping[str, Tensor] = field(default_factory=dict)  # what else is carried, such as keys and values
    carry: Carry | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise LookupError(f"No {name!r} in this state; it has {_ranges(self.tensors)}.")
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        if not self.lengths:
            read = "a difference"
        else:
            low, high = min(self.lengths), max(self.lengths)
            read = f"after {low if low == high else f'{low} to {high}'} token{'s' * (high > 1)}"
        return f"State(batch {self.batch}, {read}: {_ranges(self.tensors, shapes=True)})"

    @property
    def ranges(self) -> str:
        """Its names, in short."""
        return _ranges(self.tensors)

    @property
    def batch(self) -> int:
        return max((len(x) for x in self.tensors.values()), default=0)

    @property
    def length(self) -> int | None:
        """How many tokens were read, where it is the same number in all rows."""
        return self.lengths[0] if len(set(self.lengths)) == 1 else None

    # Parts

    def only(self, *patterns: str) -> State:
        """Some of its tensors, by name or pattern, as a difference or a patch of them alone.

        Of numbers that are kept as `part * exp(scale)` the scale comes with the part. Raises LookupError
        where nothing is of that name.
        """
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self.tensors):
                raise LookupError(f"No {pattern!r} in this state; it has {_ranges(self.tensors)}.")
        names = {name for name in self.tensors if any(fnmatchcase(name, p) for p in patterns)}
        names |= {couple.scale for couple in self.couples if names & set(couple.parts)}
        return replace(self, tensors={n: x for n, x in self.items() if n in names}, rest={}, carry=None)

    def rows(self, index: Sequence[int]) -> State:
        """Some rows of the batch, in that order; a row may be named again and again."""
        index = [int(i) for i in index]
        if not index:
            raise ValueError("No row is named: a state has at least one.")
        if outside := [i for i in index if not -self.batch <= i < self.batch]:
            raise ValueError(f"Row {outside[0]} is out of range: the state has {self.batch} rows.")
        index = [i % self.batch for i in index]
        chosen = self.map(lambda x: x[index] if len(x) > 1 else x.expand(len(index), *x.shape[1:]))
        lengths = tuple(self.lengths[i] for i in index) if self.lengths else ()
        rest = {k: x[index] if x.is_floating_point() and x.ndim > 1 else x for k, x in self.rest.items()}
        carry = None if self.carry is None else self.carry.rows(index)
        return replace(chosen, lengths=lengths, rest=rest, carry=carry)

    def replaced(self, values: Mapping[str, Tensor]) -> State:
        """The same with other tensors under some names; these may be leaves that ask for gradients.

        Raises LookupError for other names, and ValueError where a shape does not fit.
        """
        for name, x in values.items():
            if x.shape != self[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(self[name].shape)}, and what is to replace it {tuple(x.shape)}."
                )
        return replace(self, tensors={**self.tensors, **values})

    def map(self, fn: Callable[[Tensor], Tensor]) -> State:
        """The same with `fn` of every tensor in the place of it."""
        return replace(self, tensors={name: fn(x) for name, x in self.items()})

    # Arithmetic

    def __add__(self, other: State) -> State:
        return self.moved(other)

    def __sub__(self, other: State) -> State:
        self._checked(other)
        out = combined(torch.sub, self._over(other), other._over(self), self.couples)
        return State(out, self.fingerprint, couples=self.couples)

    def __mul__(self, factor: float) -> State:
        scales = {couple.scale for couple in self.couples}
        tensors = {name: x if name in scales else x * factor for name, x in self.items()}
        return State(tensors, self.fingerprint, couples=self.couples)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> State:
        return self * (1 / divisor)

    def __neg__(self) -> State:
        return self * -1.0

    def moved(self, delta: State, scale: float | Tensor = 1.0) -> State:
        """This state with `scale` times a difference added; of two differences, their sum.

        The weights that RWKV sums up (den) stay positive: where the full step would take more than nine
        tenths of one away, that entry takes a shorter step, in num as in den, and a warning says how many.
        """
        self._checked(delta)
        if self.batch == 1 < delta.batch:
            return self.rows([0] * delta.batch).moved(delta, scale)
        if not self.lengths:
            out = combined(lambda x, d: x + scale * d, self._over(delta), delta._over(self), self.couples)
            return replace(self, tensors=out)
        if unknown := [name for name in delta if name not in self.tensors]:
            raise LookupError(f"No {unknown[0]!r} in this state; it has {_ranges(self.tensors)}.")
        out, short = stepped(self.tensors, delta.tensors, scale, self.couples)
        if short:
            warnings.warn(
                f"{short} sums of weights (den) would have been all but used up, so these entries were moved "
                f"less far; take a smaller scale than {scale}.",
                stacklevel=3,
            )
        return replace(self, tensors=out)

    def mean(self) -> State:
        """The mean over the batch, a state of one row: of many prompts, or of one state joined with others.

        What else is carried has no mean: in a hybrid it may be patched in, but not resumed.
        """
        rows = common([{n: x[i : i + 1] for n, x in self.items()} for i in range(self.batch)], self.couples)
        tensors = {name: torch.cat([row[name] for row in rows]).mean(0, keepdim=True) for name in self}
        lengths = () if self.length is None else (self.length,)
        return State(tensors, self.fingerprint, lengths, self.couples)

    @classmethod
    def joined(cls, states: Iterable[State]) -> State:
        """The rows of several states, one after the other.

        Raises ValueError where they are of several models or have other tensors.
        """
        states = list(states)
        if not states:
            raise ValueError("There are no states to join.")
        first = states[0]
        for state in states[1:]:
            if state.fingerprint != first.fingerprint or list(state) != list(first):
                raise ValueError(f"{state!r} cannot be joined to {first!r}: another model, or other tensors.")
            if bool(state.lengths) != bool(first.lengths):
                raise ValueError(f"{state!r} cannot be joined to {first!r}: one is a difference.")
        tensors = {name: torch.cat([state[name] for state in states]) for name in first}
        lengths = tuple(n for state in states for n in state.lengths)
        out = cls(tensors, first.fingerprint, lengths, first.couples)
        if out.length is None or any(state.rest.keys() != first.rest.keys() for state in states):
            return out
        carries = [state.carry for state in states if state.carry is not None]
        carry = joined(carries) if len(carries) == len(states) else None
        return replace(out, rest=_stacked([state.rest for state in states]), carry=carry)

    def _over(self, other: State) -> dict[str, Tensor]:
        """With zeros where the other has something more."""
        scales = {couple.scale for couple in self.couples}
        return {**{n: x if n in scales else torch.zeros_like(x) for n, x in other.items()}, **self.tensors}

    def _checked(self, other: State) -> None:
        if not isinstance(other, State):
            raise TypeError(f"A state is added to, or taken from, a state, not {type(other).__name__}.")
        if other.fingerprint != self.fingerprint:
            raise ValueError(
                f"The two states are of different models (fingerprints {self.fingerprint[:8]} and "
                f"{other.fingerprint[:8]})."
            )
        if other.batch not in (1, self.batch) and self.batch != 1:
            raise ValueError(f"A state of {other.batch} rows does not fit one of {self.batch}.")

    # Files

    def save(self, folder: str | Path) -> None:
        """Writes `state.safetensors` and `state.json`, from which the state may be resumed."""
        from .files import save

        save(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> State:
        """The state in a folder. Raises FileNotFoundError where there is none, ValueError for a broken."""
        from .files import load

        return load(folder)


def _stacked(each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        key: torch.cat([rest[key] for rest in each]) if x.is_floating_point() and x.ndim > 1 else x
        for key, x in each[0].items()
    }


def _ranges(tensors: Mapping[str, Tensor], *, shapes: bool = False) -> str:
    """`conv.0 to conv.2, recurrent.0 to recurrent.2`."""
    stems: dict[Any, list[str]] = {}
    for name, x in tensors.items():
        stems.setdefault((name.partition(".")[0], tuple(x.shape[1:])), []).append(name)
    return ", ".join(
        " to ".join([names[0], names[-1]] if len(names) > 1 else names)
        + (f" ({' '.join(map(str, shape))})" if shapes else "")
        for (_, shape), names in stems.items()
    )
