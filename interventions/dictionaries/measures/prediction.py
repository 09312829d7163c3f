"""A dictionary bound to the sites of a model, for being measured one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...acts import Dictionary, Identity
from ...model import Model
from ...sites import Site
from ..coders import SparseCoder, SparseFeatures

if TYPE_CHECKING:
    from ...acts import Writes

_CHUNK = 2**25  # features held at a time


@dataclass(frozen=True)
class Prediction:
    """What a dictionary says of the site that it writes, and what it has to read for that.

    At a site of a cross-layer transcoder, the features of earlier layers write as well; they read what the
    model computed.
    """

    site: Site
    read: Site
    dictionary: Dictionary
    earlier: tuple[tuple[Site, Dictionary, Writes], ...] = ()

    @property
    def reads(self) -> set[Site]:
        """All that the prediction depends on."""
        return {self.read, *(read for read, _, _ in self.earlier)}

    def of(
        self, seen: Mapping[Site, Float[Tensor, "token d_in"]]
    ) -> tuple[Float[Tensor, "token d_out"], SparseFeatures]:
        """The prediction, and the features of the dictionary itself."""
        x = seen[self.read]
        features = active(self.dictionary, x)
        out = decoded(self.dictionary, features)
        skip = getattr(self.dictionary, "skip", lambda _: None)(x)
        out = out if skip is None else out + skip
        for read, dictionary, writes in self.earlier:
            out = out + decoded(writes, active(dictionary, seen[read]))
        return out, features


def predictions(
    model: Model, dictionaries: SparseCoder | Mapping[str, Dictionary] | Mapping[Site, Dictionary]
) -> list[Prediction]:
    """Each dictionary bound to its sites.

    Raises:
        ValueError: a lone dictionary that does not say its site; one that reads what comes after it.
    """
    if isinstance(dictionaries, SparseCoder):
        if dictionaries.site is None:
            raise ValueError("This dictionary does not say its site: pass {site: dictionary}.")
        dictionaries = {dictionaries.site: dictionaries}
    bound = {model.site(name): d for name, d in dictionaries.items()}
    reads = {site: model.site(getattr(d, "reads", None) or site) for site, d in bound.items()}
    if late := next((site for site, read in reads.items() if read > site), None):
        raise ValueError(
            f"The dictionary at {late} reads {reads[late]}, which the model computes only later."
        )
    found = []
    for site, dictionary in bound.items():
        earlier = tuple(
            (reads[other], d, writes)
            for other, d in bound.items()
            for name, writes in getattr(d, "later", {}).items()
            if model.site(name) == site
        )
        found.append(Prediction(site, reads[site], dictionary, earlier))
    return found


def active(dictionary: Dictionary, x: Float[Tensor, "token d_in"]) -> SparseFeatures:
    """The features that are not zero."""
    if hasattr(dictionary, "encode_sparse"):
        return dictionary.encode_sparse(x)  # type: ignore[attr-defined]
    parts, width = [], 0
    for first, features in encoded(dictionary, x):
        token, feature = features.nonzero(as_tuple=True)
        parts.append((token + first, feature, features[token, feature]))
        width = features.shape[-1]
    token, feature, value = (torch.cat(part) for part in zip(*parts, strict=True))
    return SparseFeatures(token, feature, value, (len(x), width))


def encoded(
    dictionary: Dictionary, x: Float[Tensor, "token d_in"]
) -> Iterator[tuple[int, Float[Tensor, "part feature"]]]:
    """The features of some tokens at a time, each part with the number of its first token."""
    width = dictionary.encode(x[:1]).shape[-1]
    size = max(1, _CHUNK // width)
    for i, part in enumerate(x.split(size)):
        yield i * size, dictionary.encode(part)


def decoded(writes: Dictionary | Writes, features: SparseFeatures) -> Float[Tensor, "token d_out"]:
    """What listed features write, by gathering rows where there is a way to."""
    token, feature, value, shape = features
    combined = getattr(writes, "combined", None)
    if combined is None or isinstance(writes, Identity):
        return writes.decode(features.dense())
    return combined(token, feature, value, shape[0]) + writes.decode(value.new_zeros(1, shape[-1]))
