"""How an effect grows with the strength of an intervention, beside what else it does and its controls."""

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
from .choices import Prompting
from .columns import aligned
from .confidence import Estimate, bootstrap
from .outcomes import Kept, Key, Measure, Outcome, Trial, check_multipliers, finished, named, outcomes, save
from .randomised import randomised

STEERED, PROMPTED, RANDOM = "steered", "prompted", "random"
_KIND = "dose response"
Steer = Callable[[float], Intervention]


@dataclass(frozen=True)
class DoseResponse:
    """What measures give at every multiplier, for each item, with the controls.

    Arms are `steered`; `random` (of directions of the same norm, one for each seed), the names of other
    controls, and `prompted`, which has no multiplier. Multiplier 0 is the unsteered model, the same in all.
    """

    multipliers: tuple[float, ...]
    outcomes: Mapping[Key, Outcome]
    random: int  # how many directions
    controls: tuple[str, ...]
    prompted: bool
    fingerprint: str

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(self.outcomes[STEERED, 0.0].values)

    @property
    def levels(self) -> tuple[float, ...]:
        """The multipliers without 0."""
        return tuple(m for m in self.multipliers if m)

    @property
    def arms(self) -> tuple[str, ...]:
        """All that were run, with `random` for all random directions."""
        random = [RANDOM] if self.random else []
        return (STEERED, *random, *self.controls, *([PROMPTED] if self.prompted else []))

    def values(
        self, measure: str, multiplier: float = 0.0, arm: str = STEERED
    ) -> Float[Tensor, " item"] | Float[Tensor, "run item"]:
        """The numbers per item; of `random` for each direction (run item).

        Raises LookupError for a measure, a multiplier or an arm that is not among them.
        """
        if measure not in self.measures:
            raise LookupError(f"No measure {measure!r}; there are {', '.join(self.measures)}.")
        if arm == RANDOM and self.random:
            runs = [self._outcome(f"{RANDOM} {i}", multiplier) for i in range(self.random)]
            return torch.stack([run.values[measure] for run in runs])
        return self._outcome(arm, multiplier).values[measure]

    def texts(self, multiplier: float = 0.0, arm: str = STEERED, name: str | None = None) -> tuple[str, ...]:
        """What the model wrote for a measure that writes; of `random` for its first direction.

        `name` is that of the texts, where there are several.
        """
        found = self._outcome(f"{RANDOM} 0" if arm == RANDOM else arm, multiplier).texts
        name = next(iter(found)) if name is None and len(found) == 1 else name or "texts"
        if name not in found:
            raise LookupError(f"No texts {name!r}; there are {', '.join(found) or 'none'}.")
        return found[name]

    def estimate(
        self, measure: str, multiplier: float = 0.0, arm: str = STEERED, *, confidence: float = 0.95
    ) -> Estimate:
        """The mean over items (and random directions) with its bootstrap interval."""
        return bootstrap(self.values(measure, multiplier, arm), confidence=confidence)

    def effect(
        self, measure: str, multiplier: float, arm: str = STEERED, *, confidence: float = 0.95
    ) -> Estimate:
        """The mean change against the unsteered model on the same items, with its interval."""
        change = self.values(measure, multiplier, arm) - self.values(measure)
        return bootstrap(change, confidence=confidence)

    def beyond_random(self, measure: str, multiplier: float, *, confidence: float = 0.95) -> Estimate:
        """How much more it is than with random directions, on the same items, with its interval.

        Raises LookupError where no random direction was run.
        """
        if not self.random:
            raise LookupError("No random direction was run: pass random=3 or so.")
        return bootstrap(
            self.values(measure, multiplier) - self.values(measure, multiplier, RANDOM), confidence=confidence
        )

    def table(self, measures: Sequence[str] | None = None, *, confidence: float = 0.95) -> str:
        """Means with intervals: a block for each measure, with a row for each arm."""
        return self._blocks(measures, partial(self.estimate, confidence=confidence), "{}, {} items")

    def changes(self, measures: Sequence[str] | None = None, *, confidence: float = 0.95) -> str:
        """The same of the changes against the unsteered model, whose intervals are of differences on the same
        items."""
        return self._blocks(measures, partial(self.effect, confidence=confidence), "change of {}, {} items")

    def __str__(self) -> str:
        return self.table()

    def save(self, folder: str | Path) -> None:
        """Writes it into a folder: JSON and safetensors."""
        save(folder, _KIND, Kept(self.fingerprint, "", self._plan(), self.outcomes, {}))

    @staticmethod
    def load(folder: str | Path, *, model: Model | None = None) -> DoseResponse:
        """One that `save` wrote, or that a run has left in its folder.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: damaged, not finished, or not of `model`.
        """
        kept = finished(folder, _KIND, model, _keys)
        return _made(kept.model, kept.outcomes, kept.plan)

    # Private

    def _outcome(self, arm: str, multiplier: float) -> Outcome:
        if arm == PROMPTED and self.prompted:
            return self.outcomes[PROMPTED, 0.0]
        known = {*self.arms, *(f"{RANDOM} {i}" for i in range(self.random))}
        if arm not in known:
            raise LookupError(f"No arm {arm!r}; there are {', '.join(self.arms)}.")
        if float(multiplier) not in self.multipliers:
            listed = ", ".join(f"{m:g}" for m in self.multipliers)
            raise LookupError(f"No multiplier {multiplier:g}; there are {listed}.")
        return self.outcomes[(arm, float(multiplier)) if multiplier else (STEERED, 0.0)]

    def _plan(self) -> dict[str, Any]:
        return {
            "multipliers": list(self.multipliers), "random": self.random, "controls": list(self.controls),
            "prompted": self.prompted,
        }  # fmt: skip

    def _blocks(self, measures: Sequence[str] | None, of: Callable[..., Estimate], head: str) -> str:
        return "\n\n".join(
            self._block(of, measure, head.format(measure, self.values(measure).shape[-1]))
            for measure in measures or self.measures
        )

    def _block(self, of: Callable[..., Estimate], measure: str, head: str) -> str:
        rows = [[head, *(f"{m:g}" for m in self.multipliers)]]
        for arm in self.arms:
            at = (0.0,) if arm == PROMPTED else self.multipliers if arm == STEERED else self.levels
            cells = [_cell(of(measure, m, arm)) if m in at else "" for m in self.multipliers]
            rows.append([arm, *cells])
        return aligned(rows)


