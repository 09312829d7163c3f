"""Where a language model keeps its parts, found by watching one tiny forward pass.

No model is known by its name. The blocks are the one list of modules that runs once, layer by layer; a
block's children are told apart by what they are called and what they hold (`ROLES`, `RECURRENT`); and
which tensor a sub-layer adds to the residual stream is read off the tensors of the pass: a norm that
takes the sub-layer's very output is part of it, and a sub-layer that adds the residual itself is
entered to find the projection before the sum.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .sites import Layout, Side, Site
from .tensors import hidden, hidden_inputs

# What children of a block are called. "?" is settled by what the module holds.
ROLES: Mapping[str, str] = {
    **dict.fromkeys(
        ["self_attn", "attn", "attention", "self_attention", "multi_head_attention", "rel_attn", "norm_attn_norm",
         "linear_attn", "mamba", "mlstm_layer", "temporal_block", "time_mix", "conv", "short_conv",
         "mixer", "token_mixer"],
        "?",
    ),
    **dict.fromkeys(
        ["mlp", "ffn", "ff", "feed_forward", "feedforward", "block_sparse_moe", "moe", "mlp_block",
         "channel_mix"],
        "mlp",
    ),
}  # fmt: skip

# A module that holds one of these carries a state from token to token.
RECURRENT = {
    "conv1d", "conv_1d", "q_conv1d", "A_log", "dt_bias", "time_decay", "rg_lru", "slope_rate", "receptance",
    "igate_preact", "conv",
}  # fmt: skip
ATTENDS = {
    "q_proj", "qkv_proj", "query_key_value", "c_attn", "qkv", "query", "Wqkv", "q", "Wq", "q_attn", "self",
    "attention", "qkv_layer", "q_a_proj", "to_q",
}  # fmt: skip
# Sub-layers that have no module of their own: the first and the last of their projections.
PAIRS = (("fc1", "fc2"), ("intermediate", "output"), ("linear1", "linear2"))


@dataclass(eq=False)
class Call:
    """One call of one module in the observed pass."""

    module: nn.Module
    entered: int
    inputs: list[tuple[Tensor, int]]  # tensors of shape (batch, pos, any), and their version
    left: int = -1
    output: Tensor | None = None
    version: int = 0
    raw: Any = None

    def takes(self, other: Call) -> bool:
        """Whether this call was handed the very tensor that the other one returned."""
        if other.output is None:
            return False
        made = (other.output.data_ptr(), other.output.numel(), other.version)
        return any((x.data_ptr(), x.numel(), version) == made for x, version in self.inputs)


@dataclass(eq=False)
class Observation:
    """Which modules one forward pass called, when, and with what."""

    shape: tuple[int, int]
    calls: dict[int, list[Call]] = field(default_factory=lambda: defaultdict(list))

    def once(self, module: nn.Module) -> Call | None:
        """The call of a module that was called exactly once."""
        calls = self.calls.get(id(module), ())
        return calls[0] if len(calls) == 1 else None

    def inside(self, module: nn.Module, call: Call) -> list[Call]:
        """Calls that other modules inside `module` got while `call` lasted, in the order they ended."""
        found = [
            c
            for m in module.modules()
            if m is not module
            for c in self.calls.get(id(m), ())
            if call.entered < c.entered and c.left < call.left
        ]
        return sorted(found, key=lambda c: c.left)


@torch.no_grad()
def observe(module: nn.Module, tokens: Tensor) -> Observation:
    """Runs one forward pass over `tokens` (batch pos) and watches every module."""
    seen = Observation((tokens.shape[0], tokens.shape[1]))
    moment, open_calls, handles = 0, [], []

    def enter(m: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal moment
        moment += 1
        inputs = [(x, x._version) for x in hidden_inputs(args, kwargs) if x.shape[:2] == seen.shape]
        open_calls.append(Call(m, moment, inputs))

    def leave(m: nn.Module, _args: Any, out: Any) -> None:
        nonlocal moment
        moment += 1
        while (call := open_calls.pop()).module is not m:
            pass
        call.left, call.raw = moment, out
        x = hidden(out)
        if x is not None and x.shape[:2] == seen.shape:
            call.output, call.version = x, x._version
        seen.calls[id(m)].append(call)

    try:
        for m in module.modules():
            handles.append(m.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(m.register_forward_hook(leave))
        module(tokens, **arguments(module))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def arguments(module: nn.Module) -> dict[str, Any]:
    """What every pass is told: to keep no cache, where the model knows the word."""
    return {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}


def discover(module: nn.Module, seen: Observation) -> Layout:
    """The layout of a language model. Raises ValueError where none is found."""
    embed = _embedding(module, seen)
    blocks = _blocks(module, seen)
    if embed is None or blocks is None:
        raise ValueError("no list of layers" if blocks is None else "no token embedding")
    path, layers = blocks
    parts = [_parts(layer, seen) for layer in layers]
    last = seen.once(layers[-1])
    norm = head = None
    if last is not None and last.output is not None:
        for name, m in module.named_modules():
            call = seen.once(m)
            if call and call.entered > last.left and call.takes(last) and call.output is not None:
                norm = name
    if callable(find := getattr(module, "get_output_embeddings", None)):
        found = find()
        head = next((name for name, m in module.named_modules() if m is found), None)
    same = all(p == parts[0] for p in parts)
    return Layout(path, embed, norm, head, parts[0] if same else tuple(parts))


def name_sites(module: nn.Module, layout: Layout, seen: Observation) -> dict[str, Site]:
    """Sites in the order in which the forward pass reaches them."""
    found: list[Site] = []

    def add(name: str, path: str, side: Side) -> None:
        site = place(module, path, side, name, seen)
        if site is not None:
            found.append(site)

    add("embed", layout.embed, "out")
    for i in range(len(_submodule(module, layout.blocks, "blocks"))):  # type: ignore[arg-type]
        block = f"{layout.blocks}.{i}"
        for stem, path in layout.parts_of(i).items():
            add(f"{stem}.{i}", f"{block}.{path}", "in" if stem.endswith("_in") else "out")
        add(f"resid.{i}", block, "out")
    return {site.name: site for site in sorted(found)}


def place(module: nn.Module, path: str, side: Side, name: str, seen: Observation) -> Site | None:
    """The site at a module, or None where no tensor (batch pos width) passes there exactly once."""
    try:
        call = seen.once(module.get_submodule(path))
    except AttributeError:
        return None
    if call is None:
        return None
    if side == "out":
        return call.output is not None and Site(call.left, name, path, side, call.output.shape[-1]) or None
    return Site(call.entered, name, path, side, call.inputs[0][0].shape[-1]) if call.inputs else None


def _submodule(module: nn.Module, path: str, role: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise ValueError(
            f"The layout says {role}={path!r}, but the model has no module of that name."
        ) from None


def _embedding(module: nn.Module, seen: Observation) -> str | None:
    if callable(find := getattr(module, "get_input_embeddings", None)):
        wanted = find()
        return next((name for name, m in module.named_modules() if m is wanted), None)
    first = [(seen.calls[id(m)][0].entered, name) for name, m in module.named_modules()
             if isinstance(m, nn.Embedding) and seen.once(m)]  # fmt: skip
    return min(first)[1] if first else None


def _blocks(module: nn.Module, seen: Observation) -> tuple[str, nn.ModuleList] | None:
    config = getattr(module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = getattr(text, "num_hidden_layers", None)

    def rank(item: tuple[str, nn.ModuleList]) -> tuple[bool, int, int]:
        name, found = item
        return len(found) == layers, sum(p.numel() for p in found.parameters()), -len(name)

    lists = [
        (name, m)
        for name, m in module.named_modules()
        if isinstance(m, nn.ModuleList)
        and len(m)
        and all((c := seen.once(b)) and c.output is not None for b in m)
    ]
    return max(lists, key=rank, default=None)


def _role(name: str, module: nn.Module) -> str | None:
    role = ROLES.get(name)
    if role != "?":
        return role
    held = set(_held(module))
    if held & RECURRENT or name == "conv":
        return "mixer"
    return "attn" if held & ATTENDS or "att" in name else "mlp"


def _held(module: nn.Module) -> Iterator[str]:
    for holder in (module, *module.children()):
        for name, _ in (*holder.named_children(), *holder.named_parameters(recurse=False),
                        *holder.named_buffers(recurse=False)):  # fmt: skip
            yield name


def _parts(block: nn.Module, seen: Observation) -> dict[str, str]:
    """Stem of each site's name to a path inside the block."""
    whole = seen.once(block)
    assert whole is not None and whole.output is not None
    width = whole.output.shape[-1]

    def writes(m: nn.Module) -> bool:
        call = seen.once(m)
        return call is not None and call.output is not None and call.output.shape[-1] == width

    found: dict[str, tuple[str, str]] = {}  # role -> first and last module
    used: Counter[str] = Counter()
    queue = [("", block)]
    while queue:
        prefix, holder = queue.pop(0)
        children = dict(holder.named_children())
        for name, child in children.items():
            path = f"{prefix}{name}"
            role = _role(name, child)
            if role and writes(child):
                used[role] += 1
                found.setdefault(role if used[role] == 1 else name, (path, path))
            elif seen.once(child) and not isinstance(child, nn.ModuleList):
                queue.append((f"{path}.", child))
        if "mlp" not in found:
            for first, last in PAIRS:
                if first in children and last in children and writes(children[last]):
                    found["mlp"] = (f"{prefix}{first}", f"{prefix}{last}")
    stems: dict[str, str] = {}
    for role, (first, last) in found.items():
        entry = seen.once(block.get_submodule(first))
        if entry and entry.inputs:
            stems[f"{role}_in"] = first
        stems[role] = _writer(block, last, seen)
    return stems


