"""Probes at several sites, and how well each reads its labels off examples that were held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..sites import Site
from ..steering.confidence import Estimate
from .activations import Activations
from .examples import plain
from .files import load, save
from .mlp_probe import MLPProbe
from .probe import Probe
from .scores import auroc_interval


def earliest(aurocs: Mapping[str, float], share: float = 0.95) -> str:
    """The first site whose AUROC is above chance by at least `share` of what the best one's is; where none
    is above chance, the best one.

    >>> earliest({"resid.0": 0.55, "resid.1": 0.89, "resid.2": 0.9})
    'resid.1'
    """
    best = max(aurocs, key=lambda site: aurocs[site])
    least = share * (aurocs[best] - 0.5)
    return next((site for site, value in aurocs.items() if value - 0.5 >= max(least, 0)), best)


@dataclass(frozen=True, eq=False)
class SiteProbes(Mapping[str, Probe]):
    """A probe at each of some sites, in the order of the forward pass: a mapping from site to probe.

    `auroc`, `accuracy` and `calibration` are of the examples held out, with bootstrap intervals; `fitted` is
    the AUROC on the examples it was fitted to.
    """

    probes: Mapping[str, Probe]
    auroc: Mapping[str, Estimate]
    accuracy: Mapping[str, float]
    calibration: Mapping[str, float]
    fitted: Mapping[str, float]
    fingerprint: str | None = None
    how: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.probes:
            raise ValueError("There are probes for at least one site.")
        object.__setattr__(self, "how", plain(self.how))

    def __getitem__(self, site: str | Site) -> Probe:
        try:
            return self.probes[str(site)]
        except KeyError:
            raise KeyError(f"No probe at {str(site)!r}; there are some at {', '.join(self)}.") from None

    def __contains__(self, site: object) -> bool:
        return str(site) in self.probes

    def __iter__(self) -> Iterator[str]:
        return iter(self.probes)

    def __len__(self) -> int:
        return len(self.probes)

    def __repr__(self) -> str:
        best = self.best
        sites = f"{len(self)} site{'s' * (len(self) != 1)}"
        return (
            f"SiteProbes({self.how.get('recipe')}, {sites}; best {best}, AUROC {self.auroc[best].mean:.3f})"
        )

    def __str__(self) -> str:
        return self.table()

    @property
    def best(self) -> str:
        """The site of the highest held-out AUROC, the first of several."""
        return max(self, key=lambda site: self.auroc[site].mean)

    @property
    def earliest_informative(self) -> str:
        """The first site whose AUROC is above .5 by at least 95 % of what the best one's is.

        The earliest informative layer of Mallen et al. 2023 (arXiv 2312.01037), by examples held out of the
        context of training, so that no label of another context is used.
        """
        return earliest({site: self.auroc[site].mean for site in self})

    def scores(self, activations: Mapping[str, Tensor]) -> Float[Tensor, "example site"]:
        """What each site's probe ranks examples by: logits, or of contrast pairs the first side's above the
        second's, (example site)."""
        self._fits(activations)
        return torch.stack([probe.scores(activations[site]) for site, probe in self.items()], dim=-1)

    def evaluate(
        self, activations: Activations, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> dict[str, Estimate]:
        """The AUROC of each site's probe on other examples, such as ones of another context.

        Raises:
            ValueError: no labels or of one class, activations of another model, or of other widths.
            KeyError: a site without activations.
        """
        if None not in (self.fingerprint, activations.fingerprint) and (
            self.fingerprint != activations.fingerprint
        ):
            raise ValueError(
                "These activations are of another model than the probes; dataclasses.replace(activations, "
                "fingerprint=None) lets any do."
            )
        scores = self.scores(activations)
        return {
            site: auroc_interval(
                scores[:, i],
                activations.labelled,
                confidence=confidence,
                resamples=resamples,
                seed=seed,
                groups=activations.groups,
            )
            for i, site in enumerate(self)
        }

    def table(self) -> str:
        """A line for each site; `<` marks the earliest informative one, `*` the best."""
        width = max(len("site"), *(len(site) for site in self))
        lines = [f"{'site':<{width}}  AUROC, held out       fitted  accuracy  calibration error"]
        for site in self:
            found = self.auroc[site]
            marks = "*" * (site == self.best) + "<" * (site == self.earliest_informative)
            interval = f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
            line = f"{site:<{width}}  {interval}  {self.fitted[site]:>6.3f}  {self.accuracy[site]:>8.3f}"
            lines.append(f"{line}  {self.calibration[site]:>17.3f} {marks}".rstrip())
        return "\n".join([*lines, "", "* is the best site, < the earliest informative one."])

    def save(self, folder: str | Path) -> None:
        """Writes `site_probes.json` and a safetensors file beside it, which `load` reads back exactly."""
        tensors = {}
        for i, probe in enumerate(self.values()):
            tensors |= {f"{i}.{name}": x for name, x in probe.tensors().items()}
        entries = [
            {
                "site": site,
                "how": dict(probe.how),
                "auroc": _written(self.auroc[site]),
                "accuracy": self.accuracy[site],
                "calibration": self.calibration[site],
                "fitted": self.fitted[site],
            }
            for site, probe in self.items()
        ]
        about = {"fingerprint": self.fingerprint, "how": dict(self.how), "sites": entries}
        save(folder, "site_probes", tensors, about)

    @classmethod
    def load(cls, folder: str | Path) -> SiteProbes:
        """What `save` wrote; see `Probe.load` for errors."""
        tensors, about = load(folder, "site_probes")
        sites = about["sites"]
        named = {
            what: {entry["site"]: entry[what] for entry in sites}
            for what in ("accuracy", "calibration", "fitted")
        }
        return cls(
            probes={entry["site"]: _probe(tensors, f"{i}.", entry["how"]) for i, entry in enumerate(sites)},
            auroc={entry["site"]: _read(entry["auroc"]) for entry in sites},
            fingerprint=about["fingerprint"],
            how=about["how"],
            **named,
        )

    def _fits(self, activations: Mapping[str, Tensor]) -> None:
        for site, probe in self.items():
            if (width := activations[site].shape[-1]) != probe.width:
                raise ValueError(
                    f"At {site} activations have width {width}, but the probe reads {probe.width}."
                )


def _probe(tensors: Mapping[str, Tensor], prefix: str, how: Mapping[str, Any]) -> Any:
    mine = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    return Probe(**mine, how=how) if "bias" in mine else MLPProbe.of_tensors(mine, how)


def _written(estimate: Estimate) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {key: None if value != value else value for key, value in asdict(estimate).items()}


def _read(entry: Mapping[str, Any]) -> Estimate:
    low, high = (float("nan") if entry[key] is None else entry[key] for key in ("low", "high"))
    return Estimate(entry["mean"], low, high, entry["n"])
