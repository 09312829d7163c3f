"""What a model hands from token to token, how it takes it back, and which ways of going on are right.

No model is known by its name. What is carried may lie in a cache that the forward pass takes and returns, on
attributes that it leaves on its submodules, and in torch's own recurrent modules. Where it lies, what it is
called and whether several tokens, or several rows, may be read at once from a state is tried out, against the
unbroken pass.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..model import _FAILURES, Model, _logits
from ..observation import sample
from .couples import Couple
from .gradients import differentiable
from .slots import Slot, batch_axis, couples, named, write
from .trees import Path, copied, tensors

_PARAMETERS = ("past_key_values", "cache_params", "state")
KINDS = (
    "a cache or state that the forward pass takes and returns (Mamba, Mamba-2, FalconMamba, RWKV, xLSTM, LFM2 and "
    "the hybrids Jamba, Bamba, Zamba2, Falcon-H1, GraniteMoeHybrid, Qwen3-Next, Qwen3.5), tensors left on "
    "submodules (RecurrentGemma), and torch's nn.LSTM, nn.GRU and nn.RNN"
)


@dataclass(frozen=True, eq=False)
class Carry:
    """What a pass left for the next one. Never written to: every pass gets a copy."""

    tree: dict[str, Any]  # "cache": the object; "left": by (module, attribute); "rnn": by module
    length: int  # how many tokens were read

    @property
    def batch(self) -> int:
        return next(x.shape[batch_axis(p)] for p, x in tensors(self.tree).items() if _batched(x))

    def rows(self, index: Sequence[int]) -> Carry:
        """Some rows of the batch."""

        def chosen(path: Path, x: Tensor) -> Tensor:
            index_ = torch.tensor(index, device=x.device)
            return x.index_select(batch_axis(path), index_) if _batched(x) else x.clone()

        return Carry(copied(self.tree, chosen), self.length)


def joined(carries: Sequence[Carry]) -> Carry:
    """Rows that were carried apart, as one batch."""
    each = [tensors(carry.tree) for carry in carries]

    def stacked(path: Path, x: Tensor) -> Tensor:
        return torch.cat([rows[path] for rows in each], batch_axis(path)) if _batched(x) else x.clone()

    return Carry(copied(carries[0].tree, stacked), carries[0].length)


@dataclass(frozen=True, eq=False)
class Carrier:
    """How one model carries its state."""

    module: nn.Module
    parameter: str | None = None  # of the forward pass, that takes the cache
    begin: Callable[[int], Any] | None = (
        None  # the cache to begin with, of so many rows; None: the model's own
    )
    left: tuple[tuple[str, str], ...] = ()  # modules and their attributes
    rnns: tuple[str, ...] = ()
    chunks: bool = True  # whether several tokens may be read at once from a state
    rows: bool = True  # whether several rows may each read one token at once from a state
    slots: tuple[Slot, ...] = ()
    couples: tuple[Couple, ...] = field(default=())

    @property
    def names(self) -> list[str]:
        return [slot.name for slot in self.slots]

    def advance(self, tokens: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:
        """Logits (batch pos vocab) at these tokens, read after what was read before, and the new carry."""
        whole = carry is None or self.chunks
        logits = []
        for piece in [tokens] if whole else tokens.split(1, dim=1):
            out, carry = self._piece(piece, carry)
            logits.append(out)
        assert carry is not None
        return torch.cat(logits, dim=1), carry

    def _piece(self, tokens: Tensor, carry: Carry | None) -> tuple[Tensor, Carry]:
        if self.rows or tokens.shape[1] > 1 or len(tokens) == 1:
            return self._pass(tokens, carry)
        each = [self._pass(tokens[i : i + 1], carry and carry.rows([i])) for i in range(len(tokens))]
        return torch.cat([logits for logits, _ in each]), joined([after for _, after in each])

    def _pass(self, tokens: Tensor, carry: Carry | None) -> tuple[Tensor, Carry]:
        tree = self.empty(len(tokens)) if carry is None else copied(carry.tree)
        start = 0 if carry is None else carry.length
        known = inspect.signature(self.module.forward).parameters
        wanted: dict[str, Any] = {"use_cache": True} if "use_cache" in known else {}
        if self.parameter is not None and tree["cache"] is not None:
            wanted[self.parameter] = tree["cache"]
        if "position_ids" in known:
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
            wanted["position_ids"] = positions.expand(len(tokens), -1)
        with self.lent(tree), differentiable(tree, self):
            out = self.module(tokens, **wanted)
            tree = self.taken(tree, out)
        return (out if isinstance(out, Tensor) else _logits(out)), Carry(tree, start + tokens.shape[1])

    def empty(self, batch: int) -> dict[str, Any]:
        """What is carried before anything was read."""
        cache = None if self.begin is None else self.begin(batch)
        return {"cache": cache, "left": dict.fromkeys(self.left), "rnn": dict.fromkeys(self.rnns)}

    def taken(self, tree: dict[str, Any], out: Any) -> dict[str, Any]:
        """What a pass that was lent `tree` carries on."""
        made = getattr(out, self.parameter, None) if self.parameter else None
        left = {key: getattr(self.module.get_submodule(key[0]), key[1]) for key in self.left}
        return {"cache": tree["cache"] if made is None else made, "left": left, "rnn": tree["rnn"]}

    @contextmanager
    def lent(self, tree: dict[str, Any]) -> Iterator[None]:
        """While open, submodules go on from what `tree` says; afterwards they are as they were before.

        What torch's recurrent modules end in is written to `tree`.
        """
        with ExitStack() as undo:
            for path, attribute in self.left:
                submodule = self.module.get_submodule(path)
                undo.callback(setattr, submodule, attribute, getattr(submodule, attribute))
                setattr(submodule, attribute, tree["left"][path, attribute])
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


def _near(x: Tensor, y: Tensor) -> bool:
    # Zamba2 bounds its time steps when it reads many tokens and not when it reads one: half a percent.
    return bool((x - y).abs().max() <= 0.02 * y.abs().max())


def _batched(x: Tensor) -> bool:
    return x.is_floating_point() and x.ndim > 1


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
        carrying = _named(model, _placed(model.module, tokens), tokens)
    except _FAILURES as error:
        raise ValueError(f"{name} cannot be stopped and resumed ({error}); what can: {KINDS}.") from error
    if not carrying.slots:
        grows = (
            "what it carries grows with the tokens, as keys and values do" if carrying.parameter else "none"
        )
        raise ValueError(f"{name} has no recurrent state: {grows}. What has one: {KINDS}.")
    whole = model.logits(tokens)
    end = carrying._pass(tokens, None)[1]

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
            and model.close(same, whole)
            and all(ends[n].shape == x.shape and _near(x, ends[n]) for n, x in reached.items())
        )

    one_by_one = next(
        (trial for rows in (True, False) if right(trial := replace(carrying, chunks=False, rows=rows), 3)),
        None,
    )
    if one_by_one is None:
        raise ValueError(
            f"{name} goes on from its own state otherwise than in an unbroken pass; what can be resumed: {KINDS}."
        )
    chunked = replace(one_by_one, chunks=True)
    return chunked if all(right(chunked, cut) for cut in (1, 3, 4)) else one_by_one


def _placed(module: nn.Module, tokens: Tensor) -> Carrier:
    """Where the state is: what a pass that keeps it returns, and what it leaves behind."""
    known = inspect.signature(module.forward).parameters
    rnns = tuple(
        path
        for path, m in module.named_modules()
        if isinstance(m, nn.RNNBase) and not isinstance(m, nn.ModuleList)
    )
    if any(m.bidirectional for m in module.modules() if isinstance(m, nn.RNNBase)):
        raise ValueError("it reads its text from both ends")
    parameter = next((p for p in _PARAMETERS if p in known), None)
    if parameter is None:
        return Carrier(module, rnns=rnns)
    left = _left(module, tokens)
    carrier = Carrier(module, parameter, left=left, rnns=rnns)
    if carrier._pass(tokens, None)[1].tree["cache"] is not None:
        return carrier
    from transformers import DynamicCache

    return replace(carrier, begin=lambda _batch: DynamicCache(config=module.config))  # type: ignore[arg-type]


def _left(module: nn.Module, tokens: Tensor) -> tuple[tuple[str, str], ...]:
    """Attributes of submodules that hold tensors made by a pass that keeps its state."""

    def held() -> dict[tuple[str, str], Any]:
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
    each = [tensors(carrier._pass(tokens[:, :n], None)[1].tree) for n in (1, 2, 3)]
    batch = len(tokens)
    fixed = {
        path: x
        for path, x in each[0].items()
        if _batched(x) and x.shape[batch_axis(path)] == batch
        if all(path in other and other[path].shape == x.shape for other in each[1:])
    }
    block_of = {
        path: i
        for i, block in enumerate(model.blocks)
        for name, _ in block.named_modules(prefix=f"{model.layout.blocks}.{i}")
        for path in [name]
    }
    slots = tuple(named(fixed, block_of, len(model.blocks), carrier.rnns))
    carrier = replace(carrier, slots=slots)
    possible = couples(carrier.names)
    if not possible:
        return carrier
    if all(isinstance(x, Tensor) for x in carrier._pass(tokens, None)[1].tree["cache"] or [None]):
        carrier = replace(carrier, begin=_nothing_read(model, fixed, possible, slots))
    return replace(carrier, couples=tuple(_borne_out(model, carrier, tokens, possible)))


def _nothing_read(
    model: Model, fixed: dict[Path, Tensor], possible: Sequence[Couple], slots: Sequence[Slot]
) -> Callable[[int], list[Tensor]]:
    """A list of tensors to begin with: the model's own would round its numbers to float32."""
    scales = {slot.path for slot in slots if any(couple.scale == slot.name for couple in possible)}

    def begin(batch: int) -> list[Tensor]:
        return [
            torch.full(
                (batch, *x.shape[1:]),
                -1e30 if path in scales else 0.0,
                device=x.device,
                dtype=torch.promote_types(x.dtype, model.dtype),
            )
            for path, x in fixed.items()
        ]

    return begin


def _borne_out(
    model: Model, carrier: Carrier, tokens: Tensor, possible: Sequence[Couple]
) -> Iterator[Couple]:
    """The couples whose scale may be moved, and their parts with it, without a change to what comes after."""
    carry = carrier._pass(tokens[:1, :3], None)[1]
    state = carrier.state(carry)
    plain = carrier._pass(tokens[:1, 3:4], carry)[0]
    for couple in possible:
        moved = dict(state)
        moved[couple.scale] = state[couple.scale] + 0.5
        for part in couple.parts:
            moved[part] = (
                state[part] * torch.exp(torch.tensor(-0.5, device=plain.device, dtype=torch.float64)).item()
            )
        if model.close(carrier._pass(tokens[:1, 3:4], carrier.with_state(carry, moved))[0], plain):
            positive = next((part for part in couple.parts if bool((state[part] > 0).all())), None)
            yield replace(couple, positive=positive)
