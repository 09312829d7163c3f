"""Means over the tokens of each text: of what a site holds, and of the features of a dictionary there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..binding import Dictionaries, Splice, splices
from ..features.passes import ROWS
from ..model import Model
from ..steering.token_choice import Choice, every
from .held import Held, numbered, read_tokens

_CHUNK = 2**22  # entries of decoder rows held at a time


@dataclass(frozen=True, eq=False)
class Pooled:
    """A site and its dictionary, in means over the tokens of each of some texts.

    Decoders are affine, so these say all that ablating features does to the mean: it takes off the mean of a
    feature times its decoder row, and leaves the error as it is. Nothing is decoded again.
    """

    splice: Splice
    acts: Float[Tensor, "text d_model"]
    features: Float[Tensor, "text feature"]  # sparse
    tokens: Int[Tensor, " text"]  # how many count
    active: Int[Tensor, " text"]  # how many features are at them, summed

    def __len__(self) -> int:
        return len(self.acts)

    def __repr__(self) -> str:
        return f"Pooled({len(self)} texts at {self.splice.site}, {self.splice.n_features} features)"

    @property
    def l0(self) -> float:
        """How many features are active at a token, in the mean over tokens."""
        return (self.active.sum() / self.tokens.sum()).item()

    def of(self, texts: Int[Tensor, " n"] | Bool[Tensor, " text"] | Sequence[int]) -> Pooled:
        """Those of some texts, in this order; or those for which `texts` says True."""
        index = torch.arange(len(self))[torch.as_tensor(texts)]
        return replace(
            self,
            acts=self.acts[index],
            features=self.features.index_select(0, index).coalesce(),
            tokens=self.tokens[index],
            active=self.active[index],
        )

    def means(self, texts: Int[Tensor, " n"]) -> Float[Tensor, " feature"]:
        """The mean of each feature over some texts, each counted once."""
        weight = torch.zeros(len(self), dtype=torch.float64)
        weight[texts] = 1 / len(texts)
        (text, feature), values = self.features.indices(), self.features.values()
        total = torch.zeros(self.splice.n_features, dtype=torch.float64)
        return total.index_add_(0, feature, values * weight[text])

    def some(self, features: Int[Tensor, " n"]) -> Float[Tensor, "text n"]:
        """The values of a few features."""
        distinct, inverse = features.unique(return_inverse=True)
        column = torch.full((self.splice.n_features,), -1)
        column[distinct] = torch.arange(len(distinct))
        text, place = self.features.indices()[0], column[self.features.indices()[1]]
        wanted = place >= 0
        found = torch.zeros(len(self), len(distinct), dtype=torch.float64)
        found[text[wanted], place[wanted]] = self.features.values()[wanted]
        return found[:, inverse]

    def slopes(self, weights: Float[Tensor, " d_model"]) -> Float[Tensor, " feature"]:
        """What one unit of each feature adds to a linear function of what the site holds."""
        every_one = torch.arange(self.splice.n_features)
        parts = every_one.split(max(1, _CHUNK // len(weights)))
        return torch.cat([self.rows(part) @ weights.double().cpu() for part in parts])

    def rows(self, features: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """What one unit of each of some features writes."""
        look_up = getattr(self.splice.dictionary, "decoder_rows", self.splice.decoder_rows)
        return look_up(features.to(self.splice.device)).detach().cpu().double()


def pooled(
    model: Model,
    dictionaries: Dictionaries,
    texts: Sequence[Any],
    *,
    tokens: Choice = every,
    context: int | None = None,
    batch_size: int = 16,
    progress: bool | None = None,
) -> dict[str, Pooled]:
    """The texts at every site that has a dictionary, by the site's name: one forward pass for each text.

    `tokens` are the ones that count: by default all but those that open a text; padding never counts. Of each
    text only `context` tokens are read, where that is given.

    >>> from interventions.dictionaries import SparseCoder
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = Model.load(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)))
    >>> pooled(model, {"resid.0": SparseCoder.random(32, 64)}, [(3, 1), (4, 1, 5)], progress=False)["resid.0"]
    Pooled(2 texts at resid.0, 64 features)

    Raises:
        ValueError: no dictionaries, no texts, a text of which no token is left, a dictionary that reads
            another site than it writes or is of another width, features that are not finite.
        LookupError: a site that the model does not have.
        TypeError: text for a model without a tokenizer.
    """
    bound = bind(model, dictionaries)
    listed = numbered(model, texts, tokens, context=context, name="text")
    sums = {splice.site: _Sums(splice, len(listed)) for splice in bound.values()}

    def consume(splice: Splice, rows: Tensor, text: Tensor) -> None:
        sums[splice.site].add(rows.to(model.dtype), text)

    read_tokens(model, list(sums), listed, consume, batch_size=batch_size, progress=progress)
    return {site.name: found.pooled() for site, found in sums.items()}


@torch.no_grad()
def pool(splice: Splice, at: Held) -> Pooled:
    """What a site holds, and the features of one of its dictionaries, in means over tokens."""
    sums = _Sums(splice, len(at))
    for rows, text in zip(at.rows.split(ROWS), at.text.split(ROWS), strict=True):
        sums.add(rows, text)
    return sums.pooled()


def bind(model: Model, dictionaries: Dictionaries) -> dict[str, Splice]:
    """Dictionaries bound to their sites, by the sites' names.

    Raises:
        ValueError: none; one of another width than its site, or that reads another site than it writes.
        LookupError: a site that the model does not have.
    """
    bound = splices(model, dictionaries)
    if not bound:
        raise ValueError("There are no dictionaries, so there are no features to pool.")
    if crossing := [splice for splice in bound.values() if splice.transcodes]:
        raise ValueError(
            f"The dictionary at {crossing[0].site} reads {crossing[0].read}: what is ablated there is not a "
            "part of what is read. Give autoencoders."
        )
    return {site.name: splice for site, splice in bound.items()}


class _Sums:
    """Sums over the tokens of texts, as they are read."""

    def __init__(self, splice: Splice, n_texts: int):
        self.splice, self.shape = splice, (n_texts, splice.n_features)
        self.acts = torch.zeros(n_texts, splice.site.width, dtype=torch.float64)
        self.tokens, self.active = torch.zeros(2, n_texts, dtype=torch.long)
        self.index: list[Tensor] = []
        self.values: list[Tensor] = []

    def add(self, rows: Float[Tensor, "token d_model"], text: Int[Tensor, " token"]) -> None:
        """Adds tokens, those of a text together."""
        splice = self.splice
        features = splice.dictionary.encode(rows.to(splice.device, splice.dtype)).detach().cpu()
        owner, counts = text.unique_consecutive(return_counts=True)
        parts = features.split(counts.tolist())
        sums = torch.stack([part.sum(0, dtype=torch.float64) for part in parts])
        if not sums.isfinite().all():
            raise ValueError(f"Features at {splice.site} are not finite: the model's numbers overflow.")
        row, feature = sums.nonzero().T
        self.index.append(torch.stack([owner[row], feature]))
        self.values.append(sums[row, feature])
        self.acts.index_add_(0, text, rows.cpu().double())
        self.tokens.index_add_(0, owner, counts)
        self.active.index_add_(0, text, (features != 0).sum(1))

    def pooled(self) -> Pooled:
        index = torch.cat(self.index, 1)
        values = torch.cat(self.values) / self.tokens[index[0]]
        features = torch.sparse_coo_tensor(index, values, self.shape, check_invariants=False).coalesce()
        return Pooled(self.splice, self.acts / self.tokens[:, None], features, self.tokens, self.active)
