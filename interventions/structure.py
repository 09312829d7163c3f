"""Where a language model keeps its parts, found by watching one tiny forward pass.

No model is known by its name. The blocks are the one list of modules that runs once, layer by layer; a
block's children are told apart by what they are called and what they hold (`MIXERS`, `MLPS`,
`RECURRENT`); and which tensor a sub-layer adds to the residual stream is read off the tensors of the
pass: a norm that takes the sub-layer's very output is part of it, and a sub-layer that adds the
residual itself is entered to find the projection before the sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch import nn

from .observation import Call, Observation, text_config
from .sites import Layout, Side, Site

# What the children of a block are called. Which of its two kinds a mixer is, is settled by what it holds.
MIXERS = {
    "self_attn", "attn", "attention", "self_attention", "multi_head_attention", "rel_attn", "linear_attn",
    "mamba", "mlstm_layer", "temporal_block", "time_mix", "conv", "short_conv", "mixer", "token_mixer",
}  # fmt: skip
MLPS = {
    "mlp", "mlps", "ffn", "ff", "feed_forward", "feedforward", "block_sparse_moe", "moe", "mlp_block",
    "shared_mlp", "channel_mix",
}  # fmt: skip
# A module that holds one of these carries a state from token to token.
RECURRENT = {"A_log", "dt_bias", "time_decay", "rg_lru", "slope_rate", "receptance", "igate_preact"}
CONVOLVING = {
    "conv1d",
    "conv_1d",
    "conv",
}  # so does one with these, but for attention with short convolutions
# A module that holds one of these attends from token to token.
ATTENDING = {
    "q_proj", "qkv_proj", "query_key_value", "c_attn", "qkv", "query", "Wqkv", "q", "Wq", "q_attn",
    "q_a_proj", "self", "attention", "to_q",
}  # fmt: skip
# Sub-layers that have no module of their own: the first and the last of their projections.
PAIRS = (("fc1", "fc2"), ("intermediate", "output"), ("linear1", "linear2"))


def discover(module: nn.Module, seen: Observation) -> Layout:
    """The layout of a language model. Raises ValueError where a part that must be there is not found."""
    embed, blocks = _embedding(module, seen), _blocks(module, seen)
    if embed is None:
        raise ValueError("no token embedding was found")
    if blocks is None:
        raise ValueError("no list of layers was found that run once each, one after the other")
    path, layers = blocks
    entry = seen.once(module.get_submodule(embed))
    parts = [_parts(layer, seen, entry.width if entry else 0) for layer in layers]
    norm = head = None
    if last := last_call(layers, seen):
        after = [
            (name, c) for name, m in module.named_modules() if (c := seen.once(m)) and c.entered > last.left
        ]
        leaves = [(name, c) for name, c in after if all(p.ndim < 2 for p in c.module.parameters())]
        norm = next((name for name, c in leaves if c.takes(last) and c.width == last.width), None)
    if callable(find := getattr(module, "get_output_embeddings", None)):
        head = _name(module, find())
    same = all(p == parts[0] for p in parts)
    return Layout(path, embed, norm, head, parts[0] if same else tuple(parts))


def last_call(blocks: Iterable[nn.Module], seen: Observation) -> Call | None:
    """The call of the last block that was called."""
    calls = [call for block in blocks if (call := seen.once(block))]
    return calls[-1] if calls else None


def name_sites(module: nn.Module, layout: Layout, seen: Observation) -> dict[str, Site]:
    """Sites in the order in which the forward pass reaches them. Raises ValueError where a path is wrong."""
    found: list[Site | None] = [place(module, _checked(module, layout.embed, "embed"), "out", "embed", seen)]
    blocks = list(module.get_submodule(_checked(module, layout.blocks, "blocks")).children())
    stems = {(stem, path) for i in range(len(blocks)) for stem, path in layout.parts_of(i).items()}
    for stem, path in sorted(stems):
        if not any(path in dict(block.named_modules()) for block in blocks):
            children = ", ".join(dict.fromkeys(name for b in blocks for name, _ in b.named_children()))
            raise ValueError(
                f"The layout says {stem}={path!r}, but no block has that; blocks have {children}."
            )
    for i in range(len(blocks)):
        block = f"{layout.blocks}.{i}"
        for stem, path in layout.parts_of(i).items():
            side: Side = "in" if stem.endswith("_in") else "out"
            found.append(place(module, f"{block}.{path}".rstrip("."), side, f"{stem}.{i}", seen))
        if "" not in layout.parts_of(i).values():
            found.append(place(module, block, "out", f"resid.{i}", seen))
    return {site.name: site for site in sorted(site for site in found if site is not None)}


def heads(module: nn.Module, layout: Layout, seen: Observation) -> dict[str, Site]:
    """What enters the output projection of each attention: the concatenated heads, `heads.N`.

    The projection is the module with a weight matrix that makes what the attention hands on.
    """
    found = {}
    for i in range(len(list(module.get_submodule(layout.blocks).children()))):
        path = f"{layout.blocks}.{i}.{layout.parts_of(i).get('attn_in', '')}"
        call = None if path.endswith(".") else seen.once(module.get_submodule(path))
        if call is None:
            continue
        last = _before_residual(call.module, call, seen) or call
        for made in seen.inside(call.module, call):
            if made.same(last) and any(p.ndim == 2 for p in made.module.parameters(recurse=False)):
                site = place(module, str(_name(module, made.module)), "in", f"heads.{i}", seen)
                found |= {} if site is None else {site.name: site}
                break
    return found


def place(module: nn.Module, path: str, side: Side, name: str, seen: Observation) -> Site | None:
    """The site at a module, or None where no tensor (batch pos width) passes there exactly once."""
    try:
        call = seen.once(module.get_submodule(path))
    except AttributeError:
        return None
    if call is None or not call.ndim(side):
        return None
    if side == "out":
        return Site(call.left, name, path, side, call.width)
    return Site(call.entered, name, path, side, call.input_width)


def _checked(module: nn.Module, path: str, role: str) -> str:
    if path not in dict(module.named_modules()):
        raise ValueError(f"The layout says {role}={path!r}, but the model has no module of that name.")
    return path


def _name(module: nn.Module, wanted: object) -> str | None:
    return next((name for name, m in module.named_modules() if m is wanted), None)


def _embedding(module: nn.Module, seen: Observation) -> str | None:
    if callable(find := getattr(module, "get_input_embeddings", None)) and (name := _name(module, find())):
        return name
    calls = [(c.entered, name) for name, m in module.named_modules()
             if isinstance(m, nn.Embedding) and (c := seen.once(m)) and c.ndim("out")]  # fmt: skip
    return min(calls)[1] if calls else None


def _blocks(module: nn.Module, seen: Observation) -> tuple[str, nn.ModuleList] | None:
    """The list of layers: each runs at most once, and takes what the one before returned."""
    layers = getattr(text_config(module), "num_hidden_layers", None)
    ranked = []
    for name, found in module.named_modules():
        if not isinstance(found, nn.ModuleList) or any(len(seen.calls.get(id(m), ())) > 1 for m in found):
            continue
        calls = [
            call for m in found if (call := seen.once(m))
        ]  # cross-attention layers may have been left out
        chained = any(after.takes(before) for before, after in pairwise(calls))
        streams = len(found) == layers and not any(
            call.ndim("out") for call in calls
        )  # several, in one tensor
        if chained or (calls and (streams or len(found) == 1)):
            ranked.append(((chained, len(found) == layers, _size(found)), (name, found)))
    return max(ranked, key=lambda item: item[0])[1] if ranked else None


def _parts(block: nn.Module, seen: Observation, width: int) -> dict[str, str]:
    """Stems of sites' names, to paths inside the block."""
    whole = seen.once(block)
    if whole is None:
        return {}
    widths = {whole.width, width} - {0}

    def writes(m: nn.Module) -> bool:
        call = seen.once(m)
        return call is not None and call.width in widths

    ends: dict[str, tuple[str, str]] = {}  # role -> the first and the last module of the sub-layer
    count: Counter[str] = Counter()
    queue = [("", block)]
    while queue:
        prefix, holder = queue.pop(0)
        children = dict(holder.named_children())
        for name, child in children.items():
            path = f"{prefix}{name}"
            called = prefix.split(".")[-2] if isinstance(holder, nn.ModuleList) else name
            role = _role(called, child)
            if role and writes(child):
                count[role] += 1
                stem = role if count[role] == 1 else name if called == name else f"{role}{count[role]}"
                ends.setdefault(stem, (path, path))
            elif not isinstance(child, nn.ModuleList) or _role(name, child):
                queue.append((f"{path}.", child))
        for first, last in PAIRS:
            if "mlp" not in ends and first in children and last in children and writes(children[last]):
                ends["mlp"] = (f"{prefix}{first}", f"{prefix}{last}")
    bodies = [block.get_submodule(path) for pair in ends.values() for path in pair]
    stems: dict[str, str] = {}
    for role, (first, last) in ends.items():
        path = _writer(block, last, bodies, seen)
        if path is None:
            continue
        entry = seen.once(block.get_submodule(first))
        if entry and entry.ndim("in"):
            stems[f"{role}_in"] = first
        stems[role] = path
    return stems


