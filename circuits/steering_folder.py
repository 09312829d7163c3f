"""What `circuits steer extract` left in a folder, and the interventions that are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interventions.intervention import Intervention
from interventions.model import Model
from interventions.recurrence import AddState, State
from interventions.steering.direction import Direction
from interventions.steering.randomised import randomised
from interventions.tensor_edits import Add, Project

from .files import read_json
from .question import Say, chosen, described, loaded_model, whole_path
from .record import write_json
from .token_words import where

SETTINGS = "settings.json"
FOLDERS = {"sweep": "sweep", "evaluate": "evaluation"}  # of what was measured, by command


@dataclass(frozen=True)
class Found:
    """A direction, or a difference of states, with the model and how it was found."""

    model: Model
    name: str
    direction: Direction | State
    settings: Mapping[str, Any]

    @property
    def options(self) -> Mapping[str, Any]:
        """Those of `circuits steer extract`; none for a direction that was saved otherwise."""
        return self.settings.get("steer extract", {}).get("options", {})

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites of a direction, or all names of a state."""
        return tuple(self.direction)

    def best(self) -> tuple[str, ...]:
        """Where to steer if nothing else is asked for: the sweep's site, or that which separates best."""
        if isinstance(self.direction, State):
            return self.sites
        for command in ("steer sweep", "steer extract"):
            site = self.settings.get(command, {}).get("site")
            if site in self.direction:
                return (site,)
        return self.sites[-1:]


@dataclass(frozen=True)
class Change:
    """How a direction is put to use, as it stands on the command line."""

    sites: Sequence[str] | None = None
    prompt_tokens: str = "all"
    generation_tokens: str = "all"
    keep_norm: bool = False
    project_out: bool = False


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a folder, or none."""
    return read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}


def note(folder: Path, command: str, record: Mapping[str, Any]) -> None:
    """Notes a command in the settings of a folder, beside what is there."""
    write_json(folder / SETTINGS, {**read_settings(folder), command: dict(record)})


def discard(folder: Path) -> None:
    """Removes outcomes, and the picture of them beside the folder."""
    if not (folder / "outcomes.json").is_file():
        return
    for path in [folder / "outcomes.json", *folder.glob("outcomes-????????????.safetensors")]:
        path.unlink(missing_ok=True)
    folder.with_suffix(".svg").unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def required(given: str) -> None:
    """Raises FileNotFoundError where a folder holds no direction and no state."""
    if not any((Path(given) / name).is_file() for name in ("state.json", "direction.json")):
        raise FileNotFoundError(f"There is no direction in {given!r}; `circuits steer extract` finds one.")


def loaded(given: str, *, model: str | None, device: str, dtype: str | None, say: Say) -> Found:
    """What is in a folder, in the model that it is for.

    Raises:
        FileNotFoundError: no direction there.
        ValueError: files of something else, a direction of another model, or no word on which it is of.
    """
    required(given)
    folder = Path(given)
    settings = read_settings(folder)
    held = State.load(folder) if (folder / "state.json").is_file() else Direction.load(folder)
    name = model or settings.get("steer extract", {}).get("options", {}).get("model")
    if name is None:
        raise ValueError(f"{folder / SETTINGS} does not say which model this is for: give --model.")
    loaded = loaded_model(whole_path(name, "embedded"), device=device, dtype=dtype)
    _check(held, loaded)
    say(f"Model         {described(loaded, name)}")
    return Found(loaded, name, held, settings)


def _check(held: Direction | State, model: Model) -> None:
    if held.fingerprint not in (None, model.fingerprint):
        what = "state" if isinstance(held, State) else "direction"
        raise ValueError(
            f"This {what} was found in another model ({held.fingerprint[:8]}) than this one "
            f"({model.fingerprint[:8]})."
        )
    if isinstance(held, Direction):
        held.check(model)


def part_of(found: Found, sites: Sequence[str] | None) -> Direction | State:
    """The direction at sites by name or pattern, or at the best one."""
    names = [*chosen(dict.fromkeys(found.direction), sites)] if sites else found.best()  # type: ignore[type-var]
    return found.direction.only(*names)


def steered(part: Direction | State, change: Change, scale: float) -> Intervention:
    """What a direction does at one strength.

    Raises:
        ValueError: a change that a state cannot have.
    """
    at = where(change.prompt_tokens, change.generation_tokens)
    if isinstance(part, State):
        if change.keep_norm or change.project_out:
            raise ValueError("--keep-norm and --project-out are for directions; a state is added to.")
        made: Intervention = AddState(part, scale)
        return made if at.everywhere else made.at(at)
    made = Project(part) if change.project_out else Add(part, scale=scale)
    made = made.keeping_norm() if change.keep_norm else made
    return made if at.everywhere else made.at(at)


def at_random(part: Direction | State, change: Change, scale: float, seed: int) -> Intervention:
    """The same along random directions as long: those that `evaluate` draws for that seed."""
    if change.project_out and isinstance(part, Direction):
        return steered(Direction.random(part, seed), change, scale)
    return randomised(steered(part, change, scale), seed)
