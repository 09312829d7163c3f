"""What a model hands from token to token, and passes that go on from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..passage import Follower, Passage
from .couples import Couple
from .gradients import differentiable
from .slots import Slot, batch_axis, write
from .trees import Path, copied, tensors


@dataclass(frozen=True, eq=False)
class Carry:
    """What a pass left for the next one. Never written to: every pass gets a copy."""

    tree: dict[str, Any]  # "cache": the object; "left": by (module, attribute); "rnn": by module
    length: int  # how many tokens were read

    @property
    def batch(self) -> int:
        return next(x.shape[batch_axis(p)] for p, x in tensors(self.tree).items() if batched(x))

    def rows(self, index: Sequence[int]) -> Carry:
        """Some rows of the batch."""

        def chosen(path: Path, x: Tensor) -> Tensor:
            index_ = torch.tensor(index, device=x.device)
            return x.index_select(batch_axis(path), index_) if batched(x) else x.clone()

        return Carry(copied(self.tree, chosen), self.length)


def joined(carries: Sequence[Carry]) -> Carry:
    """Rows that were carried apart, as one batch."""
    each = [tensors(carry.tree) for carry in carries]

    def stacked(path: Path, x: Tensor) -> Tensor:
        return torch.cat([rows[path] for rows in each], batch_axis(path)) if batched(x) else x.clone()

    return Carry(copied(carries[0].tree, stacked), carries[0].length)


@dataclass(frozen=True, eq=False)
class Carrier:
    """How one model carries its state."""

    module: nn.Module
    follower: Follower
    parameter: str | None = None  # of the forward pass: it takes the cache
    begin: Callable[[int], Any] | None = (
        None  # the cache to begin with, of so many rows; None: the model's own
    )
    left: tuple[tuple[str, str], ...] = ()  # modules and their attributes
    rnns: tuple[str, ...] = ()
    chunks: bool = True  # whether several tokens may be read at once from a state
    rows: bool = True  # whether several rows may each read one token at once from a state
    slots: tuple[Slot, ...] = ()
    couples: tuple[Couple, ...] = ()
    shapes: frozenset[tuple[int, ...]] = frozenset()  # of what is carried, for one row
    attends: bool = False  # whether keys and values are carried besides
    example: Mapping[str, Tensor] = field(default_factory=dict)  # a state of one row

    @property
    def names(self) -> list[str]:
        return [slot.name for slot in self.slots]

    def advance(self, tokens: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:
        """Logits (batch pos vocab) at these tokens, read after what was read before, and the new carry."""
        passage = self.follower.resumed(tokens, 0 if carry is None else carry.length)
        width = tokens.shape[1] if carry is None or self.chunks else 1
        logits = []
        for at in range(0, tokens.shape[1], width):
            piece = tokens[:, at : at + width]
            out, carry = self._piece(piece, carry, passage.part(at, at + piece.shape[1]))
            logits.append(out)
        assert carry is not None
        return torch.cat(logits, dim=1), carry

    def _piece(self, tokens: Tensor, carry: Carry | None, passage: Passage) -> tuple[Tensor, Carry]:
        if self.rows or tokens.shape[1] > 1 or len(tokens) == 1:
            return self._pass(tokens, carry, passage)
        each = [
            self._pass(tokens[i : i + 1], carry and carry.rows([i]), passage.alone(i))
            for i in range(len(tokens))
        ]
        return torch.cat([logits for logits, _ in each]), joined([after for _, after in each])

    def _pass(self, tokens: Tensor, carry: Carry | None, passage: Passage) -> tuple[Tensor, Carry]:
        tree = self.empty(len(tokens)) if carry is None else copied(carry.tree)
        start = 0 if carry is None else carry.length
        with self.follower.telling(passage), self.lent(tree), differentiable(tree, self):
            out = self.module(tokens, **self.told(tree, start, tokens))
            tree = self.taken(tree, out)
        return logits_of(out), Carry(tree, start + tokens.shape[1])

    def told(self, tree: dict[str, Any], start: int, tokens: Tensor) -> dict[str, Any]:
        """The arguments, besides tokens, of a pass that goes on from `tree` at position `start`."""
        known = inspect.signature(self.module.forward).parameters
        told: dict[str, Any] = {"use_cache": True} if self.parameter and caches(known) else {}
        if self.parameter is not None and tree["cache"] is not None:
            told[self.parameter] = tree["cache"]
        if "position_ids" in known:
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
            told["position_ids"] = positions.expand(len(tokens), -1)
        return told

    def empty(self, batch: int) -> dict[str, Any]:
        """What is carried before anything was read."""
        cache = None if self.begin is None else self.begin(batch)
        return {"cache": cache, "left": dict.fromkeys(self.left), "rnn": dict.fromkeys(self.rnns)}

    def taken(self, tree: dict[str, Any], out: Any) -> dict[str, Any]:
        """What a pass that was lent `tree` carries on."""
        made = getattr(out, self.parameter, None) if self.parameter else None
        return {"cache": tree["cache"] if made is None else made, "left": self.held(), "rnn": tree["rnn"]}

    def held(self) -> dict[tuple[str, str], Any]:
        """What lies on the submodules now."""
        return {key: getattr(self.module.get_submodule(key[0]), key[1]) for key in self.left}

    def leave(self, left: Mapping[tuple[str, str], Any]) -> None:
        """Puts it there."""
        for (path, attribute), x in left.items():
            setattr(self.module.get_submodule(path), attribute, x)

    @contextmanager
    def lent(self, tree: dict[str, Any]) -> Iterator[None]:
        """While open, submodules go on from what `tree` says; afterwards they are as they were before.

        What torch's recurrent modules end in is written to `tree`.
        """
        with ExitStack() as undo:
            undo.callback(self.leave, self.held())
            self.leave(tree["left"])
            for path in self.rnns:
                submodule = self.module.get_submodule(path)
                for hook in _going_on(submodule, tree["rnn"], path):
                    undo.callback(hook.remove)
            yield

    def state(self, carry: Carry) -> dict[str, Tensor]:
        """The recurrent part of what is carried, by name, batch first."""
        held = tensors(carry.tree)
        return {slot.name: slot.read(held) for slot in self.slots}

    def with_state(self, carry: Carry, values: dict[str, Tensor]) -> Carry:
        """The same with other numbers in the recurrent part."""
        tree = copied(carry.tree)
        write(tree, self.slots, values)
        return Carry(tree, carry.length)


def _going_on(module: nn.Module, ends: dict[str, Any], path: str) -> list[Any]:
    def enter(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if ends[path] is None:
            return None
        return args[:1], {**kwargs, "hx": ends[path]}

    def leave(_module: nn.Module, _args: tuple, out: Any) -> None:
        ends[path] = out[1]

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, prepend=True),
    ]


def batched(x: Tensor) -> bool:
    return x.is_floating_point() and x.ndim > 1


def caches(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a forward pass with these parameters can be told to keep its state."""
    return "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def logits_of(out: Any) -> Tensor:
    """The logits in what a module returned."""
    return out if isinstance(out, Tensor) else out.logits if hasattr(out, "logits") else out[0]
