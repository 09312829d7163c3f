"""What measures give under each of several interventions, run one after the other and kept in a folder.

    outcomes.json                  format, version, the model, the measures, the plan; of each trial the
                                   intervention's digest and the texts; the other file and a sum over all
    outcomes-1f0c9a41d2b7.safetensors   a number per item for every trial and measure, in float64

After each trial the index is replaced in one step, so that a run that was ended goes on from its last trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from ..binding import Dictionaries
from ..intervention import Intervention
from ..model import Model
from ..splice import applied
from ..writing import write
from .digest import digest

FORMAT, VERSION = "interventions.steering.outcomes", 1
_INDEX = "outcomes.json"

Measure = Callable[[Model], Any]
"""What measures a model as it is at the moment: a number per item (item), or several of these by name."""
Key = tuple[str, float]  # an arm of the comparison, and a multiplier


@dataclass(frozen=True)
class Outcome:
    """A number per item for every measure, and the texts that a measure wrote."""

    values: Mapping[str, Float[Tensor, " item"]]
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """Measures to be taken under one intervention, or under none."""

    key: Key
    intervention: Intervention | None
    measures: Mapping[str, Measure]


@dataclass(frozen=True)
class Kept:
    """What a folder holds."""

    model: str
    measures: str
    plan: Mapping[str, Any]
    outcomes: Mapping[Key, Outcome]
    digests: Mapping[Key, str]


def named(measures: Measure | Sequence[Measure] | Mapping[str, Measure]) -> dict[str, Measure]:
    """Measures by name; those without one have theirs from what they give, or from their class.

    Raises TypeError for what is no measure, ValueError for none.
    """
    if isinstance(measures, Mapping):
        found = dict(measures)
    else:
        every = list(measures) if isinstance(measures, Sequence) else [measures]
        found = {f"#{i} {_name(measure)}": measure for i, measure in enumerate(every)}
    for name, measure in found.items():
        if not callable(measure):
            raise TypeError(
                f"{name!r} is no measure but {type(measure).__name__}: give a callable of the model."
            )
    if not found:
        raise ValueError("Give at least one measure.")
    return found


def measured(model: Model, measures: Mapping[str, Measure], done: Callable[[], Any] = int) -> Outcome:
    """The outcome of measures on the model as it is now.

    Raises:
        ValueError: two measures that give the same name, or no number per item.
    """
    values: dict[str, Tensor] = {}
    texts: dict[str, tuple[str, ...]] = {}
    for name, measure in measures.items():
        given = measure(model)
        bare = name.startswith("#")
        if not isinstance(given, Mapping):
            given = {"": given}
        for part, value in given.items():
            if not part:
                label = name.partition(" ")[2] if bare else name
            else:
                label = part if bare else f"{name} {part}"
            if label in values or label in texts:
                raise ValueError(f"Two measures give {label!r}: give measures by name, {{name: measure}}.")
            if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
                texts[label] = tuple(value)
                continue
            if not isinstance(value, Tensor) or value.ndim != 1 or not len(value):
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"The measure {label!r} gives {shape}; it must give a tensor (item).")
            values[label] = value.detach().double().cpu()
        done()
    return Outcome(values, texts)


def outcomes(
    model: Model,
    trials: Sequence[Trial],
    *,
    kind: str,
    plan: Mapping[str, Any],
    dictionaries: Dictionaries | None,
    folder: str | Path | None,
    progress: bool | None,
) -> dict[Key, Outcome]:
    """The outcomes of trials, those that the folder holds already taken from there.

    Raises:
        ValueError: a folder with outcomes of another model, other measures or other interventions.
    """
    digests = {trial.key: digest((trial.intervention, dictionaries)) for trial in trials}
    taken = digest(trials[0].measures)
    found: dict[Key, Outcome] = {}
    kept: dict[Key, str] = {}
    if folder is not None and (Path(folder) / _INDEX).exists():
        before = read(folder, kind)
        _same(before, Path(folder), model.fingerprint, taken, digests)
        found, kept = dict(before.outcomes), dict(before.digests)
    n = len(trials[0].measures)
    bar = tqdm(total=n * len(trials), desc=kind, disable=None if progress is None else not progress)
    for trial in trials:
        if trial.key in found:
            bar.update(n)
            continue
        if trial.intervention is None:
            outcome = measured(model, trial.measures, bar.update)
        else:
            with applied(model, trial.intervention, dictionaries=dictionaries):
                outcome = measured(model, trial.measures, bar.update)
        found[trial.key] = outcome
        kept[trial.key] = digests[trial.key]
        if folder is not None:
            save(folder, kind, Kept(model.fingerprint, taken, plan, found, kept))
    bar.close()
    wanted = {trial.key: found[trial.key] for trial in trials}
    if folder is not None:
        save(folder, kind, Kept(model.fingerprint, taken, plan, found, kept))
    return wanted


def save(folder: str | Path, kind: str, kept: Kept) -> None:
    """Writes outcomes into a folder; what it held of them before goes once everything is written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{i} {name}": values.contiguous().clone()
        for i, outcome in enumerate(kept.outcomes.values())
        for name, values in outcome.values.items()
    }
    content = safetensors.torch.save(tensors)
    sha256 = hashlib.sha256(content).hexdigest()
    file = f"outcomes-{sha256[:12]}.safetensors"
    index = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "model": kept.model,
        "measures": kept.measures,
        "plan": dict(kept.plan),
        "file": file,
        "sha256": sha256,
        "trials": [
            {
                "arm": arm,
                "multiplier": multiplier,
                "intervention": kept.digests.get((arm, multiplier), ""),
                "values": list(outcome.values),
                "texts": {name: list(texts) for name, texts in outcome.texts.items()},
            }
            for (arm, multiplier), outcome in kept.outcomes.items()
        ],
    }
    write(folder / file, content)
    text = json.dumps({**index, "sum": _sum(index)}, indent=1, ensure_ascii=False)
    write(folder / _INDEX, text.encode())
    for path in folder.glob("outcomes-????????????.safetensors"):
        if path.name != file:
            path.unlink(missing_ok=True)


