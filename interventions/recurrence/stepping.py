"""Passes that are stopped between two tokens, where the state is changed, and resumed."""

from __future__ import annotations

import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..model import Model
from ..passage import Passage
from ..skipping import returning
from .carrier import Carrier, Carry, joined, logits_of
from .changes import StateIntervention
from .finding import carrier
from .gradients import differentiable
from .slots import write
from .state import State
from .trees import tensors


@contextmanager
def stepping(model: Model, changes: Sequence[StateIntervention]) -> Iterator[Model]:
    """While open, every pass of `model`, generation too, goes on with a changed state where `changes` say.

    A state lies between two tokens. A pass over tokens before which it is to be changed is made in parts,
    each going on from the last, and their logits are joined: cached or not, in `generate` or in one pass over
    all tokens, the same is computed. `read_state`, `resume` and their like are made of the model's own
    steps, and left alone.

    Raises ValueError where the model has no recurrent state, or a change is of another model, or hangs on
    activations.
    """
    if model.carrying is not model:
        with stepping(model.carrying, changes):
            yield model
        return
    carrying = carrier(model)
    for change in changes:
        if change.fingerprints - {model.fingerprint}:
            raise ValueError(f"{change!r} is of another model than this one.")
        if change.before.when is not None:
            raise ValueError(
                f"{change!r}: a state is changed before activations are known, so on no condition."
            )
        _tried(change, State(carrying.example, model.fingerprint, (1,), carrying.couples))
    mine = [(model._level, change) for change in changes]
    if model in _open:
        made = _open[model]
        made += mine
        try:
            yield model
        finally:
            del made[len(made) - len(mine) :]
        return
    own, left = model.module.forward, carrying.held()
    stepper = _Stepper(model, carrying, mine, own, list(inspect.signature(own).parameters))

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return stepper(*args, **kwargs)

    _open[model] = mine
    model.follower.parted += 1
    try:
        with model.following(), returning({model.module: forward}):
            yield model
    finally:
        model.follower.parted -= 1
        del _open[model]
        carrying.leave(left)


