"""What the places in a model are called elsewhere, and what we call them.

Three vocabularies: ours (`mlp.3`), TransformerLens (`blocks.3.hook_mlp_out`), and module paths
(`model.layers.3.mlp`, with `.output` or `.input` where it is said which side). A path may leave out its
beginning, as `layers.3.mlp` does. With a model, paths and residual streams are looked up in a small pass of
it; without one, a name stands for what most models keep there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...model import Model
from ...observation import Call, Observation, observe, sample
from ...sites import Side, Site

OURS = re.compile(r"embed|(?:attn|attn_in|mlp|mlp_in|mixer|mixer_in|resid|heads)\.\d+")
_LENS = {  # hooks of TransformerLens inside block N
    "hook_resid_post": "resid",
    "hook_mlp_out": "mlp",
    "mlp.hook_out": "mlp",
    "mlp.hook_in": "mlp_in",
    "hook_attn_out": "attn",
    "attn.hook_out": "attn",
    "attn.hook_z": "heads",
    "attn.hook_in": "attn_in",
    "ln2.hook_normalized": "mlp_in",
    "ln1.hook_normalized": "attn_in",
}
_GAINLESS = ("ln1.hook_normalized", "ln2.hook_normalized")  # TransformerLens has these before the gain
_BEFORE = {  # hooks of the residual stream inside a block, by the sub-layer whose norm reads it
    "hook_resid_mid": "mlp_in",
    "hook_mlp_in": "mlp_in",
    "hook_attn_in": "attn_in",
}
_PATHS = {  # ends of module paths inside block N
    "": "resid",
    "mlp": "mlp",
    "feed_forward": "mlp",
    "mlp.input": "mlp_in",
    "pre_feedforward_layernorm": "mlp_in",
    "post_feedforward_layernorm": "mlp",
    "attn": "attn",
    "attention": "attn",
    "self_attn": "attn",
    "self_attn.o_proj.input": "heads",
    "attention.dense.input": "heads",
    "attn.c_proj.input": "heads",
}
_EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "hook_embed")


@dataclass(frozen=True)
class Named:
    """A place under our name. `before_gain`: what is read there is the tensor before the norm's gain."""

    site: str
    before_gain: bool = False


def named(hook: str, model: Model | None = None) -> Named:
    """What we call the place that a file calls `hook`.

    Without a model, a hook that no rule knows keeps its own text as its name. Raises LookupError where the
    model has no such place.

    >>> named("blocks.3.hook_mlp_out"), named("model.layers.3.self_attn.o_proj.input")
    (Named(site='mlp.3', before_gain=False), Named(site='heads.3', before_gain=False))
    >>> named("blocks.0.ln2.hook_normalized")
    Named(site='mlp_in.0', before_gain=True)
    """
    if model is None:
        return _by_pattern(hook)
    if hook in model.sites:  # even where a module's path ends like that
        return Named(hook)
    if found := _path(hook, model):
        return Named(_at(model, *found).name)
    if (lens := _lens(hook)) and lens[1] in (*_BEFORE, "hook_resid_pre"):
        return Named(_stream(model, *lens).name)
    guess = _by_pattern(hook)
    return Named(model.site(guess.site).name, guess.before_gain)


def _by_pattern(hook: str) -> Named:
    if OURS.fullmatch(hook):
        return Named(hook)
    if hook.split(".")[-1] in _EMBEDDINGS or hook.removesuffix(".output").split(".")[-1] in _EMBEDDINGS:
        return Named("embed")
    if lens := _lens(hook):
        block, name = lens
        if name == "hook_resid_pre" and block:
            return Named(f"resid.{block - 1}")
        if name in _LENS:
            return Named(f"{_LENS[name]}.{block}", name in _GAINLESS)
        return Named(hook)
    if match := re.fullmatch(r"(?:.*\.)?(?:layers|layer|h|blocks)\.(\d+)((?:\.\w+)*)", hook):
        part = match[2].removesuffix(".output").removeprefix(".")
        if part in _PATHS:
            return Named(f"{_PATHS[part]}.{match[1]}")
    return Named(hook)