def _role(name: str, module: nn.Module) -> str | None:
    if name in MLPS:
        return "mlp"
    if name not in MIXERS:
        return None
    held = set(_held(module))
    if held & RECURRENT:
        return "mixer"
    if held & ATTENDING:
        return "attn"
    if held & CONVOLVING or name in CONVOLVING:
        return "mixer"
    return "attn" if "att" in name else "mlp"


def _held(module: nn.Module) -> Iterator[str]:
    for holder in (module, *module.children()):
        yield from (name for name, _ in holder.named_children())
        yield from (name for name, _ in holder.named_parameters(recurse=False))
        yield from (name for name, _ in holder.named_buffers(recurse=False))


def _writer(block: nn.Module, path: str, bodies: list[nn.Module], seen: Observation) -> str | None:
    """The path of the module whose output a sub-layer adds to the residual stream.

    None where it is not added there but handed on to another sub-layer.
    """
    module = block.get_submodule(path)
    call, whole = seen.once(module), seen.once(block)
    assert call is not None and whole is not None
    names = {id(m): name for name, m in block.named_modules()}
    if inner := _before_residual(module, call, seen):
        return names[id(inner.module)]
    for other in seen.inside(block, whole):  # norms and the like between the sub-layer and the stream
        if other.entered < call.left or not other.takes(call):
            continue
        if any(body in bodies for body in other.module.modules()):
            return None
        alone = len(other.inputs) == 1 and seen.once(other.module)
        if alone and other.width == call.width and not other.same(call):
            call = other
    return names[id(call.module)]


