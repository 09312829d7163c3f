"""What a comparison of two sets of texts says of every feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..binding import Dictionaries
from ..edits import Clamp
from ..model import Model
from ..steering.direction import Direction
from ..steering.features import feature_direction
from .made_with import MadeWith
from .significance import adjusted, welch


class Separated(NamedTuple):
    """A feature, and how well it separates: of several kinds of texts, in the one where it does so least."""

    site: str
    feature: int
    score: float  # share of the positives in which it is active, less that of the negatives
    positive: float  # the shares
    negative: float
    relative: float  # score over the larger share
    t: float  # Welch's, of the activations
    p: float  # one-tailed
    q: float  # adjusted for all features of the site (Benjamini and Hochberg)
    mean: float  # activation on the positives, those in which it is not active too
    density: float  # share of the tokens of a general text on which it is active; nan where there was none

    def __str__(self) -> str:
        return f"{self.site}/{self.feature}"


@dataclass(frozen=True, eq=False)
class Separation:
    """How well each feature of some sites tells positives from negatives; `separation` makes one.

    `active`, `mean` and `variance` have for every site the share of texts in which a feature is active, and
    the moments of its activations, (kind side feature), where side 0 is positive.
    """

    kinds: tuple[str, ...]
    counts: Int[Tensor, "kind side"]
    active: Mapping[str, Float[Tensor, "kind side feature"]]
    mean: Mapping[str, Float[Tensor, "kind side feature"]]
    variance: Mapping[str, Float[Tensor, "kind side feature"]]
    density: Mapping[str, Float[Tensor, " feature"]] | None = None
    max_density: float = 0.02
    fingerprint: str | None = None
    how: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.active)

    def score(self, site: str) -> Float[Tensor, " feature"]:
        """Share of positives less share of negatives, the least over the kinds."""
        return self._scores(site).amin(0)

    def relative(self, site: str) -> Float[Tensor, " feature"]:
        """The difference of the shares over the larger one, the least over the kinds; 0 if never active."""
        shares = self._at(self.active, site)
        larger = shares.amax(1)
        return (self._scores(site) / larger.where(larger > 0, 1)).amin(0)

    def welch(self, site: str) -> tuple[Float[Tensor, " feature"], Float[Tensor, " feature"]]:
        """Welch's t of the activations, and its one-tailed p; over kinds, the least t and the largest p."""
        found = [
            welch(*self._moments(site, kind, 0), *self._moments(site, kind, 1))
            for kind in range(len(self.kinds))
        ]
        return torch.stack([t for t, _ in found]).amin(0), torch.stack([p for _, p in found]).amax(0)

    def reversed(self) -> Separation:
        """With the sets exchanged: which features are active on the negatives."""
        flipped = {
            name: {site: x.flip(1) for site, x in getattr(self, name).items()}
            for name in ("active", "mean", "variance")
        }
        return replace(self, counts=self.counts.flip(1), **flipped)

    # Lists

    def top(self, site: str, n: int = 10) -> tuple[Separated, ...]:
        """The best features of a site, ties by t, without those that are too dense. At most `n`."""
        scores, (t, p) = self.score(site), self.welch(site)
        q = adjusted(torch.where(self.alive(site), p, torch.nan))
        allowed = self.alive(site) & ~self.dense(site)
        index = allowed.nonzero()[:, 0]
        order = index[t[index].argsort(descending=True, stable=True)]
        order = order[scores[order].argsort(descending=True, stable=True)][:n]
        relative, worst = self.relative(site), self._scores(site).argmin(0)
        density = None if self.density is None else self.density[site]
        return tuple(
            Separated(
                site=site,
                feature=i,
                score=float(scores[i]),
                positive=float(self.active[site][worst[i], 0, i]),
                negative=float(self.active[site][worst[i], 1, i]),
                relative=float(relative[i]),
                t=float(t[i]),
                p=float(p[i]),
                q=float(q[i]),
                mean=float(self._positive_mean(site)[i]),
                density=torch.nan if density is None else float(density[i]),
            )
            for i in order.tolist()
        )

    def best(self, n: int = 10) -> tuple[Separated, ...]:
        """The best features of all sites."""
        every = [feature for site in self.sites for feature in self.top(site, n)]
        return tuple(sorted(every, key=lambda f: (-f.score, -f.t))[:n])

    def table(self, n: int = 10) -> str:
        """The best features of all sites, one a line."""
        best = self.best(n)
        width = max([7, *(len(str(f)) for f in best)])
        lines = [f"{'feature':{width}}  score  active on +, -  relative        t        q  density"]
        for f in best:
            density = "" if self.density is None else f"{100 * f.density:6.2f} %"
            lines.append(
                f"{f!s:{width}}  {f.score:5.2f}  {f.positive:9.2f} {f.negative:4.2f}  {f.relative:8.2f}"
                f" {f.t:8.3g} {f.q:8.2g} {density}".rstrip()
            )
        return "\n".join(lines)

    def alive(self, site: str) -> Tensor:
        """Which features are active on any of the texts (feature)."""
        return self._at(self.active, site).amax((0, 1)) > 0

    def dense(self, site: str) -> Tensor:
        """Which features are active on too many tokens of the general text (feature)."""
        if self.density is None:
            return torch.zeros_like(self.alive(site))
        return self.density[site] > self.max_density

    def random(
        self, site: str, n: int, *, seed: int = 0, min_score: float = 0.0, without: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """Features of a site to compare with, drawn from those that are alive and separate by `min_score`.

        Too dense ones, and those in `without`, are not drawn. Raises ValueError where there are not so many.
        """
        allowed = self.alive(site) & ~self.dense(site) & (self.score(site) >= min_score)
        allowed[list(without)] = False
        pool = allowed.nonzero()[:, 0]
        if len(pool) < n:
            raise ValueError(
                f"There are {len(pool)} other features at {site} that are alive and score {min_score:g}, "
                f"not {n}."
            )
        generator = torch.Generator().manual_seed(seed)
        return tuple(pool[torch.randperm(len(pool), generator=generator)[:n]].tolist())

    # Steering

    def direction(
        self, model: Model, dictionaries: Dictionaries, site: str, n: int = 1, *, unit: bool = True
    ) -> Direction:
        """What the best `n` features of a site write: the sum of their decoder rows, each of norm 1.

        For `Add(direction, scale=...)`. With `unit=False` rows keep their norms. Raises ValueError for
        another model than the one compared, or where no feature is left.
        """
        self.check(model)
        best = self.top(site, n)
        if not best:
            raise ValueError(f"No feature at {site} is alive and not too dense.")
        amounts = {}
        for f in best:
            row = feature_direction(model, dictionaries, site, f.feature)[site]
            amounts[f.feature] = 1 / float(row.norm()) if unit else 1.0
        return feature_direction(model, dictionaries, site, amounts)

    def clamp(self, site: str, n: int = 1, *, times: float = 1.0) -> MadeWith | Clamp:
        """Holds the best `n` features of a site at `times` their mean on the positives."""
        values = {f.feature: times * f.mean for f in self.top(site, n)}
        if not values:
            raise ValueError(f"No feature at {site} is alive and not too dense.")
        clamp = Clamp({site: values})
        return clamp if self.fingerprint is None else MadeWith(clamp, self.fingerprint)

    def check(self, model: Model) -> Separation:
        """Itself. Raises ValueError where it was made with another model."""
        if self.fingerprint not in (None, model.fingerprint):
            raise ValueError(
                f"These features were compared in another model (fingerprint {str(self.fingerprint)[:8]}) "
                f"than this one ({model.fingerprint[:8]})."
            )
        return self

    def save(self, folder: str | Path) -> None:
        """Writes a folder of safetensors and JSON."""
        from .separation_files import save

        save(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Separation:
        """Reads what `save` wrote. Raises FileNotFoundError, or ValueError for what is damaged."""
        from .separation_files import load

        return load(folder)

    def __repr__(self) -> str:
        positives, negatives = self.counts.sum(0).tolist()
        sites = f"{len(self.sites)} site{'s' * (len(self.sites) != 1)}"
        kinds = f", {len(self.kinds)} kinds" if len(self.kinds) > 1 else ""
        return f"Separation({sites}{kinds}, {positives} positives and {negatives} negatives)"

    def _at(self, values: Mapping[str, Tensor], site: str) -> Tensor:
        if site not in values:
            raise LookupError(f"No features of {site!r} were compared; those of {', '.join(values)} were.")
        return values[site]

    def _scores(self, site: str) -> Float[Tensor, "kind feature"]:
        shares = self._at(self.active, site)
        return shares[:, 0] - shares[:, 1]

    def _moments(self, site: str, kind: int, side: int) -> tuple[Tensor, Tensor, int]:
        mean, variance = self._at(self.mean, site), self.variance[site]
        return mean[kind, side], variance[kind, side], int(self.counts[kind, side])

    def _positive_mean(self, site: str) -> Float[Tensor, " feature"]:
        """Over the positives of all kinds together."""
        weight = self.counts[:, 0].double() / self.counts[:, 0].sum()
        return weight @ self._at(self.mean, site)[:, 0]
