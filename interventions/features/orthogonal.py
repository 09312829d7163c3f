"""A model that cannot write along some directions: they are taken out of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..model import Model
from ..observation import sample
from ..permanent import _copied, _hooks, _is_visit
from ..sites import Site

Axis = int
_ROWS = 4096  # are made float64 at a time


@dataclass(frozen=True)
class _Parameter:
    """A parameter, by its module and its name there, and the axis along which it writes."""

    holder: str
    name: str
    axis: Axis

    @property
    def pattern(self) -> tuple[str, int]:
        """The same in every layer."""
        return re.sub(r"\d+", "#", f"{self.holder}.{self.name}"), self.axis


def orthogonalised(model: Model, directions: Tensor | Mapping[str, Tensor] | Mapping[Site, Tensor]) -> Model:
    """A copy of `model` whose residual stream has no component along the directions.

    They are a vector (d_model), several (k d_model), or a `Direction` with one site, and are projected out
    of every matrix and bias that writes to the stream: embeddings, of positions too, and what attention
    and MLPs end with (Arditi et al. 2024, arXiv 2406.11717). That is what `Project` does at all these places,
    without hooks. Which parameters write is tried out: changing one along a vector changes the stream
    along that vector only. The copy shares its other weights with `model`, and unties an embedding from its
    head.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    >>> model, v = Model.load(GPT2LMHeadModel(config)), torch.randn(32)
    >>> copy = orthogonalised(model, v)
    >>> acts = copy.read(torch.tensor([[3, 1, 4]]), ["resid.1"])[copy.site("resid.1")]
    >>> bool((acts @ v).abs().max() < 1e-4)
    True

    Raises:
        ValueError: vectors that do not fit, or are of another model; a model in which something stands
            between matrices and stream, such as norms after attention and MLP (Gemma 2, OLMo 2), a norm
            after the embedding (BLOOM) or gates (RWKV).
    """
    basis = _basis(model, directions)
    if any(_is_visit(hook) for module in model.module.modules() for hook in _hooks(module)):
        raise ValueError("The model is being visited or changed: call this outside of `applied`.")
    copy = Model.load(_copied(model.module), tokenizer=model.tokenizer, layout=model.layout)
    for parameter in writers(copy):
        holder: Any = copy.module.get_submodule(parameter.holder)
        old = getattr(holder, parameter.name)
        setattr(holder, parameter.name, _frozen(_without(old, parameter.axis, basis)))
    if _tied(model.module) and not _tied(copy.module):
        config: Any = copy.module.config  # else it would be tied again on loading
        config.tie_word_embeddings = False
    _verify(model, copy, basis)
    return Model.load(copy.module, tokenizer=model.tokenizer, layout=model.layout)


def writers(model: Model) -> tuple[_Parameter, ...]:
    """The parameters that write to the residual stream: their module, name, and the axis of d_model.

    `model` is as before when this is done.
    """
    found: dict[_Parameter, None] = {}
    known: dict[tuple[str, int], bool | None] = {}
    places = list(_places(model))
    for site, candidates in places:
        untried = [p for p in candidates if known.get(p.pattern) is None]
        before = _reached(model, site) if untried else None
        for parameter in untried:
            if before is not None and known.get(parameter.pattern) is None:
                known[parameter.pattern] = _writes(model, parameter, site, before)
    # Experts that no sample token was sent to are as those that some were.
    for _, candidates in places:
        found |= {parameter: None for parameter in candidates if known[parameter.pattern]}
    return tuple(found)


def _places(model: Model) -> Iterator[tuple[Site, list[_Parameter]]]:
    """Where something is written to the stream, and the parameters that may have done it."""
    blocks = f"{model.layout.blocks}."
    first = model.at(f"{blocks}0", "in", "orthogonal.entry")
    own = set(dict(model.module.named_modules())) - {""}
    yield first, list(_candidates(model, sorted(n for n in own if not n.startswith(blocks))))
    for site in model.sites.values():
        if site.side == "out" and site.path.startswith(blocks) and not _whole(model, site):
            inside = sorted(n for n in own if n == site.path or n.startswith(f"{site.path}."))
            yield site, list(_candidates(model, inside))


def _whole(model: Model, site: Site) -> bool:
    """Whether a site is what a whole block returns, which is the stream itself."""
    return site.name.startswith("resid.")


def _candidates(model: Model, modules: list[str]) -> Iterator[_Parameter]:
    for name in modules:
        for key, parameter in model.module.get_submodule(name).named_parameters(recurse=False):
            if not parameter.is_floating_point():
                continue
            for axis, size in enumerate(parameter.shape):
                if size == model.width:
                    yield _Parameter(name, key, axis - parameter.ndim)


@torch.no_grad()
def _writes(model: Model, parameter: _Parameter, site: Site, before: Tensor) -> bool | None:
    """Whether a change of a parameter along a vector is a change of the site along that vector; None where
    it changes nothing there."""
    holder: Any = model.module.get_submodule(parameter.holder)
    old = getattr(holder, parameter.name)
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(model.width, generator=generator).to(old.device)
    along /= along.norm()
    shape = list(old.shape)
    shape[parameter.axis] = 1
    amount = torch.randn(shape, generator=generator).to(old.device)
    amount *= (old.float().norm() / amount.norm()).clamp(min=1e-3)
    direction = along.view([-1] + [1] * (-parameter.axis - 1))
    try:
        setattr(holder, parameter.name, _frozen((old.float() + amount * direction).to(old.dtype)))
        change = _reached(model, site) - before
    finally:
        setattr(holder, parameter.name, old)
    if not change.any():
        return None
    vector = along.to(change)
    beside = change - (change @ vector)[..., None] * vector
    return bool(beside.norm() < 0.1 * change.norm())


class _Reached(Exception):
    """The pass has reached what was to be seen."""


@torch.no_grad()
def _reached(model: Model, site: Site) -> Tensor:
    """What a few tokens have at a site (batch pos d_model), in float64; the pass ends there."""
    found: list[Tensor] = []

    def visit(_site: Site, x: Tensor) -> Tensor:
        found.append(x.double())
        raise _Reached

    try:
        with model.visiting([site], visit):
            model.logits(sample(model.module, 2, 5))
    except _Reached:
        pass
    return found[0]


def _without(parameter: Tensor, axis: Axis, basis: Float[Tensor, "k d_model"]) -> Tensor:
    """A parameter with no component along the basis."""
    rows = parameter.detach().movedim(axis, -1)
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    q = basis.to(rows.device)
    flat = rows.reshape(-1, rows.shape[-1])
    for part, to in zip(flat.split(_ROWS), out.view(flat.shape).split(_ROWS), strict=True):
        exact = part.double()
        to.copy_(exact - exact @ q.T @ q)
    return out.movedim(-1, axis).contiguous()


def _frozen(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter, requires_grad=False)


def _basis(model: Model, directions: Any) -> Float[Tensor, "k d_model"]:
    """Orthonormal rows that span the directions, in float64."""
    made_with = getattr(directions, "fingerprint", None)
    if made_with not in (None, model.fingerprint):
        raise ValueError(
            f"The direction was found in another model (fingerprint {made_with[:8]}) than this one "
            f"({model.fingerprint[:8]})."
        )
    if isinstance(directions, Mapping):
        if len(directions) != 1:
            raise ValueError(
                f"Directions at {len(directions)} sites: weights can be rid of one; pass direction[site], or "
                "several vectors (k d_model) to be rid of all of them everywhere."
            )
        (directions,) = directions.values()
    rows = torch.atleast_2d(directions.detach().to("cpu", torch.float64))
    if rows.ndim != 2 or rows.shape[-1] != model.width:
        raise ValueError(
            f"Directions of shape {tuple(directions.shape)} do not fit a residual stream of width "
            f"{model.width}."
        )
    if not rows.isfinite().all() or torch.linalg.matrix_rank(rows) < len(rows):
        raise ValueError("The directions must be finite, not zero, and none of them made up by the others.")
    return torch.linalg.qr(rows.T).Q.T


def _tied(module: Any) -> bool:
    """Whether the config says that the head's weight is the embedding's, and it is."""
    config = getattr(module, "config", None)
    if not getattr(config, "tie_word_embeddings", False) or not hasattr(module, "get_output_embeddings"):
        return False
    ends = [module.get_input_embeddings(), module.get_output_embeddings()]
    weights = [getattr(end, "weight", None) for end in ends]
    return weights[0] is not None and weights[0] is weights[1]


@torch.no_grad()
def _verify(model: Model, copy: Model, basis: Tensor) -> None:
    """Raises ValueError where something still writes along the directions."""
    tokens = sample(model.module, 2, 5)
    places = [copy.at(f"{model.layout.blocks}.0", "in", "orthogonal.entry")]
    places += [s for s in copy.sites.values() if s.side == "out" and s.path.startswith(model.layout.blocks)]
    found = copy.read(tokens, [place for place in places if place.width == model.width])
    tolerance = max(torch.finfo(copy.dtype).eps ** 0.5, 1e-4)
    for site, x in sorted(found.items()):
        along = (x.double().cpu() @ basis.T).abs().max()
        if along > tolerance * x.double().norm(dim=-1).max():
            name = type(model.module.get_submodule(site.path)).__name__
            where = "What enters the first layer" if site is places[0] else f"{site} ({name})"
            raise ValueError(
                f"{where} cannot be rid of a direction by changing matrices: a norm, a gate or the like "
                "stands between them and the residual stream. "
                "applied(model, Project({site: direction, ...})) takes it out there."
            )