def _before_residual(module: nn.Module, call: Call, seen: Observation) -> Call | None:
    """The call inside a sub-layer whose output, plus a tensor that entered the sub-layer, leaves it."""
    inner = [c for c in seen.inside(module, call) if c.output is not None]
    sums = [call.output]
    sums += [x for c in inner if call.same(c) for x, _ in c.inputs]  # a norm after the sum
    for total in sums:
        for entered, version in call.inputs:
            if total is None or total.shape != entered.shape or entered._version != version:
                continue
            for c in reversed(inner):
                w = c.output
                if (
                    w is not None
                    and w.shape == total.shape
                    and w.data_ptr() != total.data_ptr()
                    and w.any()
                    and torch.allclose(total, w + entered)
                ):
                    return next(made for made in inner if made.same(c))  # dropouts hand on what they get
    return None


def missing_layout(module: nn.Module, seen: Observation, why: str) -> str:
    """What to say where no layout was found: the layout to pass, with what was found filled in."""
    lists = [(name, list(m.children())) for name, m in module.named_modules()
             if isinstance(m, nn.ModuleList | nn.Sequential) and len(m)]  # fmt: skip
    name, blocks = max(lists, key=lambda item: _size(item[1]), default=("...", []))
    inner = (
        max(blocks[0].named_children(), key=lambda child: _size([child[1]]), default=None) if blocks else None
    )
    part = repr({"mlp": inner[0]}) if inner else "{}"
    return (
        f"{type(module).__name__}: {why}. Pass layout=Layout(blocks={name!r}, "
        f"embed={_embedding(module, seen) or '...'!r}, parts={part}), or the paths that are right; "
        "docs/new-model.md says how."
    )


def _size(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())
