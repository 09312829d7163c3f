"""What a direction says: the features it lies near, the tokens it speaks for, the directions like it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..dictionaries.measures.cosines import cosines, unit
from ..dictionaries.measures.text import pieces
from ..dictionaries.measures.unembedding import effects
from ..model import Model
from .direction import Direction


@dataclass(frozen=True)
class Nearest:
    """Features by the cosine of a direction with what they write, largest first.

    `encoder` are the cosines with what they read; None where the dictionary reads another site.
    """

    features: tuple[int, ...]
    decoder: tuple[float, ...]
    encoder: tuple[float, ...] | None

    def __str__(self) -> str:
        return ", ".join(f"{i} ({c:.2f})" for i, c in zip(self.features, self.decoder, strict=True))


@torch.no_grad()
def nearest(direction: Direction, dictionaries: Mapping[Any, Any], *, n: int = 10) -> dict[str, Nearest]:
    """The `n` features whose decoder rows lie nearest, at each site that has both; `-direction` gives those
    that point the other way.

    >>> from interventions.dictionaries import SparseCoder
    >>> coder = SparseCoder.random(8, 32)
    >>> nearest(Direction({"resid.0": coder.W_dec[5]}), {"resid.0": coder}, n=3)["resid.0"].features[0]
    5

    Raises:
        LookupError: no site of the direction has a dictionary.
        TypeError: a dictionary without `decoder_rows`.
        ValueError: a dictionary that writes another width.
    """
    by_name = {str(site): dictionary for site, dictionary in dictionaries.items()}
    both = [site for site in direction if site in by_name]
    if not both:
        have = ", ".join(by_name) or "none"
        raise LookupError(f"No dictionary at {', '.join(direction)}; there are dictionaries at: {have}.")
    return {site: _nearest(site, direction[site], by_name[site], n) for site in both}


def _nearest(site: str, vector: Tensor, dictionary: Any, n: int) -> Nearest:
    if not hasattr(dictionary, "decoder_rows") or not hasattr(dictionary, "n_features"):
        raise TypeError(f"The dictionary at {site} has no `decoder_rows`: {type(dictionary).__name__}.")
    rows = dictionary.decoder_rows(torch.arange(dictionary.n_features))
    if rows.shape[-1] != len(vector):
        raise ValueError(
            f"The dictionary at {site} writes width {rows.shape[-1]}; the direction has {len(vector)}."
        )
    found = torch.cat(list(cosines(vector[None].to(rows), rows)))[0].double().cpu()
    order = found.argsort(descending=True, stable=True)[:n]
    encoder = getattr(getattr(dictionary, "own", dictionary), "W_enc", None)
    own = isinstance(encoder, Tensor) and getattr(dictionary, "reads", None) is None
    if own and encoder.shape[0] == len(vector):  # type: ignore[union-attr]
        near = unit(encoder.T[order.to(encoder.device)]).double().cpu()  # type: ignore[union-attr]
        read = tuple((near @ unit(vector.detach().cpu().double()[None])[0]).tolist())
    else:
        read = None
    return Nearest(tuple(order.tolist()), tuple(found[order].tolist()), read)


@dataclass(frozen=True)
class Tokens:
    """The tokens whose logits a direction raises most and lowers most, each with by how much."""

    raised: tuple[tuple[str, float], ...]
    lowered: tuple[tuple[str, float], ...]
    raised_ids: tuple[int, ...] = field(repr=False)
    lowered_ids: tuple[int, ...] = field(repr=False)

    def __str__(self) -> str:
        up, down = (" ".join(repr(token) for token, _ in side) for side in (self.raised, self.lowered))
        return f"raised {up}; lowered {down}"


@torch.no_grad()
def promoted(
    model: Model,
    direction: Direction,
    *,
    k: int = 10,
    at: Float[Tensor, "*batch d_model"] | None = None,
) -> dict[str, Tokens]:
    """The tokens that a direction speaks for where it is added to the residual stream: the logit lens.

    Only its direct effect: what later blocks make of it is left out. Without `at`, the unembedding times the
    vector, with no final norm between. With it, what one unit of the vector adds to the logits to first order
    where the last block wrote `at`, through the final norm and all else; the mean over several such states.
    Logits are taken about their mean over the vocabulary.

    Raises:
        ValueError: no site of the direction that writes to the residual stream, another model, or, without
            `at`, a model in which no unembedding matrix is found.
    """
    direction.check(model)
    sites = [
        name for name in direction if model.site(name).side == "out" and model.site(name).width == model.width
    ]
    if not sites:
        raise ValueError(
            f"Nothing is written to the residual stream, of width {model.width}, at {', '.join(direction)}: "
            "take sites such as resid, attn or mlp."
        )
    rows = torch.stack([direction[site] for site in sites]).to(model.device, model.dtype)
    found = {}
    for site, effect in zip(sites, effects(model, rows, at=at), strict=True):
        order = effect.argsort(descending=True, stable=True).tolist()
        ends = order[:k], order[::-1][:k]
        raised, lowered = (
            tuple((pieces(model.tokenizer, [i])[0], effect[i].item()) for i in side) for side in ends
        )
        found[site] = Tokens(raised, lowered, tuple(ends[0]), tuple(ends[1]))
    return found


@dataclass(frozen=True, eq=False)
class Similarity:
    """Cosines between named vectors."""

    names: tuple[str, ...]
    cosine: Float[Tensor, "vector vector"]

    def __str__(self) -> str:
        width = max(map(len, self.names))
        lines = (
            f"{name:<{width}}  " + " ".join(f"{value:5.2f}" for value in row)
            for name, row in zip(self.names, self.cosine.tolist(), strict=True)
        )
        return "\n".join(lines)


def similarity(vectors: Mapping[str, Float[Tensor, " d_model"]]) -> Similarity:
    """The cosine of each vector with each: of a direction, between its sites; of several directions at a
    site, `{name: direction["resid.3"], ...}`.

    >>> print(similarity({"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([-1.0, 1.0])}))
    a   1.00 -0.71
    b  -0.71  1.00

    Raises:
        ValueError: no vectors, or vectors of several widths.
    """
    if not vectors:
        raise ValueError("There are no vectors to compare.")
    widths = {str(name): len(vector) for name, vector in vectors.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"Vectors of several widths have no cosines: {widths}.")
    rows = unit(torch.stack([vector.detach().cpu().double() for vector in vectors.values()]))
    return Similarity(tuple(widths), (rows @ rows.T).clamp(-1, 1))
