"""Activations whose true features are known: sparse combinations of more directions than there are axes.

What a dictionary should find is given, so that one can see whether it does (Elhage et al. 2022, arXiv
2209.10652; Sharkey et al. 2022). Nothing here reads a language model: the activations are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

_APART = 987_654_321  # so that no dictionary starts from the same random numbers
_WINDOW = (1, 7919, 104_729)  # what the last tokens count for in the number of a sample


@dataclass(frozen=True)
class Superposition:
    """`n_features` directions in a space of width `d`, of which `active` fire at a time on average.

    Frequencies fall as those of words do, feature i firing in proportion to `(i + 1) ** -zipf`, but never in
    more than half of the samples. A feature that fires has a log-normal strength of median 1, the logarithm
    having standard deviation `spread`. Firing is independent, except that

    - with `correlation` c, features of the same group of `group` neighbours share a cause: the correlation of
      the normal variables that decide whether they fire is c, and their frequencies stay what they are;
    - each of the first `parents` features has `children` of its own, at the end of the list: where the parent
      fires, one of its children, or with probability 1 / (children + 1) none, fires with it, and never alone.

    `noise` is the standard deviation of the Gaussian noise on each axis. All is fixed by `seed` and the
    generator that samples are drawn with.

    Raises:
        ValueError: frequencies that cannot be had, more children than features.

    >>> world = Superposition(16, 32, active=2.0)
    >>> x, strengths = world.sample(1000, torch.Generator().manual_seed(0))
    >>> x.shape, strengths.shape
    (torch.Size([1000, 16]), torch.Size([1000, 32]))
    >>> torch.allclose(x, strengths @ world.features)
    True
    >>> (strengths > 0).sum(-1).float().mean()
    tensor(2.0)
    """

    d: int
    n_features: int
    active: float = 3.0
    zipf: float = 0.5
    spread: float = 0.5
    correlation: float = 0.0
    group: int = 8
    parents: int = 0
    children: int = 2
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        roots = self.n_features - self.parents * self.children
        if self.parents > roots:
            raise ValueError(
                f"{self.parents} parents of {self.children} children do not fit {self.n_features} features."
            )
        if not 0 < self.active < roots / 2:
            raise ValueError(f"Of {roots} independent features, {self.active} cannot fire on average.")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"A correlation is at least 0 and below 1, not {self.correlation}.")

    @cached_property
    def features(self) -> Float[Tensor, "feature d"]:
        """The true directions, of unit norm."""
        generator = torch.Generator().manual_seed(_APART + self.seed)
        return normalize(torch.randn(self.n_features, self.d, generator=generator), dim=-1)

    @cached_property
    def frequencies(self) -> Float[Tensor, " feature"]:
        """How often each feature fires."""
        roots = self.n_features - self.parents * self.children
        weight = torch.arange(1, roots + 1).double() ** -self.zipf
        low, high = 0.0, float(roots / weight.min())
        for _ in range(100):  # the factor at which they add up, capped; children fire in part of the cases
            factor = (low + high) / 2
            p = (factor * weight).clamp(max=0.5)
            total = p.sum() + p[: self.parents].sum() * self.children / (self.children + 1)
            low, high = (low, factor) if total > self.active else (factor, high)
        p = (low * weight).clamp(max=0.5)
        under = (p[: self.parents] / (self.children + 1)).repeat_interleave(self.children)
        return torch.cat([p, under]).float()

    def sample(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "sample d"], Float[Tensor, "sample feature"]]:
        """`n` activations, and how strongly each feature fires in them: 0 where it does not."""
        roots = self.n_features - self.parents * self.children
        drive = torch.randn(n, roots, generator=generator)
        if self.correlation:
            causes = torch.randn(n, -(-roots // self.group), generator=generator)
            shared = causes.repeat_interleave(self.group, dim=-1)[:, :roots]
            drive = self.correlation**0.5 * shared + (1 - self.correlation) ** 0.5 * drive
        fires = drive > torch.special.ndtri(1 - self.frequencies[:roots].double()).float()
        if self.parents:
            chosen = torch.randint(self.children + 1, (n, self.parents, 1), generator=generator)
            below = (chosen == torch.arange(self.children)) & fires[:, : self.parents, None]
            fires = torch.cat([fires, below.flatten(1)], dim=-1)
        strengths = fires * (self.spread * torch.randn(n, self.n_features, generator=generator)).exp()
        x = strengths @ self.features
        if self.noise:
            x = x + self.noise * torch.randn(n, self.d, generator=generator)
        return x, strengths

    def map(self, *, layers: int = 1, linear: float = 0.0) -> SparseMap:
        """A map that reads such activations, other ones at every layer, and writes others of width `d`."""
        return SparseMap(
            tuple(replace(self, seed=self.seed + 1000 * layer) for layer in range(layers)), linear=linear
        )

    def module(self, n: int = 2**15) -> Lookup:
        """A language model whose embedding is `n` such activations: see `Lookup`."""
        return self.map().module(n)


@dataclass(frozen=True)
class SparseMap:
    """What layers of features write: layer l reads its own activations, its features write at l and later.

        y_m = sum over l <= m of strengths_l writes[l][m]  +  linear * x_m A

    One layer is the truth of a transcoder, several are that of a cross-layer one. `linear` adds a dense part,
    which only a skip path can carry in full where the activations are noisy.

    >>> known = Superposition(16, 32).map(layers=2)
    >>> drawn = known.sample(100, torch.Generator().manual_seed(0))
    >>> torch.allclose(drawn[0].y, drawn[0].strengths @ known.writes[0][0])
    True
    """

    sources: Sequence[Superposition]
    linear: float = 0.0

    @cached_property
    def writes(self) -> list[dict[int, Float[Tensor, "feature d"]]]:
        """What features of each layer write at their own and at later ones: rows of unit norm over all."""
        found = []
        for layer, source in enumerate(self.sources):
            generator = torch.Generator().manual_seed(_APART + source.seed + 1)
            later = len(self.sources) - layer
            rows = torch.randn(later, source.n_features, source.d, generator=generator)
            rows /= rows.square().sum((0, 2), keepdim=True).sqrt()
            found.append({layer + i: rows[i] for i in range(later)})
        return found

    @cached_property
    def matrices(self) -> list[Float[Tensor, "d d"]]:
        """The linear part of each layer: a random rotation, times `linear`."""
        found = []
        for source in self.sources:
            generator = torch.Generator().manual_seed(_APART + source.seed + 2)
            rotation = torch.linalg.qr(torch.randn(source.d, source.d, generator=generator))[0]
            found.append(self.linear * rotation)
        return found

    def sample(self, n: int, generator: torch.Generator) -> list[Drawn]:
        """What `n` samples hold at each layer."""
        drawn = [source.sample(n, generator) for source in self.sources]
        found = []
        for layer, (x, strengths) in enumerate(drawn):
            y = x @ self.matrices[layer] if self.linear else torch.zeros_like(x)
            for before in range(layer + 1):
                y = y + drawn[before][1] @ self.writes[before][layer]
            found.append(Drawn(x, strengths, y))
        return found

    def module(self, n: int = 2**15) -> Lookup:
        """A language model that holds `n` samples: see `Lookup`."""
        return Lookup(self, n)


@dataclass(frozen=True)
class Drawn:
    """What samples hold at one layer."""

    x: Float[Tensor, "sample d"]  # what it reads
    strengths: Float[Tensor, "sample feature"]
    y: Float[Tensor, "sample d"]  # what it writes


class Lookup(nn.Module):
    """A language model whose activations are known: the last three tokens decide which sample is where.

    `Model.load(world.module())` makes it a model like any other. Its sites `mlp_in.l` hold what layer l
    reads, `mlp.l` what it writes, and `embed` what the first layer reads. The residual stream is the sum of
    the embedding and all that is written. A token stands for each feature of the first layer, and is the
    more likely to come next the more that feature fires; `text` draws from that. Rows had better be long:
    what stands first in a row has fewer samples to choose from.

    >>> module = Superposition(16, 32).module(1000)
    >>> tokens = module.text(rows=4, length=8)
    >>> tokens.shape, module(tokens).shape
    (torch.Size([4, 8]), torch.Size([4, 8, 32]))
    >>> x = module.embed(module.index(tokens))
    >>> torch.allclose(x, module.strengths(tokens) @ module.known.sources[0].features)
    True
    """

    def __init__(self, known: SparseMap, n: int):
        super().__init__()
        self.known = known
        drawn = known.sample(n, torch.Generator().manual_seed(_APART + known.sources[0].seed + 3))
        first = known.sources[0]
        self.embed = _table(drawn[0].x)
        self.layers = nn.ModuleList(_Layer(layer) for layer in drawn)
        self.head = nn.Linear(first.d, first.n_features, bias=False)
        total = first.features + torch.stack(list(known.writes[0].values())).sum(0)
        self.head.weight.data = 4 * normalize(total, dim=-1)
        self._strengths = [layer.strengths for layer in drawn]
        self.requires_grad_(False)

    def index(self, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """Which sample each position holds: a hash of the last three tokens."""
        padded = nn.functional.pad(tokens, (len(_WINDOW) - 1, 0))
        length = tokens.shape[-1]
        terms = [factor * padded[:, len(_WINDOW) - 1 - i :][:, :length] for i, factor in enumerate(_WINDOW)]
        return torch.stack(terms).sum(0) * 48_271 % 2_147_483_647 % self.embed.num_embeddings

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        index = self.index(tokens)
        resid = self.embed(index)
        for layer in self.layers:
            resid = layer(resid, index)
        return self.head(resid)

    def strengths(
        self, tokens: Int[Tensor, "batch pos"], layer: int = 0
    ) -> Float[Tensor, "batch pos feature"]:
        """How strongly the true features of a layer fire at each position."""
        return self._strengths[layer][self.index(tokens)]

    @torch.no_grad()
    def text(self, rows: int, length: int, *, seed: int = 0) -> Int[Tensor, "row pos"]:
        """What the model makes up, starting from random tokens."""
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(self.head.out_features, (rows, len(_WINDOW)), generator=generator)
        while tokens.shape[-1] < length:
            chances = self(tokens[:, -len(_WINDOW) :])[:, -1].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], dim=-1)
        return tokens[:, :length]


class _Layer(nn.Module):
    def __init__(self, drawn: Drawn):
        super().__init__()
        self.read = _table(drawn.x)
        self.mlp = _Written(drawn.y)

    def forward(self, resid: Tensor, index: Tensor) -> Tensor:
        return resid + self.mlp(self.read(index), index)


class _Written(nn.Module):
    def __init__(self, y: Tensor):
        super().__init__()
        self.table = _table(y)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.table(index)


def _table(rows: Tensor) -> nn.Embedding:
    return nn.Embedding.from_pretrained(rows, freeze=True)
