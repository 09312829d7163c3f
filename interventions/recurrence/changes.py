"""Interventions on the recurrent state, made between two tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, fields, replace
from typing import NoReturn

import torch

from ..acts import Acts
from ..intervention import Here, Intervention
from ..joined import PerRow
from ..limited import Placed
from ..schedules import Schedule
from ..where import Where
from .couples import combined
from .state import State

BEFORE_LAST = Where(prompt=-1, generation=None)


class StateIntervention(Intervention):
    """A change to what a recurrent model carries, made just before it reads the tokens that `before` names.

    It goes where any intervention goes: `applied(model, change)`, alone or after `|`.
    """

    before: Where

    @abstractmethod
    def changed(self, state: State) -> State:
        """The state that the model goes on with in place of this one."""

    def with_states(self, fn: Callable[[State], State]) -> StateIntervention:
        """The same with `fn` of the states in it."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **{n: fn(x) for n, x in held.items() if isinstance(x, State)})  # type: ignore[type-var]

    @property
    def sites(self) -> Set[str]:
        return frozenset()

    @property
    def placed(self) -> bool:
        return True

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        return acts

    def at(self, where: Where, *, schedule: Schedule | None = None) -> Intervention:
        """The same change before other tokens."""
        if schedule is not None:
            raise ValueError("A change of state has no schedule: give one AddState for each scale.")
        return self.moved_to(where)

    def moved_to(self, where: Where) -> StateIntervention:
        return replace(self, before=where)  # type: ignore[type-var]

    def keeping_norm(self) -> NoReturn:
        raise ValueError(f"{self!r} changes a state, which has no norm to keep.")

    def clipped(self, most: float) -> NoReturn:
        raise ValueError(f"{self!r} changes a state, which is not clipped: take a smaller scale.")


def state_changes(intervention: Intervention) -> list[StateIntervention]:
    """Those in an intervention that change the state, in their order and at their tokens and rows."""
    if isinstance(intervention, StateIntervention):
        return [intervention]
    if isinstance(intervention, Placed):
        return [change.moved_to(intervention.where) for change in state_changes(intervention.inner)]
    if isinstance(intervention, PerRow):
        return [
            change.moved_to(replace(change.before, rows=[i]))
            for i, row in enumerate(intervention.rows)
            if row is not None
            for change in state_changes(row)
        ]
    inner = [getattr(intervention, name, None) for name in ("first", "then", "inner")]
    return [change for one in inner if isinstance(one, Intervention) for change in state_changes(one)]


@dataclass(frozen=True, repr=False)
class AddState(StateIntervention):
    """Adds `scale` times a difference of states before the prompt's last token is read, or before others.

    So all that the model writes is changed, its first token too. With `before=Where.writing()` the difference
    is added again before every generated token is read. `delta` has one row, or as many as the batch. State
    steering as in "Does Transformer Interpretability Transfer to RNNs?" (Paulo, Marshall & Belrose 2024,
    arXiv:2404.05971).

    >>> from interventions.recurrence import State
    >>> AddState(State({"recurrent.0": torch.ones(1, 4)}, "a model"), scale=2)
    AddState(2 * recurrent.0, before prompt last, generation none)
    """

    delta: State
    scale: float = 1.0
    before: Where = BEFORE_LAST

    def __post_init__(self) -> None:
        _check(self.delta)

    def changed(self, state: State) -> State:
        return state.moved(self.delta, self.scale)

    def inverse(self) -> Intervention:
        return replace(self, scale=-self.scale)

    def randomised(self, seed: int) -> AddState:
        """The same with random tensors of the same norms: a control."""
        from ..steering.randomised import random_vectors

        scales = {couple.scale for couple in self.delta.couples}
        drawn = random_vectors({name: x for name, x in self.delta.items() if name not in scales}, seed)
        return replace(self, delta=self.delta.replaced(drawn))

    @property
    def fingerprints(self) -> Set[str]:
        return frozenset({self.delta.fingerprint})

    def __repr__(self) -> str:
        return f"AddState({self.scale:g} * {self.delta.ranges}, {_said(self.before)})"


@dataclass(frozen=True, repr=False)
class PatchState(StateIntervention):
    """Puts the tensors of another state in place of the model's own: all, or those that `.only` leaves."""

    state: State
    before: Where = BEFORE_LAST

    def __post_init__(self) -> None:
        _check(self.state)

    def changed(self, state: State) -> State:
        known = {name: state[name] for name in self.state}  # raises for names that the model lacks
        full = {name: x.to(known[name]).expand_as(known[name]) for name, x in self.state.items()}
        return replace(state, tensors=combined(lambda _, new: new, state.tensors, full, state.couples))

    @property
    def fingerprints(self) -> Set[str]:
        return frozenset({self.state.fingerprint})

    def __repr__(self) -> str:
        return f"PatchState({self.state.ranges}, {_said(self.before)})"


@dataclass(frozen=True, repr=False)
class AblateState(StateIntervention):
    """Sets the tensors of some names or patterns to zero, or to what they are in `to`, such as a mean.

    >>> AblateState(["conv.*", "recurrent.1"])
    AblateState(conv.*, recurrent.1 to zero, before prompt last, generation none)
    """

    names: Sequence[str] | str = "*"
    to: State | None = None
    before: Where = BEFORE_LAST

    def changed(self, state: State) -> State:
        if self.to is not None:
            return PatchState(self.to.only(*self._patterns)).changed(state)
        scales = {couple.scale for couple in state.couples}
        chosen = state.only(*self._patterns)
        return state.replaced({n: torch.zeros_like(x) for n, x in chosen.items() if n not in scales})

    @property
    def _patterns(self) -> Sequence[str]:
        return [self.names] if isinstance(self.names, str) else self.names

    @property
    def fingerprints(self) -> Set[str]:
        return frozenset() if self.to is None else frozenset({self.to.fingerprint})

    def __repr__(self) -> str:
        to = "zero" if self.to is None else "given values"
        return f"AblateState({', '.join(self._patterns)} to {to}, {_said(self.before)})"


def _check(state: object) -> None:
    if not isinstance(state, State):
        raise TypeError(
            f"A change of state is made of a `State`, as `read_state` gives, not {type(state).__name__}."
        )


def _said(before: Where) -> str:
    return f"before {repr(before).removeprefix('Where(').removesuffix(')')}"
