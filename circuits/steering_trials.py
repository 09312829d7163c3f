"""The commands that measure what a direction does, as the command line gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from interventions.intervention import Intervention
from interventions.recurrence import State
from interventions.steering.direction import Direction
from interventions.steering.dose_response import DoseResponse, dose_response
from interventions.steering.outcomes import Measure
from interventions.steering.sweep import LayerSweep, layer_sweep

from .annotations import visible
from .files import writable
from .question import Say, checked_device, chosen, whole_path
from .record import Clock, interruptible
from .steering_folder import (
    FOLDERS,
    SETTINGS,
    Found,
    discard,
    loaded,
    note,
    part_of,
    read_settings,
    required,
    steered,
)
from .steering_measures import Templates, Trial, measure_names, measures
from .steering_sets import SETS, Questions, chat, questions
from .token_words import where

_SHOWN = 60  # characters of a text that was written


@dataclass(frozen=True)
class _Begun:
    """A trial with everything loaded."""

    trial: Trial
    found: Found
    questions: Questions
    measures: Sequence[Measure]
    ask: Templates
    folder: Path
    clock: Clock


def sweep(
    trial: Trial,
    *,
    out: str | None,
    fresh: bool,
    pictures: bool,
    progress: bool | None,
    command: str,
    say: Say,
) -> None:
    """Measures a direction at every site by itself, at every strength, and notes where it does most."""
    begun = _begun(trial, out, half=0, say=say)
    held = begun.found.direction
    if isinstance(held, State):
        raise ValueError(
            "A sweep is over the sites of a direction, and this is a state; `evaluate` takes it."
        )
    sites = [*chosen(dict.fromkeys(held), trial.sites)]  # type: ignore[type-var]
    folder = _room(begun, "sweep", command, fresh)
    with interruptible(f"The same command goes on from {folder}."):
        swept = layer_sweep(
            begun.found.model,
            lambda site, m: steered(held.only(site), trial, m),
            sites,
            trial.multipliers,
            begun.measures,
            random=trial.random,
            folder=folder,
            progress=progress,
        )
    begun.clock.lap("measuring")
    for measure in swept.measures:
        say(f"\n{swept.table(measure)}")
    first = swept.measures[0]
    site, m = _best(swept, first)
    effect = swept.effect(first, site, m)
    say(f"\nMost {first} at {site} times {m:g}: a change of {effect}, 95% interval over questions.")
    written = [*_drawn("sweep", swept, begun.folder)] if pictures else []
    _finished(begun, "sweep", command, written, say, site=site, multiplier=m)
    say(f"`circuits steer evaluate {trial.folder}` tests this site on other questions.")


def evaluate(
    trial: Trial,
    *,
    out: str | None,
    fresh: bool,
    pictures: bool,
    progress: bool | None,
    command: str,
    say: Say,
) -> None:
    """Measures a direction at every strength beside the unsteered model, random directions and a prompt."""
    begun = _begun(trial, out, half=1, say=say)
    part = part_of(begun.found, trial.sites)
    say(f"Steering      {visible(repr(steered(part, trial, 1.0)))}, times a multiplier")
    folder = _room(begun, "evaluate", command, fresh)
    instruction = begun.questions.instruction if trial.instruction is None else trial.instruction
    with interruptible(f"The same command goes on from {folder}."):
        found = dose_response(
            begun.found.model,
            partial(_steer, part, trial),
            trial.multipliers,
            begun.measures,
            random=trial.random,
            prompting=partial(begun.ask.instructed, instruction) if instruction else None,
            folder=folder,
            progress=progress,
        )
    begun.clock.lap("measuring")
    say(f"\n{found.table()}")
    say("\nMeans over questions with 95% intervals; column 0 is the unsteered model.")
    if instruction:
        say(f"prompted: {visible(instruction)!r} stands before every prompt.")
    _say_best(found, say)
    _say_texts(found, say)
    written = [*_drawn("evaluation", found, begun.folder)] if pictures else []
    _finished(begun, "evaluate", command, written, say)


def _steer(part: Direction | State, trial: Trial, multiplier: float) -> Intervention:
    return steered(part, trial, multiplier)


# --- what is measured ---------------------------------------------------------------------------------------


def _begun(trial: Trial, out: str | None, *, half: int, say: Say) -> _Begun:
    clock = Clock()
    where(trial.prompt_tokens, trial.generation_tokens)  # mistakes show before the model loads
    if not any(trial.multipliers):
        raise ValueError("--multipliers needs one beside 0, which is always measured.")
    required(trial.folder)
    before = read_settings(Path(trial.folder)).get("steer extract", {}).get("options", {})
    source = trial.questions or before.get("pairs")
    if source is None or (trial.questions is None and source not in SETS):
        raise ValueError("Give --questions: these pairs are of a file, and do not say what to measure it on.")
    asked = questions(source, answers=trial.answers, foils=trial.foils)
    trial = replace(
        trial,
        folder=whole_path(trial.folder),
        questions=whole_path(source, *SETS),
        chat=bool(before.get("chat")) if trial.chat is None else trial.chat,
        device=checked_device(trial.device),
        measure=measure_names(trial, asked),
        keywords=tuple(trial.keywords or asked.keywords),
    )
    if "keywords" in (trial.measure or ()) and not trial.keywords:
        raise ValueError("Give --keywords: words to count in what the model writes.")
    found = loaded(trial.folder, model=trial.model, device=trial.device, dtype=trial.dtype, say=say)
    asked = asked.half(half).take(trial.examples)
    ask = Templates(chat(found.model) if trial.chat else None, lettered="matching" in (trial.measure or ()))
    asked = asked.map(ask)
    say(f"Questions     {visible(asked.name)}, {len(asked)}: {', '.join(trial.measure or ())}")
    clock.lap("loading")
    # what a recurrent model carries is changed in rows of one length, which a batch of texts seldom has
    size = 1 if isinstance(found.direction, State) else trial.batch_size
    return _Begun(
        trial,
        found,
        asked,
        measures(trial, asked, batch_size=size),
        ask,
        writable(out or trial.folder),
        clock,
    )


# --- what is written ----------------------------------------------------------------------------------------


def _best(swept: LayerSweep, measure: str) -> tuple[str, float]:
    """Where the direction itself, not its opposite, does most."""
    up = any(m > 0 for m in swept.multipliers)
    return swept.best(measure, allowed=lambda _site, m: m > 0 or not up)


def _say_best(found: DoseResponse, say: Say) -> None:
    measure = found.measures[0]
    up = [m for m in found.multipliers if m > 0] or [m for m in found.multipliers if m]
    m = max(up, key=lambda m: found.effect(measure, m).mean)
    say(f"\nMost {measure} at {m:g}: a change of {found.effect(measure, m)}")
    if found.random:
        say(f"  beyond random directions: {found.beyond_random(measure, m)}")


def _say_texts(found: DoseResponse, say: Say) -> None:
    """The first text that was written at every strength."""
    try:
        found.texts()
    except LookupError:
        return
    say("")
    for m in found.multipliers:
        text = visible(next(iter(found.texts(m))))
        say(f"  {m:>5g}  {text if len(text) <= _SHOWN else text[: _SHOWN - 1] + '…'}")


def _drawn(name: str, found: LayerSweep | DoseResponse, folder: Path) -> Iterator[str]:
    from .steering_plots import plot_dose_response, plot_layer_sweep

    path = folder / f"{name}.svg"
    drawn = (
        plot_layer_sweep(found, path) if isinstance(found, LayerSweep) else plot_dose_response(found, path)
    )
    yield drawn.name


def _room(begun: _Begun, name: str, command: str, fresh: bool) -> Path:
    """The folder that keeps the outcomes, noted as begun.

    Raises:
        ValueError: outcomes of other options, without `fresh`.
    """
    folder, now = begun.folder / FOLDERS[name], _options(begun.trial)
    if fresh:
        discard(folder)
    record = read_settings(begun.folder).get(f"steer {name}", {})
    then = record.get("options")
    if (folder / "outcomes.json").exists() and then is not None:
        may = ("device", "batch_size", "multipliers", "random", "sites" if name == "sweep" else "device")
        if differ := [key for key in now if now[key] != then.get(key) and key not in may]:
            options = ", --".join(differ).replace("_", "-")
            raise ValueError(
                f"{folder} is of a run with another --{options}; give --out, or --fresh to replace it."
            )
    note(begun.folder, f"steer {name}", {**record, "command": command, "options": now})
    return folder


def _finished(begun: _Begun, name: str, command: str, pictures: Sequence[str], say: Say, **more: Any) -> None:
    record = {"command": command, "options": _options(begun.trial), "model": begun.found.model.fingerprint}
    note(begun.folder, f"steer {name}", {**record, **more, **begun.clock.record()})
    names = ", ".join([FOLDERS[name], *pictures, SETTINGS])
    say(f"\nWritten to {begun.folder} after {begun.clock}: {names}.")


def _options(trial: Trial) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(trial)))