def _lens(hook: str) -> tuple[int, str] | None:
    match = re.fullmatch(r"blocks\.(\d+)\.((?:\w+\.)?hook_\w+)", hook)
    return (int(match[1]), match[2]) if match else None


def _path(hook: str, model: Model) -> tuple[str, Side] | None:
    """The module, and its side, that a path names; the path may leave out its beginning."""
    ends: dict[str, Side] = {"": "out", ".output": "out", ".input": "in", ".in": "in", ".out": "out"}
    readings: list[tuple[str, Side]] = [
        (hook.removesuffix(end), side) for end, side in ends.items() if hook.endswith(end)
    ]
    modules = [name for name, _ in model.module.named_modules()]
    for path, side in readings:
        if path in modules:
            return path, side
        longer = [name for name in modules if name.endswith(f".{path}")]
        # a model with vision or a decoder beside has the same path elsewhere: what is meant is in our blocks
        longer = [name for name in longer if name.startswith(f"{model.layout.blocks}.")] or longer
        if len(longer) == 1:
            return longer[0], side
        if longer:
            raise LookupError(f"{hook!r} may be {' or '.join(longer)}; say which by site= or reads=.")
    return None


def _at(model: Model, path: str, side: Side) -> Site:
    """The site at a module: one that has a name already, if the same tensor flows there."""
    return _same(model, model.at(path, side), _seen(model))


def _stream(model: Model, block: int, hook: str) -> Site:
    """Where the residual stream of `hook` flows: what enters a block, or the norm of a sub-layer."""
    seen = _seen(model)
    try:
        entry = model.blocks[block]
    except IndexError:
        raise LookupError(
            f"'blocks.{block}.{hook}': the model has blocks 0 to {len(model.blocks) - 1}."
        ) from None
    if hook != "hook_resid_pre":
        site = model.site(f"{_BEFORE[hook]}.{block}")
        norm = maker(model, site, seen)
        if norm is None:
            raise LookupError(f"'blocks.{block}.{hook}': no norm was found whose output is {site}.")
        entry = norm.module
    path = next(name for name, module in model.module.named_modules() if module is entry)
    return _same(model, model.at(path, "in"), seen)


def maker(model: Model, site: Site, seen: Observation | None = None) -> Call | None:
    """The call of the innermost module whose output is the site's tensor, in a small pass."""
    seen = seen or _seen(model)
    call = seen.once(model.module.get_submodule(site.path))
    if call is None:
        return None
    calls = [c for made in seen.calls.values() for c in made if c.output is not None]
    made = [c for c in calls if (call.takes(c) if site.side == "in" else c.same(call))]
    return max(made, key=lambda c: c.entered, default=None)


def _same(model: Model, site: Site, seen: Observation) -> Site:
    """The site of the model with the tensor of this one; this one, where there is none."""
    mine = _tensor(model, site, seen)
    for other in (*model.sites.values(), *_heads(model, site)):
        if other == site or (mine is not None and mine == _tensor(model, other, seen)):
            return other
    return site


def _heads(model: Model, site: Site) -> list[Site]:
    """The concatenated heads of the site's block, where the model has them."""
    block = model.block_of(site)
    try:
        return [] if block is None else [model.site(f"heads.{block}")]
    except LookupError:
        return []


def _tensor(model: Model, site: Site, seen: Observation) -> tuple[int, int, int] | None:
    call = seen.once(model.module.get_submodule(site.path))
    if call is None or not call.ndim(site.side):
        return None
    if site.side == "out":
        assert call.output is not None
        return call.output.data_ptr(), call.output.numel(), call.version
    x, version = call.inputs[0]
    return x.data_ptr(), x.numel(), version


def _seen(model: Model) -> Observation:
    return observe(model.module, sample(model.module))
