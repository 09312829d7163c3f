"""What a site holds when features before it, or at it, are ablated: in means over the tokens of each text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..acts import Identity
from ..binding import Dictionaries, Splice, splices
from ..edits import Ablate
from ..features.passes import each_text, readings
from ..intervention import Intervention
from ..model import Model
from ..sites import Site
from ..splice import applied
from ..steering.token_choice import Choice, every
from .pooled import Pooled

Features = Mapping[str, Sequence[int]]


def site_means(
    model: Model,
    texts: Sequence[Any],
    at: str | Site,
    *,
    edits: Sequence[Intervention] = (),
    dictionaries: Dictionaries | None = None,
    tokens: Choice = every,
    batch_size: int = 16,
    progress: bool | None = None,
) -> Float[Tensor, "text d_model"]:
    """The mean over the tokens of each text of what a site holds while interventions change the pass, in
    float64 on the cpu: what a probe of pooled activations reads.

    Earlier interventions change what later dictionaries read (Marks et al. 2024, section 4). `tokens` are the
    ones that count, as in `pooled`.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = Model.load(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)))
    >>> site_means(model, [(3, 1), (4, 1, 5)], "resid.0", progress=False).shape
    torch.Size([2, 32])

    Raises:
        ValueError: no texts, a text of which no token is left, an intervention at a site after `at`.
        LookupError: a site that the model does not have.
        TypeError: text for a model without a tokenizer.
    """
    site = model.site(at)
    for edit in edits:
        _check_before(model, edit.sites, site)
    bound = splices(model, {site: Identity()})
    numbered = [replace(reading, label=i) for i, reading in enumerate(readings(model, texts, tokens))]
    found = torch.zeros(len(numbered), site.width, dtype=torch.float64)

    def consume(_: Splice, means: Tensor, text: Tensor) -> None:
        found[text] = means

    with applied(model, *edits, dictionaries=dictionaries if edits else None):
        each_text(model, bound, numbered, consume, batch_size=batch_size, progress=progress)
    return found


def ablated_means(
    model: Model,
    dictionaries: Dictionaries,
    texts: Sequence[Any],
    features: Features,
    *,
    at: str | Site,
    tokens: Choice = every,
    batch_size: int = 16,
    progress: bool | None = None,
) -> Float[Tensor, "text d_model"]:
    """`site_means` with some features of dictionaries at zero at every token, their errors kept.

    Raises:
        LookupError: features of a site without a dictionary.
        ValueError: a feature that a dictionary does not have, and what `site_means` refuses.
    """
    check_features(model, dictionaries, features)
    edits = [Ablate({site: list(some) for site, some in features.items() if len(some)})]
    return site_means(
        model, texts, at, edits=edits if edits[0].sites else (), dictionaries=dictionaries,
        tokens=tokens, batch_size=batch_size, progress=progress,
    )  # fmt: skip


def without(pooled: Pooled, features: Sequence[int] | Int[Tensor, " n"]) -> Float[Tensor, "text d_model"]:
    """The means at the dictionary's own site with some of its features at zero, without a pass: what
    `ablated_means` gives, since decoders are affine."""
    index = torch.as_tensor(features, dtype=torch.long).unique()
    rows = pooled.splice.decoder_rows(index.to(pooled.splice.device)).cpu().double()
    return pooled.acts - pooled.some(index) @ rows


@torch.no_grad()
def active_features(
    model: Model,
    dictionaries: Dictionaries,
    texts: Sequence[Any],
    *,
    tokens: Choice = every,
    batch_size: int = 16,
    progress: bool | None = None,
) -> dict[str, Int[Tensor, " n"]]:
    """Those features of each dictionary that are not zero at every token of every text, ascending."""
    bound = splices(model, dictionaries)
    seen = {site: torch.zeros(splice.n_features, dtype=torch.bool) for site, splice in bound.items()}

    def consume(splice: Splice, means: Tensor, _: Tensor) -> None:
        seen[splice.site] |= (means != 0).any(0)

    each_text(model, bound, readings(model, texts, tokens), consume, batch_size=batch_size, progress=progress)
    return {site.name: found.nonzero()[:, 0] for site, found in seen.items()}


def check_features(model: Model, dictionaries: Dictionaries, features: Features) -> None:
    """Raises LookupError where there is no dictionary at a site, ValueError for a feature that it lacks."""
    bound = {site.name: splice.n_features for site, splice in splices(model, dictionaries).items()}
    for site, some in features.items():
        if site not in bound:
            raise LookupError(f"There is no dictionary at {site!r}; there are some at {', '.join(bound)}.")
        if outside := [int(f) for f in some if not 0 <= f < bound[site]]:
            raise ValueError(
                f"There is no feature {site}/{outside[0]}: the dictionary has 0 to {bound[site] - 1}."
            )


def _check_before(model: Model, sites: Any, last: Site) -> None:
    for site in map(model.site, sites):
        if site > last:
            raise ValueError(f"{site} comes after {last}, which is read: a change there does not show.")
