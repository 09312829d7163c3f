"""Finding out how a model carries its state.

No model is known by its name. What is carried may lie in a cache that the forward pass takes and returns, on
attributes that it leaves on its submodules, and in torch's own recurrent modules. Where it lies, what it is
called and whether several tokens, or several rows, may be read at once from a state is tried out, against the
unbroken pass.
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..model import _FAILURES, Model
from ..observation import sample
from .carrier import Carrier, batched, caches
from .couples import Couple
from .slots import Slot, batch_axis, couples, named
from .trees import Path, tensors

_PARAMETERS = ("past_key_values", "cache_params", "state")
KINDS = (
    "models that take and return a cache or state (Mamba, Mamba-2, FalconMamba, RWKV, xLSTM, LFM2 and the "
    "hybrids Jamba, Bamba, Zamba2, Falcon-H1, GraniteMoeHybrid, Qwen3-Next, Qwen3.5), that leave it on their "
    "submodules (RecurrentGemma), or that are made of torch's nn.LSTM, nn.GRU or nn.RNN"
)

_carriers: weakref.WeakKeyDictionary[Model, Carrier] = weakref.WeakKeyDictionary()


def carrier(model: Model) -> Carrier:
    """How a model carries its state, tried out once.

    Raises ValueError where it carries none, or none that it goes on from as in the unbroken pass.
    """
    if model not in _carriers:
        with model.apart(), torch.no_grad():
            _carriers[model] = _found(model)
    return _carriers[model]


def _found(model: Model) -> Carrier:
    name = type(model.module).__name__
    tokens = sample(model.module, 2, 6)
    try:
        carrying = _named(model, _placed(model, tokens), tokens)
    except _FAILURES as error:
        raise ValueError(f"{name} cannot be stopped and resumed ({error}); what can: {KINDS}.") from error
    if not carrying.slots:
        why = ": what it carries grows with the tokens, as keys and values do" if carrying.parameter else ""
        raise ValueError(f"{name} has no recurrent state{why}. What has one: {KINDS}.")
    exact = max(torch.finfo(model.dtype).eps ** 0.5, 1e-4)
    rough = max(exact, 0.02)  # Zamba2 bounds its time steps in a chunk and not in a step: half a percent
    whole = model.logits(tokens)
    end = carrying.advance(tokens)[1]

    def right(trial: Carrier, cut: int) -> bool:
        try:
            before, carry = trial.advance(tokens[:, :cut])
            after, carry = trial.advance(tokens[:, cut:], carry)
        except _FAILURES:
            return False
        same = torch.cat([before, after], dim=1)
        ends, reached = carrying.state(end), trial.state(carry)
        return (
            same.shape == whole.shape
            and _near(same, whole, exact)
            and all(ends[n].shape == x.shape and _near(x, ends[n], rough) for n, x in reached.items())
        )

    trials = (replace(carrying, chunks=False, rows=rows) for rows in (True, False))
    one_by_one = next((trial for trial in trials if right(trial, 3)), None)
    if one_by_one is None:
        raise ValueError(
            f"{name} goes on from its own state otherwise than in an unbroken pass. What can be resumed: "
            f"{KINDS}."
        )
    chunked = replace(one_by_one, chunks=True)

    def heard(cut: int) -> bool:
        """Whether a chunk goes on from a state as single tokens do, where the state is loud."""
        carry = one_by_one.advance(tokens[:, :cut])[1]
        scales = {couple.scale for couple in carrying.couples}
        values = {n: x if n in scales else 10 * x for n, x in carrying.state(carry).items()}
        loud = carrying.with_state(carry, values)
        at_once, singly = (trial.advance(tokens[:, cut:], loud)[0] for trial in (chunked, one_by_one))
        return _near(at_once, singly, rough)

    return chunked if all(right(chunked, cut) and heard(cut) for cut in (1, 3, 4)) else one_by_one


def _placed(model: Model, tokens: Tensor) -> Carrier:
    """Where the state is: what a pass that keeps it returns, and what it leaves behind."""
    module = model.module
    known = inspect.signature(module.forward).parameters
    rnns = tuple(path for path, m in module.named_modules() if isinstance(m, nn.RNNBase))
    if any(m.bidirectional for m in module.modules() if isinstance(m, nn.RNNBase)):
        raise ValueError("it reads its text from both ends")
    plain = Carrier(module, model.follower, rnns=rnns)
    parameter = next((p for p in _PARAMETERS if p in known), None)
    if parameter is None or not caches(known):
        return plain
    carrier = replace(plain, parameter=parameter, left=_left(module, tokens))
    if carrier.advance(tokens)[1].tree["cache"] is not None or parameter != "past_key_values":
        return carrier
    from transformers import DynamicCache

    return replace(carrier, begin=lambda _batch: DynamicCache(config=module.config))  # type: ignore[arg-type]


def _left(module: nn.Module, tokens: Tensor) -> tuple[tuple[str, str], ...]:
    """Attributes of submodules that hold tensors made by a pass that keeps its state."""

    def held() -> dict[tuple[str, str], Tensor | None]:
        return {
            (path, name): x
            for path, m in module.named_modules()
            for name, x in vars(m).items()
            if isinstance(x, Tensor) or x is None
        }

    before = held()
    try:
        module(tokens, use_cache=True)
        after = held()
        return tuple(key for key, x in after.items() if isinstance(x, Tensor) and before.get(key) is not x)
    finally:
        for (path, name), x in before.items():
            setattr(module.get_submodule(path), name, x)


def _named(model: Model, carrier: Carrier, tokens: Tensor) -> Carrier:
    """Names what does not grow as tokens are read, and finds which of it is coupled."""
    each = [tensors(carrier.advance(tokens[:, :n])[1].tree) for n in (1, 2, 3)]
    batch = len(tokens)
    fixed = {
        path: x
        for path, x in each[0].items()
        if batched(x) and x.shape[batch_axis(path)] == batch
        if all(path in other and other[path].shape == x.shape for other in each[1:])
    }
    block_of = {
        path: i
        for i, block in enumerate(model.blocks)
        for path, _ in block.named_modules(prefix=f"{model.layout.blocks}.{i}")
    }
    slots = tuple(named(fixed, block_of, len(model.blocks), carrier.rnns))
    shapes = frozenset(tuple(x.shape[1:]) for path, x in fixed.items() if not batch_axis(path))
    grows = any(batched(x) and path not in fixed for path, x in each[0].items())
    carrier = replace(carrier, slots=slots, shapes=shapes, attends=grows)
    carrier = replace(carrier, example=carrier.state(carrier.advance(tokens[:1, :2])[1]))
    possible = couples(carrier.names)
    if not possible:
        return carrier
    cache = carrier.advance(tokens)[1].tree["cache"]
    if isinstance(cache, list | tuple) and all(isinstance(x, Tensor) for x in cache):
        carrier = replace(carrier, begin=_nothing_read(model, fixed, possible, slots))
    return replace(carrier, couples=tuple(_borne_out(model, carrier, tokens, possible)))


def _nothing_read(
    model: Model, fixed: dict[Path, Tensor], possible: Sequence[Couple], slots: Sequence[Slot]
) -> Callable[[int], list[Tensor]]:
    """A list of tensors to begin with: the model's own would round its numbers to float32."""
    scales = {slot.path for slot in slots if any(couple.scale == slot.name for couple in possible)}
    dtype = model.dtype  # not the model, which would live as long as what is known of it

    def begin(batch: int) -> list[Tensor]:
        return [
            torch.full(
                (batch, *x.shape[1:]),
                -1e30 if path in scales else 0.0,
                device=x.device,
                dtype=torch.promote_types(x.dtype, dtype),
            )
            for path, x in fixed.items()
        ]

    return begin


def _borne_out(
    model: Model, carrier: Carrier, tokens: Tensor, possible: Sequence[Couple]
) -> Iterator[Couple]:
    """The couples whose scale may be moved, and their parts with it, without a change to what comes after."""
    carry = carrier.advance(tokens[:1, :3])[1]
    state = carrier.state(carry)
    plain = carrier.advance(tokens[:1, 3:4], carry)[0]
    for couple in possible:
        moved = dict(state)
        moved[couple.scale] = state[couple.scale] + 0.5
        for part in couple.parts:
            moved[part] = state[part] * math.exp(-0.5)
        after = carrier.advance(tokens[:1, 3:4], carrier.with_state(carry, moved))[0]
        if _near(after, plain, max(torch.finfo(model.dtype).eps ** 0.5, 1e-4)):
            positive = next((part for part in couple.parts if bool((state[part] > 0).all())), None)
            yield replace(couple, positive=positive)


def _near(x: Tensor, y: Tensor, within: float) -> bool:
    return bool((x - y).abs().max() <= within * y.abs().max())