def _writer(block: nn.Module, path: str, seen: Observation) -> str:
    """The path of the module whose output a sub-layer adds to the residual stream."""
    module = block.get_submodule(path)
    call, whole = seen.once(module), seen.once(block)
    assert call is not None and whole is not None
    names = {id(m): name for name, m in block.named_modules()}
    if inner := _before_residual(module, call, seen):
        return names[id(inner.module)]
    for other in seen.inside(block, whole):  # norms and the like between the sub-layer and the stream
        if (
            other.entered > call.left
            and other.takes(call)
            and not call.takes(call)
            and other.output is not None
            and other.output.shape == (call.output.shape if call.output is not None else None)
            and not isinstance(other.module, nn.Dropout)
            and seen.once(other.module)
        ):
            call = other
    return names[id(call.module)]


def _before_residual(module: nn.Module, call: Call, seen: Observation) -> Call | None:
    """The call inside a sub-layer whose output, plus a tensor that entered the sub-layer, leaves it."""
    inner = [c for c in seen.inside(module, call) if c.output is not None]
    sums = [call.output]
    sums += [x for c in inner if call.output is c.output for x, _ in c.inputs]  # a norm after the sum
    for total in sums:
        for entered, version in call.inputs:
            if total is None or total.shape != entered.shape or entered._version != version:
                continue
            for c in reversed(inner):
                if (
                    c.output is not None
                    and c.output.shape == total.shape
                    and c.output.data_ptr() != total.data_ptr()
                    and c.output.abs().max() > 0
                    and torch.allclose(total, c.output + entered)
                ):
                    return c
    return None
