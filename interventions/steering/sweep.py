"""Where an intervention works: the effect at every site and multiplier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..binding import Dictionaries
from ..intervention import Intervention
from ..model import Model
from ..sites import Site
from .columns import aligned
from .confidence import Estimate, bootstrap
from .dose_response import RANDOM, STEERED, made
from .outcomes import Kept, Key, Measure, Outcome, Trial, check_multipliers, finished, named, outcomes, save
from .randomised import randomised

_KIND = "layer sweep"


@dataclass(frozen=True)
class LayerSweep:
    """What measures give for each item with an intervention at every one of some sites, by itself."""

    sites: tuple[str, ...]
    multipliers: tuple[float, ...]
    outcomes: Mapping[Key, Outcome]
    random: int  # how many directions at each site
    fingerprint: str

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(self.outcomes[STEERED, 0.0].values)

    def values(
        self, measure: str, site: str | Site, multiplier: float, *, random: bool = False
    ) -> Float[Tensor, " item"] | Float[Tensor, "run item"]:
        """The numbers per item; with random directions for each of them (run item).

        Raises LookupError for what was not measured.
        """
        if measure not in self.measures:
            raise LookupError(f"No measure {measure!r}; there are {', '.join(self.measures)}.")
        if str(site) not in self.sites:
            raise LookupError(f"No site {str(site)!r}; there are {', '.join(self.sites)}.")
        if float(multiplier) not in self.multipliers:
            listed = ", ".join(f"{m:g}" for m in self.multipliers)
            raise LookupError(f"No multiplier {multiplier:g}; there are {listed}.")
        if random and not self.random:
            raise LookupError("No random direction was run: pass random=1 or more.")
        arms = [f"{site} {RANDOM} {i}" for i in range(self.random)] if random else [str(site)]
        keys = [(arm, float(multiplier)) if multiplier else (STEERED, 0.0) for arm in arms]
        found = [self.outcomes[key].values[measure] for key in keys]
        return torch.stack(found) if random else found[0]

    def unsteered(self, measure: str) -> Float[Tensor, " item"]:
        """The numbers per item without any intervention."""
        return self.values(measure, self.sites[0], 0.0)

    def effect(
        self,
        measure: str,
        site: str | Site,
        multiplier: float,
        *,
        random: bool = False,
        confidence: float = 0.95,
    ) -> Estimate:
        """The mean change against the unsteered model on the same items, with its bootstrap interval."""
        change = self.values(measure, site, multiplier, random=random) - self.unsteered(measure)
        return bootstrap(change, confidence=confidence)

    def grid(self, measure: str) -> Float[Tensor, "site multiplier"]:
        """The mean change at every site and multiplier."""
        base = self.unsteered(measure)
        return torch.tensor(
            [
                [(self.values(measure, site, m) - base).nanmean().item() for m in self.multipliers]
                for site in self.sites
            ],
            dtype=torch.float64,
        )

    def best(
        self, measure: str, *, allowed: Callable[[str, float], bool] = lambda site, multiplier: True
    ) -> tuple[str, float]:
        """The site and the multiplier with the largest mean, of those that are `allowed`.

        It is chosen on these items: report its effect on others.

        Raises:
            ValueError: none is allowed.
        """
        grid = self.grid(measure)
        found = {
            (site, m): grid[i, j].item()
            for i, site in enumerate(self.sites)
            for j, m in enumerate(self.multipliers)
            if m and allowed(site, m) and grid[i, j].isfinite()
        }
        if not found:
            raise ValueError("There is no site and multiplier that is allowed.")
        return max(found, key=found.__getitem__)

    def table(self, measure: str | None = None) -> str:
        """The mean change of a measure, by default the first, with intervals."""
        measure = measure or self.measures[0]
        shown = [m for m in self.multipliers if m]
        head = f"change of {measure}, {len(self.unsteered(measure))} items"
        rows = [[head, *(f"{m:g}" for m in shown)]]
        for random in (False, True) if self.random else (False,):
            for site in self.sites:
                found = [self.effect(measure, site, m, random=random) for m in shown]
                cells = [f"{e.mean:+.3g} [{e.low:+.3g}, {e.high:+.3g}]" for e in found]
                rows.append([f"{site}{' random' if random else ''}", *cells])
        return aligned(rows)

    def __str__(self) -> str:
        return self.table()

    def save(self, folder: str | Path) -> None:
        """Writes it into a folder: JSON and safetensors."""
        plan = {"sites": list(self.sites), "multipliers": list(self.multipliers), "random": self.random}
        save(folder, _KIND, Kept(self.fingerprint, "", plan, self.outcomes, {}))

    @staticmethod
    def load(folder: str | Path, *, model: Model | None = None) -> LayerSweep:
        """One that `save` wrote, or that a run has left in its folder.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: damaged, not finished, or not of `model`.
        """
        kept = finished(folder, _KIND, model, _keys)
        return _made(kept.model, kept.outcomes, kept.plan)


def layer_sweep(
    model: Model,
    steer: Callable[[str, float], Intervention],
    sites: Sequence[str | Site],
    multipliers: Sequence[float],
    measures: Measure | Sequence[Measure] | Mapping[str, Measure],
    *,
    random: int = 1,
    dictionaries: Dictionaries | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> LayerSweep:
    """What measures give under `steer(site, m)` at every site and multiplier m, one at a time.

    `steer` makes the intervention, such as `lambda site, m: Add(direction.only(site), scale=m)`. The
    unsteered model is measured once. `random` directions of the same norm are measured at every site and
    multiplier. Measures, `folder` and `progress` are those of `dose_response`.

    Raises:
        TypeError: what is no measure, or no intervention; `random` where no vector is added.
        ValueError: no site, or no multiplier beside 0; a folder of another run.
        LookupError: a site that the model has not.
    """
    if isinstance(sites, str) or not sites:
        raise ValueError("Give a sequence of sites, at least one.")
    names = tuple(dict.fromkeys(model.site(site).name for site in sites))
    levels, taken = check_multipliers(multipliers), named(measures)
    trials = [Trial((STEERED, 0.0), None, taken)]
    for site in names:
        for m in levels:
            if m:
                one = made(partial(steer, site), m)
                trials.append(Trial((site, m), one, taken))
                trials += [
                    Trial((f"{site} {RANDOM} {i}", m), randomised(one, i), taken) for i in range(random)
                ]
    plan: dict[str, Any] = {"sites": list(names), "multipliers": list(levels), "random": random}
    found = outcomes(
        model, trials, kind=_KIND, plan=plan, dictionaries=dictionaries, folder=folder, progress=progress
    )
    return _made(model.fingerprint, found, plan)


def _made(fingerprint: str, found: Mapping[Key, Outcome], plan: Mapping[str, Any]) -> LayerSweep:
    sites, multipliers = tuple(plan["sites"]), tuple(plan["multipliers"])
    return LayerSweep(sites, multipliers, found, plan["random"], fingerprint)


def _keys(plan: Mapping[str, Any]) -> list[Key]:
    runs = ["", *(f" {RANDOM} {i}" for i in range(plan["random"]))]
    arms = [f"{site}{run}" for site in plan["sites"] for run in runs]
    return [(STEERED, 0.0), *((arm, m) for arm in arms for m in plan["multipliers"] if m)]
