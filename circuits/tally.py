"""Effects of nodes, summed up over batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interventions.binding import Splice
from interventions.sites import Site

from .effects import Effects, SiteEffects
from .selection import Keep


class Tally:
    """Mean effects over examples, and their standard errors, in float64 on the CPU.

    With `n_pos` each position has its own nodes; without, effects are summed over positions first.
    """

    def __init__(self, bound: Mapping[Site, Splice], n_pos: int | None = None):
        self.n_pos = n_pos
        self.shapes = {s.name: (n_pos or 1, splice.n_features + 1) for s, splice in bound.items()}
        self.sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in self.shapes.items()}
        self.squares = {name: torch.zeros_like(total) for name, total in self.sums.items()}
        self.clean = self.patch = 0.0
        self.examples = 0

    def add(self, effects: Effects) -> None:
        for name, nodes in effects.items():
            self._add(name, nodes)
        self.examples += len(effects.clean)
        self.clean += effects.clean.double().sum().item()
        self.patch += torch.nan if effects.patch is None else effects.patch.double().sum().item()

    def _add(self, name: str, nodes: SiteEffects) -> None:
        batch, n_pos = nodes.error_effect.shape
        n_nodes = nodes.n_features + 1
        line = torch.arange(n_pos) if self.n_pos else torch.zeros(n_pos, dtype=torch.long)
        token, feature = nodes.token.cpu(), nodes.feature.cpu()
        token = torch.cat([token, torch.arange(batch * n_pos)])
        feature = torch.cat([feature, torch.full((batch * n_pos,), nodes.n_features)])
        effect = torch.cat([nodes.effect.cpu().double(), nodes.error_effect.cpu().double().flatten()])
        key = ((token // n_pos) * self.shapes[name][0] + line[token % n_pos]) * n_nodes + feature
        key, inverse = key.unique(return_inverse=True)
        of_example = torch.zeros(len(key), dtype=torch.float64).index_add_(0, inverse, effect)
        node = key % (self.shapes[name][0] * n_nodes)
        self.sums[name].view(-1).index_add_(0, node, of_example)
        self.squares[name].view(-1).index_add_(0, node, of_example.square())

    def mean(self, site: str) -> Float[Tensor, "pos node"]:
        return self.sums[site] / self.examples

    def error(self, site: str) -> Float[Tensor, "pos node"]:
        """The standard error of the mean; nan for a single example."""
        return standard_error(self.mean(site), self.squares[site], self.examples)

    def kept(self, rule: Keep) -> dict[str, Bool[Tensor, "*pos node"]]:
        """The nodes that a rule keeps, out of those of all sites together.

        Raises:
            ValueError: none are; the largest score is named.
        """
        means = {site: self.mean(site) for site in self.sums}
        flat = torch.cat([mean.flatten() for mean in means.values()])
        chosen = rule(flat)
        if not chosen.any():
            site, mean = max(means.items(), key=lambda item: item[1].abs().max().item())
            raise ValueError(
                f"No node is kept by {rule}: the largest effect is {mean.abs().max():.3g}, at {site}."
            )
        masks = {}
        for site, part in zip(means, chosen.split([m.numel() for m in means.values()]), strict=True):
            mask = part.view(self.shapes[site])
            masks[site] = mask if self.n_pos else mask[0]
        return masks


def standard_error(mean: Tensor, squares: Tensor, n: int) -> Tensor:
    """Of a mean over n values whose squares add up to `squares`."""
    if n < 2:
        return torch.full_like(mean, torch.nan)
    return ((squares / n - mean.square()).clamp(min=0) / (n - 1)).sqrt()
