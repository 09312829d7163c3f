"""Whether owning a dictionary helps: the best without it, and the best with it, both chosen by validation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..probing.examples import plain
from ..steering.columns import aligned
from ..steering.confidence import Estimate
from ..writing import write
from .paired import mean_auroc, mean_difference
from .trials import Trial, Tried

_FORMAT, _VERSION = "interventions.quiver", 1


@dataclass(frozen=True)
class Comparison:
    """Mean test AUROCs over some trials: of the best dense baseline, of the best of these and the probes of
    the dictionary, what the difference is, and of the best probe of the dictionary alone.

    `picked` of the `n` trials chose the dictionary. Every choice is by validation.
    """

    dense: Estimate
    both: Estimate
    difference: Estimate
    alone: Estimate
    picked: int
    n: int


@dataclass(frozen=True)
class Quiver:
    """Trials of many methods in many situations: a quiver of arrows (Kantamneni et al. 2025, arXiv
    2502.16681).

    The dictionary helps as far as one who owns it, and chooses by validation among its probes and the dense
    baselines, does better on test texts than one who chooses among the baselines. Of equal ones a baseline
    is chosen. `how` says in plain JSON what was done, with notes under "notes".

    Raises:
        ValueError: no trials, or one without a dense baseline or without a probe of the dictionary.
    """

    trials: tuple[Trial, ...]
    how: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trials", tuple(self.trials))
        object.__setattr__(self, "how", plain(self.how))
        if not self.trials:
            raise ValueError("There are no trials to compare.")
        for one in self.trials:
            for sparse, what in ((False, "dense baseline"), (True, "probe of the dictionary")):
                if one.best(sparse=sparse) is None:
                    raise ValueError(f"The {one.regime} trial on {one.data} has no {what} to compare.")

    def __repr__(self) -> str:
        return f"Quiver({len(self.trials)} trials: {', '.join(self.regimes)})"

    def __str__(self) -> str:
        return self.table()

    @property
    def regimes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.regime for one in self.trials))

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.site for one in self.trials))

    def where(self, keep: Callable[[Trial], bool]) -> Quiver:
        """The trials that `keep` says yes to. Raises ValueError where there is none."""
        return replace(self, trials=tuple(one for one in self.trials if keep(one)))

    def of(self, regime: str, *, site: str | None = None) -> Quiver:
        """The trials of one regime. Raises LookupError where there are none."""
        if regime not in self.regimes or (site is not None and site not in self.sites):
            raise LookupError(
                f"No trials of {regime!r}{'' if site is None else f' at {site!r}'}; there are "
                f"{', '.join(self.regimes)} at {', '.join(self.sites)}."
            )
        return self.where(lambda one: one.regime == regime and (site is None or one.site == site))

    def comparison(self, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Comparison:
        """The best without the dictionary beside the best with it, over all trials."""
        dense, both, alone = (self._picked(sparse) for sparse in (False, None, True))
        options: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
        return Comparison(
            dense=mean_auroc(self.trials, dense, **options),
            both=mean_auroc(self.trials, both, **options),
            difference=mean_difference(self.trials, both, dense, **options),
            alone=mean_auroc(self.trials, alone, **options),
            picked=sum(one.sparse for one in both),
            n=len(self.trials),
        )

    def curve(self) -> dict[float, Comparison]:
        """The comparison at each value of what a regime varies. Raises ValueError for several regimes, and
        for one that varies nothing."""
        values = sorted({one.value for one in self.trials if one.value is not None})
        if len(self.regimes) > 1 or not values:
            raise ValueError(
                f"A curve is of one regime that varies something, not {', '.join(self.regimes)}."
            )
        return {x: self.where(lambda one, x=x: one.value == x).comparison() for x in values}

    def methods(self) -> dict[str, tuple[float | None, Estimate]]:
        """The mean AUROC of each method on texts held out for validation, and on test texts."""
        found: dict[str, list[tuple[Trial, Tried]]] = {}
        for trial in self.trials:
            for one in trial.tried:
                found.setdefault(one.method, []).append((trial, one))
        means = {}
        for name, pairs in found.items():
            known = [one.validation for _, one in pairs if one.validation is not None]
            held_out = sum(known) / len(known) if known else None
            trials, tried = zip(*pairs, strict=True)
            means[name] = held_out, mean_auroc(trials, tried)
        return means

    def table(self) -> str:
        """A line for each site and regime: the best baseline, and beside it what the dictionary adds."""
        head = ["", "trials", "best dense", "with dictionary", "difference", "picked", "dictionary alone"]
        rows = [head]
        for site in self.sites:
            for regime in self.regimes:
                some = [one for one in self.trials if (one.site, one.regime) == (site, regime)]
                if some:
                    found = Quiver(tuple(some)).comparison()
                    rows.append([f"{site} {regime}".strip(), *_cells(found)])
        notes = ["", "Mean test AUROC with 95 % intervals; what is picked, by validation alone."]
        return "\n".join([aligned(rows), *notes, *self.how.get("notes", [])])

    def method_table(self) -> str:
        """A line for each method: its mean AUROC on validation texts and on test texts, over all trials."""
        rows = [["method", "validation", "test AUROC"]]
        for name, (held_out, test) in self.methods().items():
            rows.append([name, "" if held_out is None else f"{held_out:.3f}", _interval(test)])
        return "\n".join([aligned(rows), *self.how.get("notes", [])])

    def save(self, path: str | Path) -> Path:
        """Writes JSON, which `load` reads back exactly."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"format": _FORMAT, "version": _VERSION, "how": dict(self.how)}
        lines = ",\n".join(json.dumps(one.written(), allow_nan=False) for one in self.trials)
        write(path, f'{json.dumps(about)[:-1]}, "trials": [\n{lines}\n]}}\n'.encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Quiver:
        """What `save` wrote.

        Raises:
            FileNotFoundError: no file there.
            ValueError: a file that is incomplete, of another kind or of another version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            found = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            raise ValueError(f"{path} is not complete JSON.") from None
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise ValueError(f"{path} is not of the format {_FORMAT}.")
        if found.get("version") != _VERSION:
            raise ValueError(f"{path} has version {found.get('version')!r}; this release reads {_VERSION}.")
        try:
            return cls(tuple(Trial.read(one) for one in found["trials"]), found["how"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} does not hold trials: {error}.") from None

    def _picked(self, sparse: bool | None) -> list[Tried]:
        found = [one.best(sparse=sparse) for one in self.trials]
        return [one for one in found if one is not None]


def _cells(found: Comparison) -> list[str]:
    return [
        str(found.n),
        _interval(found.dense),
        _interval(found.both),
        f"{found.difference.mean:+.3f} [{found.difference.low:+.3f}, {found.difference.high:+.3f}]",
        f"{found.picked} of {found.n}",
        _interval(found.alone),
    ]


def _interval(found: Estimate) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
