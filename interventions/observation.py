"""One tiny forward pass, watched: which modules run, when, and on what."""

from __future__ import annotations

import inspect
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .sites import Side
from .tensors import hidden, hidden_inputs


@dataclass(eq=False)
class Call:
    """One call of one module. `entered` and `left` are moments: they count what happens in the pass."""

    module: nn.Module
    entered: int
    inputs: list[tuple[Tensor, int]]  # hidden states and their versions
    left: int = -1
    output: Tensor | None = None
    version: int = 0
    raw: Any = None
    changed: frozenset[Side] = frozenset()  # sides whose tensor is written to in place later in the pass

    @property
    def width(self) -> int:
        """Last axis of what left; 0 where no hidden state did."""
        return self.output.shape[-1] if self.output is not None else 0

    @property
    def input_width(self) -> int:
        return self.inputs[0][0].shape[-1] if self.inputs else 0

    def ndim(self, side: Side) -> int:
        """3 for (batch pos width), 2 for (batch*pos width), 0 where no hidden state passes."""
        if side == "out":
            return self.output.ndim if self.output is not None else 0
        return self.inputs[0][0].ndim if self.inputs else 0

    def takes(self, other: Call) -> bool:
        """Whether this call was handed the very tensor that the other one returned."""
        return any(_same(x, version, other.output, other.version) for x, version in self.inputs)

    def same(self, other: Call) -> bool:
        """Whether both returned the same tensor."""
        return self.output is not None and _same(self.output, self.version, other.output, other.version)


@dataclass(eq=False)
class Observation:
    """The calls of one forward pass over tokens of that shape (batch, pos)."""

    shape: tuple[int, int]
    output: Any = None
    calls: dict[int, list[Call]] = field(default_factory=lambda: defaultdict(list))

    def once(self, module: nn.Module) -> Call | None:
        """The call of a module that was called exactly once."""
        calls = self.calls.get(id(module), ())
        return calls[0] if len(calls) == 1 else None

    def inside(self, module: nn.Module, call: Call) -> list[Call]:
        """Calls of the modules inside `module` while `call` lasted, in the order in which they ended."""
        found = [c for m in module.modules() if m is not module for c in self.calls.get(id(m), ())]
        return sorted(
            (c for c in found if call.entered < c.entered and c.left < call.left), key=lambda c: c.left
        )

    def forget(self) -> None:
        """Drops the values and keeps the shapes."""
        self.output = None
        for call in (c for calls in self.calls.values() for c in calls):
            call.raw = None
            call.inputs = [(x.to("meta"), version) for x, version in call.inputs[:1]]
            call.output = call.output.to("meta") if call.output is not None else None

    def is_hidden(self, x: Tensor) -> bool:
        batch, pos = self.shape
        return x.shape[:2] == self.shape if x.ndim == 3 else x.shape[0] == batch * pos


@torch.no_grad()
def observe(module: nn.Module, tokens: Tensor) -> Observation:
    """Runs one forward pass over `tokens` (batch pos) and watches every module in it."""
    seen = Observation((tokens.shape[0], tokens.shape[1]))
    moment, under_way, handles = 0, [], []

    def enter(m: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        nonlocal moment
        moment += 1
        inputs = [x for n in (3, 2) for x in hidden_inputs(args, kwargs, n) if seen.is_hidden(x)]
        under_way.append(Call(m, moment, [(x, x._version) for x in inputs]))

    def leave(m: nn.Module, _args: Any, out: Any) -> None:
        nonlocal moment
        moment += 1
        while (call := under_way.pop()).module is not m:
            pass
        call.left, call.raw = moment, out
        for n in (3, 2):
            x = hidden(out, n)
            if call.output is None and x is not None and seen.is_hidden(x):
                call.output, call.version = x, x._version
        seen.calls[id(m)].append(call)

    try:
        for m in module.modules():
            handles.append(m.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(m.register_forward_hook(leave))
        with torch.inference_mode(False):
            seen.output = module(tokens, **arguments(module))
    finally:
        for handle in handles:
            handle.remove()
    for call in (c for calls in seen.calls.values() for c in calls):
        late: list[Side] = ["out"] if call.output is not None and call.output._version != call.version else []
        if call.inputs and call.inputs[0][0]._version != call.inputs[0][1]:
            late.append("in")
        call.changed = frozenset(late)
    return seen


def arguments(module: nn.Module, **wanted: Any) -> dict[str, Any]:
    """What a pass is told: to keep no cache, and what else is wanted, where the model knows the word."""
    known = inspect.signature(module.forward).parameters
    return {key: value for key, value in {"use_cache": False, **wanted}.items() if key in known}


def text_config(module: nn.Module) -> Any:
    """The config of the language model in a module; None where it has none."""
    config: Any = getattr(module, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def sample(module: nn.Module, batch: int = 2, pos: int = 3) -> Tensor:
    """A few ordinary tokens (batch pos), none of them padding or the like."""
    text = text_config(module)
    special = {getattr(text, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos")}
    ids = [i for i in range(min(getattr(text, "vocab_size", 16), 32)) if i not in special]
    device = next((p.device for p in module.parameters()), None)
    return torch.tensor([ids[-1 - i % len(ids)] for i in range(batch * pos)], device=device).reshape(
        batch, pos
    )


def _same(x: Tensor, x_version: int, y: Tensor | None, y_version: int) -> bool:
    if y is None:
        return False
    return (x.data_ptr(), x.numel(), x_version) == (y.data_ptr(), y.numel(), y_version)
