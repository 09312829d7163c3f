"""What came of SHIFT beside its baselines: a table, and a file; and the mean over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interventions.steering.columns import aligned
from interventions.steering.confidence import Estimate

from .saved import described, load, save
from .scores import Group, Row, Scores, interval, over_seeds

_WILSON = "95 % intervals are Wilson's, over texts; of draws at random, over these too."
_STUDENT = "95 % intervals are Student's, over {n} seeds."


@dataclass(frozen=True)
class Report:
    """What each method says of the same test texts.

    `verdicts` counts what the judge said: "spurious", "kept". `ablated` says how many features were ablated
    at each site. `config` is what it was made with, in plain JSON.
    """

    scores: tuple[Scores, ...]
    verdicts: Mapping[str, int] = field(default_factory=dict)
    ablated: Mapping[str, int] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check([one.method for one in self.scores])

    def __getitem__(self, method: str) -> Scores:
        for one in self.scores:
            if one.method == method:
                return one
        raise KeyError(f"No method {method!r}; there are {', '.join(self.methods)}.")

    def __repr__(self) -> str:
        return f"Report({len(self.scores)} methods, {sum(self.ablated.values())} features ablated)"

    def __str__(self) -> str:
        return self.table()

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(one.method for one in self.scores)

    @property
    def rows(self) -> tuple[Row, ...]:
        """What a table or a picture shows of each method."""
        return tuple(one.row for one in self.scores)

    def table(self, *, groups: bool = True) -> str:
        """Accuracy on the intended and on the spurious label and in the worst group, with intervals; what
        each method needs to know; and every group."""
        lines = [_main(self.rows)]
        if groups:
            lines += ["", _groups(self.rows)]
        lines += ["", *self._said(), _WILSON]
        return "\n".join(lines)

    def save(self, path: str | Path) -> Path:
        """Writes one JSON file, whole or not at all."""
        said = {
            "scores": [one.to_json() for one in self.scores],
            "verdicts": dict(self.verdicts),
            "ablated": dict(self.ablated),
            "config": dict(self.config),
        }
        return save(path, "report", said)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """What `save` wrote; see `saved.load` for errors."""
        said = load(path, "report")
        with described(path, "report"):
            scores = tuple(map(Scores.from_json, said["scores"]))
            return cls(scores, said["verdicts"], said["ablated"], said["config"])

    @staticmethod
    def across(reports: Sequence[Report]) -> Across:
        """The mean over reports of several seeds."""
        return Across(tuple(reports))

    def _said(self) -> list[str]:
        found = []
        if self.verdicts:
            counts = ", ".join(f"{n} {name}" for name, n in self.verdicts.items())
            found.append(f"Verdicts: {counts}.")
        if self.ablated:
            sites = ", ".join(f"{n} at {site}" for site, n in self.ablated.items())
            n = sum(self.ablated.values())
            found.append(f"Ablated: {n} feature{'s' * (n != 1)}, {sites}.")
        if self.scores:
            found.append(f"Tested on {self.scores[0].n} texts.")
        return found


@dataclass(frozen=True)
class Across:
    """Reports of the same methods with several seeds: means, and Student's intervals over seeds.

    Raises:
        ValueError: no reports, or some of other methods or groups, of another model or site than the first.
    """

    reports: tuple[Report, ...]

    def __post_init__(self) -> None:
        if not self.reports:
            raise ValueError("There are no reports to take the mean of.")
        first = self.reports[0]
        for i, other in enumerate(self.reports[1:], start=1):
            for what, name in (("model", "model"), ("at", "site")):
                if first.config.get(what) != other.config.get(what):
                    raise ValueError(
                        f"Report {i} is of another {name} than the first: {other.config.get(what)!r} and "
                        f"{first.config.get(what)!r}; the mean is over seeds of the same."
                    )
            if other.methods != first.methods:
                different = sorted(set(first.methods) ^ set(other.methods)) or list(other.methods)
                raise ValueError(
                    f"Report {i} has other methods than the first: {', '.join(different)}; the mean is of "
                    "the same ones in the same order."
                )
            if {g for one in other.scores for g in one.groups} != {
                g for one in first.scores for g in one.groups
            }:
                raise ValueError(f"Report {i} is of other groups of texts than the first.")

    def __repr__(self) -> str:
        return f"Across({len(self.reports)} reports, {len(self.reports[0].scores)} methods)"

    def __str__(self) -> str:
        return self.table()

    @property
    def methods(self) -> tuple[str, ...]:
        return self.reports[0].methods

    @property
    def rows(self) -> tuple[Row, ...]:
        """The mean over seeds of each number; that of the worst group is of each seed's own worst one."""
        return tuple(_mean(rows) for rows in zip(*(report.rows for report in self.reports), strict=True))

    def __getitem__(self, method: str) -> Row:
        for row in self.rows:
            if row.method == method:
                return row
        raise KeyError(f"No method {method!r}; there are {', '.join(self.methods)}.")

    def table(self, *, groups: bool = True) -> str:
        """As that of a report."""
        rows = self.rows
        lines = [_main(rows)]
        if groups:
            lines += ["", _groups(rows)]
        return "\n".join([*lines, "", _STUDENT.format(n=len(self.reports))])

    def save(self, path: str | Path) -> Path:
        """Writes one JSON file with the means; the reports themselves are saved one by one."""
        means = {
            row.method: {
                "needs": row.needs, "intended": interval(row.intended), "spurious": interval(row.spurious),
                "worst": interval(row.worst), "ablated": row.ablated,
                "groups": {"/".join(group): interval(found) for group, found in row.groups.items()},
            }
            for row in self.rows
        }  # fmt: skip
        return save(path, "means", {"seeds": len(self.reports), "methods": means})


def _mean(rows: Sequence[Row]) -> Row:
    def over(take: Any) -> Estimate:
        return over_seeds([take(row).mean for row in rows])

    groups: dict[Group, Estimate] = {
        group: over(lambda row, group=group: row.groups[group]) for group in rows[0].groups
    }
    return Row(
        rows[0].method, rows[0].needs, over(lambda row: row.intended), over(lambda row: row.spurious),
        over(lambda row: row.worst), groups, sum(row.ablated for row in rows) / len(rows),
    )  # fmt: skip


def _main(rows: Sequence[Row]) -> str:
    wide = max(len("needs"), *(len(row.needs) for row in rows))
    cells = [["method", "intended", "spurious", "worst group", "ablated", "needs".ljust(wide)]]
    for row in rows:
        shares = [_shown(found) for found in (row.intended, row.spurious, row.worst)]
        cells.append(
            [row.method, *shares, f"{row.ablated:.4g}" if row.ablated else "", row.needs.ljust(wide)]
        )
    return aligned(cells)


def _groups(rows: Sequence[Row]) -> str:
    cells = [["intended, by group", *("/".join(group) for group in rows[0].groups)]]
    cells += [[row.method, *(_shown(found) for found in row.groups.values())] for row in rows]
    return aligned(cells)


def _shown(found: Estimate) -> str:
    return f"{found.mean:.3f}" + ("" if found.low != found.low else f" [{found.low:.2f}, {found.high:.2f}]")


def _check(methods: Sequence[str]) -> None:
    if not methods:
        raise ValueError("A report has the scores of at least one method.")
    if len(set(methods)) < len(methods):
        twice = next(name for name in methods if methods.count(name) > 1)
        raise ValueError(f"Two methods of a report are called {twice!r}.")
