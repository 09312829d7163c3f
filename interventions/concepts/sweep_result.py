"""The scores of many dictionaries, and their folder.

    sweep.json            format, version, model, a digest of texts and options; of each dictionary its name,
                          site, fingerprint, width, L0, seconds, and the folder of its scores
    0f3a.../seed-0/       what TPP.save or SCR.save wrote

A dictionary is listed once its scores are written, so that an interrupted sweep lists what is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..steering.columns import aligned
from ..writing import write
from .perturbation import TPP
from .removal import SCR
from .scores import interval

Score: TypeAlias = TPP | SCR
_FORMAT, _VERSION, _FILE = "interventions.concept_sweep", 1, "sweep.json"
_KINDS: Mapping[str, type[TPP] | type[SCR]] = MappingProxyType({"tpp": TPP, "scr": SCR})


@dataclass(frozen=True, eq=False)
class Scored:
    """A dictionary and its scores, one for each seed: what it costs in active features, and in seconds.

    `l0` is how many features are active at a token of the texts to test on. `seconds` are those of encoding
    all tokens and of scoring, without the model's passes.
    """

    name: str
    site: str
    dictionary: str  # its fingerprint
    n_features: int
    l0: float
    seconds: float
    scores: tuple[Score, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many features are ablated."""
        return self.scores[0].sizes

    @property
    def score(self) -> Float[Tensor, " size"]:
        """The mean over seeds at each number of features."""
        return torch.stack([one.score for one in self.scores]).mean(0)

    def interval(self, confidence: float = 0.95) -> Float[Tensor, "size bound"]:
        """Between what the score lies on other test texts, and where there are several with other seeds too:
        a percentile bootstrap over both."""
        drawn = torch.stack([one.drawn for one in self.scores])  # (seed resample size)
        seeds, resamples, _ = drawn.shape
        if seeds == 1:
            return interval(drawn[0], confidence)
        which = torch.randint(seeds, (seeds, resamples), generator=torch.Generator().manual_seed(0))
        return interval(drawn[which, torch.arange(resamples)].mean(0), confidence)


@dataclass(frozen=True, eq=False)
class Sweep(Mapping[str, Scored]):
    """Scores of dictionaries by their names: the site, or where there are several at one `site/name`.

    `kind` is "tpp" or "scr"; `plan` is a digest of the texts and of the options.
    """

    kind: str
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    fingerprint: str
    plan: str
    scored: Mapping[str, Scored]

    def __getitem__(self, name: str) -> Scored:
        try:
            return self.scored[name]
        except KeyError:
            raise KeyError(f"No dictionary {name!r}; there are {', '.join(self.scored)}.") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.scored)

    def __len__(self) -> int:
        return len(self.scored)

    def __repr__(self) -> str:
        return f"Sweep({self.kind.upper()} of {len(self)} dictionaries, {len(self.seeds)} seeds)"

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """A line for each dictionary: its width, L0, the score at each number of features, and seconds."""
        rows = [[self.kind.upper(), "features", "L0", *map(str, self.sizes), "seconds"]]
        for name, one in self.items():
            scores = (f"{x:.3f}" for x in one.score.tolist())
            rows.append([name, str(one.n_features), f"{one.l0:.1f}", *scores, f"{one.seconds:.1f}"])
        return aligned(rows)

    def at(self, size: int, *, confidence: float = 0.95) -> dict[str, tuple[float, float, float]]:
        """The score of each dictionary with so many features ablated, and the bounds of its interval.

        Raises LookupError for a number that was not asked for.
        """
        if size not in self.sizes:
            raise LookupError(f"No score at {size} features; there are some at {_listed(self.sizes)}.")
        i = self.sizes.index(size)
        found = {}
        for name, one in self.items():
            low, high = one.interval(confidence)[i].tolist()
            found[name] = (one.score[i].item(), low, high)
        return found

    def save(self, folder: str | Path) -> None:
        """Writes it into a folder: JSON and safetensors."""
        empty = replace(self, scored={})
        reserve(empty, folder)
        for one in self.values():
            write_scored(one, empty, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Sweep:
        """What `save` wrote, or a run has left.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: files that are incomplete, changed since, or of something else.
        """
        folder = Path(folder)
        about = _read(folder)
        try:
            kind = _KINDS[about["kind"]]
            scored = {}
            for entry in about["dictionaries"]:
                known = {name: value for name, value in entry.items() if name != "folder"}
                at = folder / Path(entry["folder"]).name
                scores = tuple(kind.load(at / f"seed-{seed}") for seed in about["seeds"])
                scored[entry["name"]] = Scored(**known, scores=scores)
            sizes, seeds = tuple(about["sizes"]), tuple(about["seeds"])
            return cls(about["kind"], sizes, seeds, about["model"], about["plan"], scored)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / _FILE} does not describe a sweep: {error}.") from None


def key(site: str, name: str) -> str:
    """What a dictionary is called."""
    return f"{site}/{name}" if name else site


def kept(sweep: Sweep, scored: Mapping[str, Scored]) -> Sweep:
    return replace(sweep, scored=dict(scored))


def reserve(sweep: Sweep, folder: str | Path) -> Sweep:
    """What a folder has of this sweep; a new one is begun.

    Raises ValueError for a folder of another sweep.
    """
    folder = Path(folder)
    if (folder / _FILE).is_file():
        before = Sweep.load(folder)
        if (before.fingerprint, before.kind, before.plan) != (sweep.fingerprint, sweep.kind, sweep.plan):
            same = before.fingerprint == sweep.fingerprint
            what = "other texts, or with other options" if same else "another model"
            raise ValueError(
                f"{folder} holds a sweep of {before.kind.upper()} on {what}: give another folder."
            )
        return before
    folder.mkdir(parents=True, exist_ok=True)
    _index(sweep, folder, [])
    return sweep


def write_scored(one: Scored, sweep: Sweep, folder: str | Path) -> Scored:
    """Writes the scores of a dictionary, and lists it, in place of one of the same name."""
    folder = Path(folder)
    place = hashlib.sha256(f"{one.name} {one.dictionary}".encode()).hexdigest()[:12]
    for seed, score in zip(sweep.seeds, one.scores, strict=True):
        score.save(folder / place / f"seed-{seed}")
    names = ("name", "site", "dictionary", "n_features", "l0", "seconds")
    entry = {**{name: getattr(one, name) for name in names}, "folder": place}
    entries = [entry if old["name"] == one.name else old for old in _read(folder)["dictionaries"]]
    _index(sweep, folder, entries if entry in entries else [*entries, entry])
    return one


def _index(sweep: Sweep, folder: Path, entries: list[dict[str, Any]]) -> None:
    about = {
        "format": _FORMAT, "version": _VERSION, "kind": sweep.kind, "model": sweep.fingerprint,
        "plan": sweep.plan, "sizes": list(sweep.sizes), "seeds": list(sweep.seeds), "dictionaries": entries,
    }  # fmt: skip
    write(folder / _FILE, json.dumps(about, indent=1, allow_nan=False).encode())


def _read(folder: Path) -> dict[str, Any]:
    path = folder / _FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no sweep in {folder}: {_FILE} is missing.")
    try:
        about = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not complete JSON.") from None
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise ValueError(f"{path} does not say that it is of a sweep, in the format {_FORMAT!r}.")
    if about.get("version") != _VERSION:
        raise ValueError(f"{path} has version {about.get('version')!r}; this release reads {_VERSION}.")
    return about


def _listed(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))
