"""Which tokens features speak for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...model import Model
from ..coders import SparseCoder
from .text import pieces

_CHUNK = 2**25  # logits held at a time


@dataclass(frozen=True)
class Promoted:
    """The tokens whose logits a feature raises most, and lowers most, by how much for one unit of it.

    Logits are taken about their mean over the vocabulary, which changes no probability.
    """

    feature: int
    raised: tuple[tuple[str, float], ...]
    lowered: tuple[tuple[str, float], ...]
    raised_ids: tuple[int, ...] = field(repr=False)
    lowered_ids: tuple[int, ...] = field(repr=False)


@torch.no_grad()
def promoted(
    model: Model,
    dictionary: SparseCoder,
    features: Sequence[int] | Int[Tensor, " n"],
    *,
    k: int = 10,
    at: Float[Tensor, "*batch d_model"] | None = None,
) -> list[Promoted]:
    """The direct effect of features on the logits.

    Without `at`, the unembedding times the decoder row: a direction, whose size the final norm would change.
    With it, what one unit of the feature adds to the logits to first order where the last block wrote `at`,
    through the final norm, its gain, and the soft cap; the mean over several such states.

    Raises:
        ValueError: a dictionary that does not write to the residual stream, or, without `at`, a model in
            which no unembedding matrix is found.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = Model.load(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)))
    >>> found = promoted(model, SparseCoder.random(32, 64), [3], k=2)[0]
    >>> found.feature, len(found.raised), found.raised[0][1] > 0 > found.lowered[0][1]
    (3, 2, True)
    """
    index = torch.as_tensor(features, dtype=torch.long)
    if dictionary.d_out != model.width:
        raise ValueError(
            f"This dictionary writes width {dictionary.d_out}, and the residual stream has {model.width}: "
            "its features do not add to what is unembedded."
        )
    rows = dictionary.decoder_rows(index.to(model.device)).to(model.dtype)
    effect = effects(model, rows, at=at)
    k = min(k, effect.shape[-1])
    found = []
    for feature, row in zip(index.tolist(), effect, strict=True):
        (up, raised), (down, lowered) = ((v.tolist(), i.tolist()) for v, i in (row.topk(k), (-row).topk(k)))
        found.append(
            Promoted(
                feature,
                tuple(zip((_word(model, i) for i in raised), up, strict=True)),
                tuple(zip((_word(model, i) for i in lowered), (-value for value in down), strict=True)),
                tuple(raised),
                tuple(lowered),
            )
        )
    return found


def effects(
    model: Model, rows: Float[Tensor, "row d_model"], *, at: Float[Tensor, "*batch d_model"] | None = None
) -> Float[Tensor, "row vocab"]:
    """The change of the logits about their mean for each row added to the stream; see `promoted`."""
    if at is None:
        matrix = _matrix(model)
        parts = rows.split(max(1, _CHUNK // len(matrix)))
        found = torch.cat([(part.to(matrix) @ matrix.T).to(rows.device) for part in parts])
        return found - found.mean(-1, keepdim=True)
    states = at.detach().reshape(-1, at.shape[-1]).to(rows)
    total: Tensor | None = None
    for state in states:
        found = torch.stack([_slope(model, state, row) for row in rows])
        total = found if total is None else total + found
    if total is None:
        raise ValueError("There is no state in `at`.")
    found = total / len(states)
    return found - found.mean(-1, keepdim=True)


def _word(model: Model, token: int) -> str:
    return pieces(model.tokenizer, [token])[0]


def _slope(model: Model, state: Float[Tensor, " d_model"], row: Float[Tensor, " d_model"]) -> Tensor:
    """The derivative of the logits along a row; by two passes back, which every module can do."""
    with torch.enable_grad():
        state = state.detach().requires_grad_()
        logits = model.unembed(state)
        weights = torch.zeros_like(logits, requires_grad=True)
        (back,) = torch.autograd.grad(logits, state, weights, create_graph=True)
        return torch.autograd.grad(back, weights, row)[0].detach()


def _matrix(model: Model) -> Float[Tensor, "vocab d_model"]:
    head = model.layout.head
    weight = None if head is None else getattr(model.module.get_submodule(head), "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[-1] != model.width:
        raise ValueError(
            f"No unembedding matrix of width {model.width} is found in {type(model.module).__name__}; pass "
            "`at`, states that the last block wrote, such as model.read(tokens, [...])[...].mean((0, 1))."
        )
    return weight.detach()
