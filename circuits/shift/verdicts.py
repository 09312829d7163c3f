"""What a judge says of features: values, and the files that hand-written verdicts stand in."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from interventions.writing import write

from ..annotations import visible

FORMAT = "circuits.shift.verdicts"
_YES = {"yes", "y", "true", "t", "1", "spurious"}
_NO = {"no", "n", "false", "f", "0", "keep"}


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a feature: whether the classifier should not use it; why, and who says so."""

    site: str
    feature: int
    spurious: bool
    reason: str = ""
    by: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.spurious, bool):
            raise TypeError(f"spurious={self.spurious!r} of {self.name}: a verdict is True or False.")

    @property
    def name(self) -> str:
        return f"{self.site}/{self.feature}"

    @property
    def at(self) -> tuple[str, int]:
        return self.site, self.feature


@dataclass(frozen=True)
class Verdicts(Mapping[tuple[str, int], Verdict]):
    """Verdicts on features, by (site, feature), in the order in which they were first given. Of several on
    the same feature the last counts.

    >>> found = Verdicts((Verdict("resid.3", 7, True), Verdict("resid.3", 9, False)))
    >>> found
    Verdicts(2 features, 1 spurious)
    >>> found.features
    {'resid.3': [7]}
    """

    given: tuple[Verdict, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        last = {verdict.at: verdict for verdict in self.given}
        object.__setattr__(self, "given", tuple(last.values()))
        object.__setattr__(self, "_by", last)

    def __getitem__(self, at: tuple[str, int]) -> Verdict:
        return self.__dict__["_by"][at]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.__dict__["_by"])

    def __len__(self) -> int:
        return len(self.given)

    def __repr__(self) -> str:
        spurious = sum(verdict.spurious for verdict in self.given)
        return f"Verdicts({len(self)} feature{'s' * (len(self) != 1)}, {spurious} spurious)"

    def __str__(self) -> str:
        width = max((len(verdict.name) for verdict in self.given), default=0)
        lines = [
            f"{v.name:{width}}  {'spurious' if v.spurious else 'kept':8}  {visible(v.reason)}".rstrip()
            for v in self.given
        ]
        return "\n".join([repr(self), *lines])

    @property
    def features(self) -> dict[str, list[int]]:
        """The features judged spurious, by site: what `Ablate` takes."""
        found: dict[str, list[int]] = {}
        for verdict in self.given:
            if verdict.spurious:
                found.setdefault(verdict.site, []).append(verdict.feature)
        return found

    def check(self, known: Iterable[tuple[str, int]]) -> None:
        """Raises ValueError where there are verdicts on other features than these, and names them."""
        listed = set(known)
        unknown = [verdict.name for verdict in self.given if verdict.at not in listed]
        if unknown:
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            raise ValueError(
                f"There {'are verdicts' if len(unknown) > 1 else 'is a verdict'} on "
                f"{', '.join(unknown[:10])}{more}, which the ranking does not list. Judge what it lists, or "
                "rank more features."
            )

    def save(self, path: str | Path) -> Path:
        """Writes JSON lines, that `VerdictLog` goes on with and `Verdicts.load` reads."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [header(self.about), *(line(asdict(verdict)) for verdict in self.given)]
        write(path, b"".join(lines))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Verdicts:
        """The verdicts in a file: as saved, or written by hand.

        By hand it is a table of CSV or TSV, or JSON lines, with `site`, `feature` and `spurious` (yes or no,
        true or false, 1 or 0), and perhaps `reason`.

        Raises:
            FileNotFoundError: no file there.
            ValueError: what is none of that; names the line.
        """
        path = Path(path)
        if path.suffix.lower() in (".csv", ".tsv"):
            return cls(tuple(_verdict(record, where, path) for where, record in _table(path)))
        from .verdict_log import replayed

        return replayed(path)


def header(about: Mapping[str, Any]) -> bytes:
    said = {name: about[name] for name in ("model", "dictionaries", "task") if name in about}
    return line({"format": FORMAT, "version": 1, **said})


def line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def verdict_of(record: Mapping[str, Any], where: str, by: str) -> Verdict:
    """The verdict in a record; raises ValueError with the place for one that is none."""
    if missing := [name for name in ("site", "feature", "spurious") if record.get(name) in (None, "")]:
        there = ", ".join(str(name) for name, value in record.items() if value not in (None, ""))
        raise ValueError(
            f"{where}: no {missing[0]!r}; a verdict has a site, a feature, and spurious, and this has "
            f"{there or 'nothing'}."
        )
    try:
        feature = int(str(record["feature"]).strip())
    except ValueError:
        raise ValueError(f"{where}: the feature {record['feature']!r} is no whole number.") from None
    said = str(record["spurious"]).strip().lower()
    if said not in _YES | _NO:
        raise ValueError(f"{where}: spurious is yes or no, not {record['spurious']!r}.")
    reason = str(record.get("reason") or "")
    return Verdict(str(record["site"]).strip(), feature, said in _YES, reason, str(record.get("by") or by))


def _verdict(record: Mapping[str, Any], where: str, path: Path) -> Verdict:
    return verdict_of(record, where, path.name)


def _table(path: Path) -> Sequence[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            found = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table: {error}.") from None
    if not found:
        raise ValueError(f"{path} has no rows.")
    return found