def dose_response(
    model: Model,
    steer: Steer,
    multipliers: Sequence[float],
    measures: Measure | Sequence[Measure] | Mapping[str, Measure],
    *,
    random: int = 3,
    controls: Mapping[str, Steer] | None = None,
    prompting: Prompting | None = None,
    dictionaries: Dictionaries | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> DoseResponse:
    """What measures give under `steer(m)` for every multiplier m, and under its controls.

    `steer` makes the intervention of one strength, such as `lambda m: Add(direction, scale=m)`. A measure
    takes the model and gives a number per item, or several by name (`Matching`, `Preference`, `Divergence`,
    `Generated`, or a function). Measured as well are the unsteered model (multiplier 0, always), the same
    with `random` random directions of the same norm, with each of `controls` (a direction from shuffled
    labels, say) and, if `prompting` is given, the unsteered model with that change to every prompt.

    Every measure runs once for each arm and multiplier. With a `folder`, each trial is kept there as soon as
    it is done, and a run with the same folder goes on where the last one was ended; multipliers and controls
    may be added. `progress` shows a bar, by default on a terminal.

    Raises:
        TypeError: what is no measure, or no intervention; `random` where no vector is added.
        ValueError: no multiplier beside 0; a measure that cannot be prompted; a folder of another run.
    """
    levels = check_multipliers(multipliers)
    taken, controls = named(measures), dict(controls or {})
    if reserved := [name for name in controls if name == STEERED or name.split(" ")[0] in (RANDOM, PROMPTED)]:
        raise ValueError(f"A control cannot have the name {reserved[0]!r}; call it something else.")
    arms: dict[str, Steer] = {STEERED: steer}
    arms |= {f"{RANDOM} {seed}": partial(_random, steer, seed) for seed in range(random)} | controls
    trials = [Trial((STEERED, 0.0), None, taken)]
    if prompting is not None:
        trials.append(Trial((PROMPTED, 0.0), None, _prompted(taken, prompting)))
    trials += [Trial((arm, m), made(make, m), taken) for arm, make in arms.items() for m in levels if m]
    plan = {
        "multipliers": list(levels), "random": random, "controls": list(controls),
        "prompted": prompting is not None,
    }  # fmt: skip
    found = outcomes(
        model, trials, kind=_KIND, plan=plan, dictionaries=dictionaries, folder=folder, progress=progress
    )
    return _made(model.fingerprint, found, plan)


def made(steer: Steer, multiplier: float) -> Intervention:
    """The intervention of one strength, checked."""
    if not callable(steer) or isinstance(steer, Intervention):
        raise TypeError(
            "Give a callable from multipliers to interventions, such as lambda m: Add(direction, scale=m), "
            f"not {type(steer).__name__}."
        )
    found = steer(multiplier)
    if not isinstance(found, Intervention):
        raise TypeError(f"At multiplier {multiplier:g} there is no intervention but {type(found).__name__}.")
    return found


def _random(steer: Steer, seed: int, multiplier: float) -> Intervention:
    return randomised(made(steer, multiplier), seed)


def _prompted(measures: Mapping[str, Measure], change: Prompting) -> dict[str, Measure]:
    found = {}
    for name, measure in measures.items():
        if not hasattr(measure, "prompted"):
            raise ValueError(
                f"The measure {name!r} cannot be asked with other prompts: give it a method "
                "`prompted(change)`, or leave out `prompting`."
            )
        found[name] = measure.prompted(change)  # type: ignore[attr-defined]
    return found


def _made(fingerprint: str, found: Mapping[Key, Outcome], plan: Mapping[str, Any]) -> DoseResponse:
    return DoseResponse(
        tuple(plan["multipliers"]),
        found,
        plan["random"],
        tuple(plan["controls"]),
        plan["prompted"],
        fingerprint,
    )


def _keys(plan: Mapping[str, Any]) -> list[Key]:
    arms = [STEERED, *(f"{RANDOM} {i}" for i in range(plan["random"])), *plan["controls"]]
    keys = [(STEERED, 0.0), *((arm, m) for arm in arms for m in plan["multipliers"] if m)]
    return [*keys, (PROMPTED, 0.0)] if plan["prompted"] else keys


def _cell(found: Estimate) -> str:
    if found.low != found.low:
        return f"{found.mean:.3g}"
    return f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"
