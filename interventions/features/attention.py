"""Where the heads of a model attend."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..model import Model
from ..observation import arguments
from ..tensors import map_tensors


@torch.no_grad()
def attentions(
    model: Model, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"] | None = None
) -> dict[int, Float[Tensor, "batch head query key"]]:
    """The attention probabilities of each layer that attends, under the interventions that are open.

    `mask` is 1 at tokens and 0 at padding, on the right; rows of queries at padding mean nothing. For the
    time of the pass the model computes attention eagerly, as only so its probabilities are ever made.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    >>> found = attentions(Model.load(GPT2LMHeadModel(config)), torch.tensor([[3, 1, 4]]))
    >>> list(found), found[1].shape, bool((found[1].sum(-1) - 1).abs().max() < 1e-5)
    ([0, 1], torch.Size([1, 4, 3, 3]), True)

    Raises:
        ValueError: a model that does not attend, such as Mamba, or does not give its attention.
    """
    if mask is not None and not mask.all() and not model.pads:
        raise ValueError(
            f"mask: what {type(model.module).__name__} computes at its tokens changes with padding; batch "
            "texts of equal length."
        )
    told: dict[str, Any] = {"return_dict": True}
    if mask is not None and not mask.all():
        told["attention_mask"] = mask.to(model.device).long()
    told = arguments(model.module, **told)
    if not _takes(model.module, "output_attentions"):
        raise ValueError(_none(model))
    told["output_attentions"] = True
    made: dict[int, int] = {}  # where in memory a tensor is, to the layer that returned it
    with _eagerly(model.module), _noting(model, made):
        out = model.module(tokens.to(model.device), **told)
        given = getattr(out, "attentions", None) or ()
    n = tokens.shape[1]
    square = [x for x in given if isinstance(x, Tensor) and x.ndim == 4 and x.shape[-2:] == (n, n)]
    found = {made[x.data_ptr()]: x for x in square if x.data_ptr() in made}
    if not found or len(found) < len(square):
        raise ValueError(_none(model))
    return dict(sorted(found.items()))


def _none(model: Model) -> str:
    return (
        f"{type(model.module).__name__} gives no attention probabilities: there are some only of models of "
        "transformers in which tokens attend to tokens."
    )


def _takes(module: nn.Module, name: str) -> bool:
    """Whether a pass may be told this, by name or among whatever else it takes."""
    known = inspect.signature(module.forward).parameters
    return name in known or any(p.kind is p.VAR_KEYWORD for p in known.values())


@contextmanager
def _eagerly(module: nn.Module) -> Iterator[None]:
    """While open, attention is computed by plain softmax."""
    configs = {id(c): c for m in module.modules() if (c := getattr(m, "config", None)) is not None}
    before = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    try:
        for key, config in configs.items():
            if before[key] is not None:
                config._attn_implementation = "eager"
        yield
    finally:
        for key, config in configs.items():
            if before[key] is not None:
                config._attn_implementation = before[key]


@contextmanager
def _noting(model: Model, made: dict[int, int]) -> Iterator[None]:
    """While open, tensors of four axes are noted by the layer whose modules return them."""
    layer = -1

    def enter(block: nn.Module, _args: Any) -> None:
        nonlocal layer
        layer = places[block]

    def note(_module: nn.Module, _args: Any, out: Any) -> None:
        def seen(x: Tensor) -> Tensor:
            if x.ndim == 4:
                made.setdefault(x.data_ptr(), layer)
            return x

        map_tensors(seen, out if isinstance(out, tuple | list) else ())

    places = {block: i for i, block in enumerate(model.blocks)}
    handles = [block.register_forward_pre_hook(enter) for block in places]
    handles += [m.register_forward_hook(note) for m in dict.fromkeys(m for b in places for m in b.modules())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
