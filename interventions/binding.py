"""Dictionaries bound to the sites of a model that they read and write, and checked against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .acts import CrossLayer, Dictionary, Identity, Rows, Transcoder, Writes
from .dictionaries.coders import SparseCoder
from .model import Model
from .sites import Site

Dictionaries = Mapping[Site, Dictionary] | Mapping[str, Dictionary]


@dataclass(frozen=True)
class Splice:
    """A dictionary bound to the site that it writes and to the one that it reads."""

    site: Site
    read: Site
    dictionary: Dictionary
    n_features: int
    device: torch.device
    dtype: torch.dtype
    later: Mapping[Site, Writes] = field(default_factory=dict)  # where else its features write
    earlier: tuple[Splice, ...] = ()  # those whose features write here too

    @property
    def transcodes(self) -> bool:
        """Whether the dictionary predicts its site from another one."""
        return self.read != self.site

    def skip(self, x: Tensor) -> Tensor | None:
        skip = self.dictionary.skip(x) if isinstance(self.dictionary, Transcoder) else None
        return None if skip is None else self._precise(skip)

    def decoded(self, features: Tensor) -> Tensor:
        """What the features write at their site, with the decoder's bias."""
        return self._precise(self.dictionary.decode(features))

    def prediction(self, features: Tensor, x: Tensor) -> Tensor:
        """What the dictionary says of its site: the decoded features, and the skip path from `x`."""
        skip = self.skip(x)
        decoded = self.decoded(features)
        return decoded if skip is None else decoded + skip

    def received(self, features: Mapping[Site, Tensor]) -> Tensor | float:
        """What the features of earlier sites write here."""
        return sum(self._precise(up.later[self.site].decode(features[up.site])) for up in self.earlier)

    def _precise(self, x: Tensor) -> Tensor:
        """Parts of a prediction are added in the model's precision, so that in any order they cancel."""
        return x.to(torch.promote_types(x.dtype, self.dtype))

    def slopes(
        self,
        gradients: Mapping[Site, Float[Tensor, "token d_out"]],
        token: Int[Tensor, " n"],
        feature: Int[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """The gradients to features, given those to the sites that they write; tokens ascend."""
        slope = self.projected(gradients[self.site], token, feature)
        for site, writes in self.later.items():
            slope = slope + writes.projected(gradients[site], token, feature)
        return slope

    def decoder(self, at: Site) -> Splice | Writes:
        """What its features write at one of their sites."""
        return self if at == self.site else self.later[at]

    def listed(
        self, features: Float[Tensor, "token feature"]
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Features that hang on their input: those that are not zero; of the neurons, all.

        Gives `token * n_features + feature`, ascending, and the values.
        """
        flat = features.reshape(-1)
        if isinstance(self.dictionary, Identity):
            return torch.arange(len(flat), device=flat.device), flat
        key = flat.nonzero()[:, 0]
        return key, flat[key]

    def projected(
        self, covector: Float[Tensor, "token d_out"], token: Int[Tensor, " n"], feature: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The covector of each listed token times the decoder row of its feature; tokens ascend."""
        if isinstance(self.dictionary, Rows):
            return self.dictionary.projected(covector, token, feature)
        return (covector[token] * self.decoder_rows(feature)).sum(-1)

    def combined(
        self, token: Int[Tensor, " n"], feature: Int[Tensor, " n"], weight: Float[Tensor, " n"], n_tokens: int
    ) -> Float[Tensor, "token d_out"]:
        """For each token, the decoder rows of its features, weighted and summed; tokens ascend."""
        if isinstance(self.dictionary, Rows):
            return self.dictionary.combined(token, feature, weight, n_tokens)
        features = weight.new_zeros(n_tokens + 1, self.n_features)
        features[token, feature] = weight
        decoded = self.dictionary.decode(features)
        return decoded[:-1] - decoded[-1]

    def encoder_rows(self, x: Float[Tensor, "n d_in"], feature: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        """Row i is the gradient of `feature[i]`, which is active, to what the dictionary reads, at `x[i]`."""
        if isinstance(self.dictionary, Rows):
            return self.dictionary.encoder_rows(x, feature)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            values = self.dictionary.encode(x).gather(-1, feature[:, None])
            return torch.autograd.grad(values.sum(), x)[0]

    def readout(
        self, covector: Float[Tensor, "token slot d_out"], feature: Int[Tensor, "token n"]
    ) -> Float[Tensor, "token slot n"]:
        """Each covector times the decoder rows of the features listed for its token."""
        if isinstance(self.dictionary, Rows):
            return self.dictionary.readout(covector, feature)
        rows = self.decoder_rows(feature.flatten()).unflatten(0, feature.shape)
        return torch.einsum("tsd,tnd->tsn", covector, rows)

    def decoder_rows(self, feature: Int[Tensor, " n"]) -> Float[Tensor, "n d_out"]:
        """What one unit of each feature writes."""
        distinct, inverse = feature.unique(return_inverse=True)
        one_hot = torch.zeros(len(distinct) + 1, self.n_features, device=self.device, dtype=self.dtype)
        one_hot[torch.arange(len(distinct)), distinct] = 1
        decoded = self.dictionary.decode(one_hot)
        return (decoded[:-1] - decoded[-1])[inverse]


@torch.no_grad()
def splices(model: Model, dictionaries: Dictionaries) -> dict[Site, Splice]:
    """Binds dictionaries to the model's sites, in the order of the forward pass.

    Raises:
        LookupError: a site that the model does not have.
        ValueError: a dictionary whose width is not its site's.
    """
    bound = {}
    for site, dictionary in by_site(model, dictionaries).items():
        if isinstance(dictionary, type) or not isinstance(dictionary, Dictionary):
            raise TypeError(f"The dictionary at {site} has no `encode` and `decode`: {dictionary!r}.")
        reads = dictionary.reads if isinstance(dictionary, Transcoder) else None
        read = site if reads is None else model.site(reads)
        if read > site:
            raise ValueError(f"The dictionary at {site} reads {read}, which the model computes only later.")
        n_features = _checked_features(model, site, read, dictionary)
        later = written_later(model, site, dictionary)
        if later and read == site:
            raise ValueError(
                f"The features at {site} also write later, so they are read before {site}, not there."
            )
        bound[site] = Splice(site, read, dictionary, n_features, model.device, model.dtype, later)
    for site, splice in sorted(bound.items()):
        if missing := [str(other) for other in splice.later if other not in bound]:
            raise ValueError(
                f"The features at {site} also write at {', '.join(missing)}: pass the dictionaries there too."
            )
        bound[site] = replace(
            splice, earlier=tuple(up for up in bound.values() if site in up.later and up.site < site)
        )
    return dict(sorted(bound.items()))


def written_later(model: Model, site: Site, dictionary: Dictionary) -> dict[Site, Writes]:
    if not isinstance(dictionary, CrossLayer):
        return {}
    later = {model.site(name): writes for name, writes in dictionary.later.items()}
    for other, writes in later.items():
        width = writes.decoder_rows(torch.zeros(1, dtype=torch.long, device=model.device)).shape[-1]
        if other <= site or width != other.width:
            raise ValueError(
                f"The features at {site} write width {width} at {other}, which has width {other.width}."
                if other > site
                else f"The features at {site} cannot write at {other}, which comes before."
            )
    return later


def by_site(model: Model, dictionaries: Dictionaries) -> dict[Site, Dictionary]:
    if not isinstance(dictionaries, Mapping):
        raise TypeError(f"Pass dictionaries as {{site: dictionary}}, not as {type(dictionaries).__name__}.")
    return {model.site(site): dictionary for site, dictionary in dictionaries.items()}


def _checked_features(model: Model, site: Site, read: Site, dictionary: Dictionary) -> int:
    """How many features a dictionary has: as it says, or found by handing it one row of its site's width."""
    fits = (read.width, site.width)
    if isinstance(dictionary, SparseCoder) and (dictionary.d_in, dictionary.d_out) == fits:
        return dictionary.n_features
    row = torch.zeros(1, read.width, device=model.device, dtype=model.dtype)
    try:
        features = dictionary.encode(row)
        d_out = dictionary.decode(features).shape[-1]
        affine = _is_affine(dictionary, features)
    except (RuntimeError, ValueError) as error:
        takes = getattr(dictionary, "d_in", None)
        takes = f"takes width {takes}" if takes else f"refuses it ({str(error).splitlines()[0]})"
        raise ValueError(f"{read} has width {read.width}, but the dictionary at {site} {takes}.") from None
    if d_out != site.width:
        raise ValueError(f"{site} has width {site.width}, but its dictionary writes width {d_out}.")
    if not affine:
        raise ValueError(f"The dictionary at {site} has a `decode` that is not affine, as decoders must be.")
    return features.shape[-1]


def _is_affine(dictionary: Dictionary, like: Tensor) -> bool:
    """Whether decoding a sum gives the sum of what is decoded, tried on two rows of features."""
    f, g = torch.randn(2, 1, like.shape[-1], generator=torch.Generator().manual_seed(0)).to(like)
    a, b, both, nothing = (dictionary.decode(x) for x in (f, g, f + g, torch.zeros_like(f)))
    scale = both.abs().max() + a.abs().max() + b.abs().max()
    return bool((both + nothing - a - b).abs().max() <= torch.finfo(both.dtype).eps ** 0.5 * scale)