def read(folder: str | Path, kind: str) -> Kept:
    """The outcomes in a folder.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: outcomes of another kind, or damaged ones.
    """
    path = Path(folder) / _INDEX
    if not path.is_file():
        raise FileNotFoundError(f"There are no outcomes in {folder}: it has no {_INDEX}.")
    try:
        index = json.loads(path.read_bytes())
        known = (index["format"], index["version"]) == (FORMAT, VERSION)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: remove it to run anew.") from None
    if not known:
        raise ValueError(f"{path} is not of a form that this release can read.")
    if index["kind"] != kind:
        raise ValueError(f"{path} holds a {index['kind']}, not a {kind}.")
    try:
        if index.pop("sum") != _sum(index):
            raise ValueError("it has changed since it was written")
        content = (path.parent / Path(index["file"]).name).read_bytes()
        if hashlib.sha256(content).hexdigest() != index["sha256"]:
            raise ValueError(f"{index['file']} has changed since it was written")
        tensors = safetensors.torch.load(content)
        found, digests = {}, {}
        for i, trial in enumerate(index["trials"]):
            key = (trial["arm"], float(trial["multiplier"]))
            values = {name: tensors[f"{i} {name}"] for name in trial["values"]}
            found[key] = Outcome(values, {name: tuple(texts) for name, texts in trial["texts"].items()})
            digests[key] = trial["intervention"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it to run anew.") from None
    return Kept(index["model"], index["measures"], index["plan"], found, digests)


def finished(folder: str | Path, kind: str, model: Model | None, keys: Callable[[Any], list[Key]]) -> Kept:
    """The outcomes in a folder where none is missing of those that its plan asks for.

    Raises ValueError where one is, or where they are not of `model`.
    """
    kept = read(folder, kind)
    if model is not None and kept.model != model.fingerprint:
        raise ValueError(f"{folder} holds outcomes of another model than the one given.")
    if missing := [key for key in keys(kept.plan) if key not in kept.outcomes]:
        arm, multiplier = missing[0]
        raise ValueError(
            f"{folder} is not finished: {len(missing)} trials are missing, the first one {arm!r} times "
            f"{multiplier:g}. Run it again with the same folder to go on."
        )
    return kept


def _same(kept: Kept, folder: Path, model: str, measures: str, digests: Mapping[Key, str]) -> None:
    other = None
    if kept.model != model:
        other = "another model"
    elif kept.measures != measures:
        other = "other measures"
    for key in kept.outcomes.keys() & digests.keys():
        if kept.digests[key] != digests[key]:
            other = other or f"another intervention as {key[0]!r} times {key[1]:g}"
    if other:
        raise ValueError(f"{folder} holds outcomes of {other}: give another folder, or remove this one.")


def _name(measure: Any) -> str:
    name = getattr(measure, "__name__", type(measure).__name__)
    return "measure" if name == "<lambda>" else name.lower()


def _sum(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def check_multipliers(multipliers: Sequence[float]) -> tuple[float, ...]:
    """Multipliers in order, each once, 0 among them."""
    found = sorted({float(m) + 0.0 for m in multipliers} | {0.0})
    if len(found) == 1:
        raise ValueError("Give at least one multiplier beside 0, which is always measured.")
    if not torch.tensor(found, dtype=torch.float64).isfinite().all():
        raise ValueError(f"Multipliers are finite numbers, not {list(multipliers)}.")
    return tuple(found)
