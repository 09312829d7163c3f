"""A cross-layer transcoder in training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..sites import Site
from .cross_layer import CrossLayerTranscoder
from .learner import linear_map
from .pairs import Pairs
from .pool import Pool
from .recipes import Recipe, Step
from .trainee import Trainee, revival


class CrossLearner(Trainee):
    """A cross-layer transcoder in training, in the units of the pool.

    The decoder of a layer holds, row by row, what each feature writes at all its sites, one after the other;
    it is such a row that has unit norm, or weighs a feature's penalty. The loss is the mean over the sites
    written of the fraction of variance unexplained.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Site, Site]],
        n_features: int,
        recipe: Recipe,
        pool: Pool,
        *,
        seed: int = 0,
    ):
        if len(recipe.prefixes(n_features)) > 1:
            raise ValueError(f"{recipe} asks for prefixes, which cross-layer transcoders do not have.")
        self.reads, self.writes = [r for r, _ in pairs], [w for _, w in pairs]
        if len({site.width for site in self.writes}) > 1:
            raise ValueError(f"The sites written must be of one width; these are {_widths(self.writes)}.")
        self.recipe = recipe
        digest = hashlib.sha256(f"{seed} {self.reads} {self.writes}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
        device = pool.centre[self.writes[0]].device
        few = max(256, 2**22 // n_features)
        self.W_enc, self.W_dec, self.b_enc, self.b_dec = [], [], [], []
        self.weights: list[dict[str, Tensor]] = []
        for i, (reads, writes) in enumerate(pairs):
            x, y = pool.sample(reads, 4096), pool.sample(writes, 4096)
            W_enc = normalize(torch.randn(n_features, x.shape[-1], generator=generator), dim=-1).to(device)
            own = normalize(W_enc @ linear_map(x, y), dim=-1)
            later = sum(pool.sample(w, 1).shape[-1] for w in self.writes[i + 1 :])
            z = x[:few] @ W_enc.T
            kept = recipe.kept(z, 0.0)
            predicted = (z.relu() if kept is None else z * kept) @ own
            scale = ((predicted * y[:few]).sum() / predicted.square().sum()).clamp(min=1e-3).item()
            self.W_enc.append(W_enc * scale)
            self.W_dec.append(torch.cat([own, own.new_zeros(n_features, later)], dim=-1))
            self.b_enc.append(torch.zeros(n_features, device=device))
            self.b_dec.append(torch.zeros(y.shape[-1], device=device))
            self.weights.append(recipe.weights(z * scale))
        self.memory = {
            f"{i} {name}": value.to(device)
            for i in range(len(pairs))
            for name, value in recipe.memory().items()
        }
        own = [weight for weights in self.weights for weight in weights.values()]
        trained = [*self.W_enc, *self.b_enc, *self.W_dec, *self.b_dec]
        self.begin(trained, own, self.W_dec, n_features * len(pairs))

    @property
    def sites(self) -> tuple[Site, ...]:
        return (*self.reads, *self.writes)

    @property
    def name(self) -> str:
        return f"{self.writes[0]} to {self.writes[-1]}"

    def batch_loss(
        self, batch: Mapping[Site, Tensor], progress: float, *, auxk: float, dead_after: int
    ) -> Tensor:
        inputs = [batch[site] for site in self.reads]
        rest = torch.cat([batch[site] - b for site, b in zip(self.writes, self.b_dec, strict=True)], dim=-1)
        widths = [len(b) for b in self.b_dec]
        active, penalty, count = [], 0.0, 0.0
        for i, x in enumerate(inputs):
            z = torch.addmm(self.b_enc[i], x, self.W_enc[i].T)
            kept = self.recipe.kept(z.detach(), progress)
            if kept is None:
                features, price = self._features(i, z, progress)
                kept, penalty = features.detach() != 0, penalty + price / len(inputs)
                written = features @ self.W_dec[i]
                active.append(kept.any(0))
                count = count + kept.sum() / len(x) / len(inputs)
            else:
                pairs = Pairs(kept)
                written = pairs.decoded(pairs.picked(z, x, self.W_enc[i], self.b_enc[i]), self.W_dec[i])
                active.append(pairs.active)
                count = count + x.new_tensor(len(pairs.token) / len(x) / len(inputs))
            start = rest.shape[-1] - written.shape[-1]
            rest = torch.cat([rest[:, :start], rest[:, start:] - written], dim=-1)
        errors = torch.stack([e.square().mean() for e in rest.split(widths, dim=-1)])
        fvu = errors.mean()
        self.count(torch.cat(active), torch.as_tensor(count), fvu.detach())
        for i, silent in enumerate(self.silent.chunk(len(inputs)) if auxk else ()):
            dead = (silent > dead_after).nonzero()[:, 0]
            if len(dead):
                W_dec = self.W_dec[i]
                left = rest[:, -W_dec.shape[-1] :].detach()
                revived = revival(inputs[i], self.W_enc[i], self.b_enc[i], W_dec, left, dead)
                penalty = penalty + auxk * revived / len(inputs)
        return fvu + penalty

    def _features(self, i: int, z: Tensor, progress: float) -> tuple[Tensor, Tensor | float]:
        """Features of one layer, of a recipe that is dense in training, and their price."""

        def unexplained(_features: Tensor) -> Tensor:
            raise ValueError(f"{self.recipe} reconstructs from each layer alone; pass another recipe.")

        norms = self.W_dec[i].norm(dim=-1) / len(self.b_dec[i]) ** 0.5
        start = f"{i} "
        memory = {k.removeprefix(start): v for k, v in self.memory.items() if k.startswith(start)}
        step = Step(z, self.b_enc[i], norms, unexplained, self.weights[i], memory, progress)
        found = self.recipe.features(step)
        self.memory |= {f"{i} {name}": value for name, value in memory.items()}
        return found

    @torch.no_grad()
    def finished(self, pool: Pool, meta: dict[str, Any]) -> CrossLayerTranscoder:
        """The transcoder in the units of the model; features keep the sizes they had in training."""
        encoders, decoders = [], []
        for i, reads in enumerate(self.reads):
            into, centre = pool.scale[reads], pool.centre[reads]
            W_enc = self.W_enc[i].T * into
            b_enc = self.b_enc[i] - centre @ W_enc
            x = pool.sample(reads, 2**15)
            parts = x.tensor_split(-(-x.shape[0] * len(b_enc) // 2**25))
            z = (torch.addmm(self.b_enc[i], part, self.W_enc[i].T) for part in parts)
            encoders.append((W_enc, b_enc, self.recipe.activation(z, self.weights[i])))
            written = self.W_dec[i].split([len(b) for b in self.b_dec[i:]], dim=-1)
            scales = [pool.scale[site] for site in self.writes[i:]]
            decoders.append(torch.stack([W / out for W, out in zip(written, scales, strict=True)], dim=1))
        b_dec = torch.stack(
            [pool.centre[s] + b / pool.scale[s] for s, b in zip(self.writes, self.b_dec, strict=True)]
        )
        reads, writes = ([site.name for site in sites] for sites in (self.reads, self.writes))
        return CrossLayerTranscoder(encoders, decoders, b_dec, reads=reads, writes=writes, meta=meta)


def _widths(sites: Sequence[Site]) -> str:
    return ", ".join(f"{site} ({site.width})" for site in sites)