_Changes = list[tuple[int, StateIntervention]]  # each with the level of passes that it is meant for
_open: weakref.WeakKeyDictionary[Model, _Changes] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class _Stepper:
    model: Model
    carrying: Carrier
    made: _Changes
    own: Callable[..., Any]
    names: list[str]  # of its parameters

    @property
    def changes(self) -> list[StateIntervention]:
        """Those for the pass under way, in the order in which they were opened."""
        return [change for level, change in self.made if level == self.model._level]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        passage = self.model.passage
        if not self.changes or passage is None or self.model.follower.told is not None:
            return self.own(*args, **kwargs)
        given = dict(zip(self.names, args, strict=False)) | kwargs
        tokens = given.pop(self.names[0], None)
        touched = [self._touched(change, passage) for change in self.changes]
        cuts = torch.stack(touched).any(0).any(0).nonzero()[:, 0].tolist()
        single = isinstance(tokens, Tensor) and tokens.shape[1] == 1 < len(tokens)
        if not cuts and (self.carrying.rows or not single):
            return self.own(*args, **kwargs)
        if not isinstance(tokens, Tensor):
            raise ValueError("A pass whose state is changed is given tokens, not embeddings.")
        return self._parts(tokens, given, passage, [at for at in cuts if at], touched)

    def _touched(self, change: StateIntervention, passage: Passage) -> Tensor:
        """Before which tokens of the pass (row pos) the state is changed."""
        pos = passage.of_this_pass(passage.position)
        model = self.model
        found = change.before.touched(passage, pos, {}, model.text if model.tokenizer is not None else None)
        found = torch.ones_like(pos, dtype=torch.bool) if found is None else found
        first = pos == 0
        if bool((found & first).any()) and change.before.prompt != "all":
            raise ValueError(
                f"{change!r}: before the first token nothing has been read, and there is no state to change."
            )
        return found & ~first & (pos >= 0)

    def _parts(
        self,
        tokens: Tensor,
        given: dict[str, Any],
        passage: Passage,
        cuts: Sequence[int],
        touched: Sequence[Tensor],
    ) -> Any:
        carrying, n = self.carrying, tokens.shape[1]
        self._checked(passage, cuts)
        if given.get("labels") is not None:
            raise ValueError("A pass whose state is changed works out no loss: leave out labels.")
        asked, keep = given.pop("use_cache", None), given.pop("logits_to_keep", 0)
        plain = given.get("return_dict") is False
        given |= {"return_dict": True} if plain else {}
        cache = given.pop(carrying.parameter, None) if carrying.parameter else None
        wants_cache = asked is not False and carrying.parameter is not None
        before = carrying.held()
        tree = carrying.empty(len(tokens))
        if passage.start:
            tree |= {"cache": cache, "left": before}
        elif cache is not None:
            tree |= {"cache": cache}
        logits: list[Tensor] = []
        out: Any = None
        places = [0, *cuts, n]
        for start, stop in pairwise(places):
            if start or passage.start:
                self._change(tree, [mask[:, start] for mask in touched], passage, passage.start + start)
            at_once = carrying.chunks or not (start or passage.start)
            for a in [start] if at_once else range(start, stop):
                b = stop if at_once else a + 1
                out, tree = self._piece(tokens, given, passage, tree, a, b)
                logits.append(logits_of(out))
        carrying.leave(tree["left"] if wants_cache else before)
        whole = torch.cat(logits, dim=1)
        if isinstance(keep, Tensor) or keep:
            whole = whole[:, keep] if isinstance(keep, Tensor) else whole[:, -keep:]
        made = _with_logits(out, whole, carrying.parameter, tree["cache"] if wants_cache else None)
        return made.to_tuple() if plain and hasattr(made, "to_tuple") else made

    def _piece(
        self, tokens: Tensor, given: dict[str, Any], passage: Passage, tree: dict[str, Any], a: int, b: int
    ) -> tuple[Any, dict[str, Any]]:
        carrying = self.carrying
        if not carrying.rows and b - a == 1 < len(tokens):
            return self._row_by_row(tokens, given, passage, tree, a, b)
        told = carrying.told(tree, passage.start + a, tokens[:, a:b])
        for key, x in given.items():
            if key == "attention_mask" and isinstance(x, Tensor):
                skipped = x.shape[-1] - tokens.shape[1]  # columns of what was read before
                told[key] = x[:, 0 if carrying.attends else skipped + a : skipped + b]
            elif isinstance(x, Tensor) and x.shape[-1:] == tokens.shape[1:] and key.endswith("_ids"):
                told[key] = x[..., a:b]
            elif x is not None:
                told[key] = x
        with (
            self.model.follower.narrowed(a, b),
            carrying.lent(tree),
            differentiable(tree, carrying),
        ):
            out = self.own(tokens[:, a:b], **told)
            return out, carrying.taken(tree, out)

    def _row_by_row(
        self, tokens: Tensor, given: dict[str, Any], passage: Passage, tree: dict[str, Any], a: int, b: int
    ) -> tuple[Any, dict[str, Any]]:
        outs, trees = [], []
        for row in range(len(tokens)):
            some = {k: x[row : row + 1] if isinstance(x, Tensor) else x for k, x in given.items()}
            mine = Carry(tree, 0).rows([row]).tree if tensors(tree) else self.carrying.empty(1)
            with self.model.follower.alone(row):
                out, after = self._piece(tokens[row : row + 1], some, passage, mine, a, b)
            outs.append(out)
            trees.append(Carry(after, 0))
        logits = torch.cat([logits_of(out) for out in outs])
        return _with_logits(outs[0], logits, None, None), joined(trees).tree

    def _change(self, tree: dict[str, Any], rows: Sequence[Tensor], passage: Passage, read: int) -> None:
        carrying = self.carrying
        values = carrying.state(Carry(tree, read))
        state = State(values, self.model.fingerprint, (read,) * len(rows[0]), carrying.couples)
        for change, chosen in zip(self.changes, rows, strict=True):
            if chosen.any():
                new = _for_rows(change, passage).changed(state)
                if chosen.all():
                    state = new
                else:
                    state = replace(state, tensors={n: _where(chosen, new[n], x) for n, x in state.items()})
        write(tree, carrying.slots, dict(state))

    def _checked(self, passage: Passage, cuts: Sequence[int]) -> None:
        if passage.mask is None or not cuts:
            return
        name, pads = type(self.model.module).__name__, ~passage.of_this_pass(passage.real)
        if bool((~passage.real).any()) and (
            self.model.writes != "padded"
            or (self.carrying.attends and bool(pads[:, cuts[0] :].any()))
            or _alone(pads, cuts)
        ):
            raise ValueError(
                f"What {name} carries changes with padding; give rows of equal length, or let "
                "`model.generate` group them."
            )


def _for_rows(change: StateIntervention, passage: Passage) -> StateIntervention:
    """The change with one row of its state for each row of the pass, beams among them."""
    given, rows = passage.n_rows, passage.rows.tolist()

    def chosen(state: State) -> State:
        if state.batch == 1:
            return state
        if state.batch != given:
            raise ValueError(
                f"{change!r} has {state.batch} rows of state, and there are {given} rows of tokens: give one "
                "row for all, or one for each."
            )
        return state.rows(rows)

    return change.with_states(chosen)


def _alone(pads: Tensor, cuts: Sequence[int]) -> bool:
    """Whether a part of one column has padding and text comes after it: Mamba-2 reads such padding."""
    parts = pairwise([0, *cuts, pads.shape[1]])
    columns = [start for start, stop in parts if stop - start == 1]
    follows = (~pads).flip(1).cumsum(1).flip(1) > 0
    return bool((pads & follows)[:, columns].any())


def _tried(change: StateIntervention, state: State) -> None:
    """Raises where a change does not fit a state of the model, before any pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change.with_states(lambda one: one.rows([0])).changed(state)


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.to(old.device).reshape(-1, *[1] * (old.ndim - 1)), new, old)


def _with_logits(out: Any, logits: Tensor, parameter: str | None, cache: Any) -> Any:
    """The logits of all parts and the cache that they leave, in the form of what the last part returned.

    Hidden states and attentions, of which a part has only its own, are left out.
    """
    if isinstance(out, Tensor):
        return logits
    if not hasattr(out, "logits"):
        return (logits,)
    kept = {"logits": logits}
    if cache is not None and parameter is not None and hasattr(out, parameter):
        kept[parameter] = cache
    made: Any = type(out) if isinstance(out, Mapping) else SimpleNamespace
    return made(**kept)  # what is None is no key of an output of transformers, as generation expects
