"""What is measured of a direction, by the words that the command line has for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from interventions.steering.choices import Matching
from interventions.steering.divergence import Divergence
from interventions.steering.fluency import Each, distinct, surprise
from interventions.steering.generated import Generated
from interventions.steering.outcomes import Measure
from interventions.steering.preference import Preference
from interventions.steering.refusal import refuses
from interventions.steering.words import occurrences
from tasks.choice import ask_plainly

from .steering_folder import Change
from .steering_sets import Questions

_WRITTEN = ("keywords", "refusal", "fluency")  # measures of what the model writes


@dataclass(frozen=True)
class Trial(Change):
    """What is measured of a direction, as it stands on the command line and in settings.json."""

    folder: str = ""
    model: str | None = None
    measure: Sequence[str] | None = None
    questions: str | None = None
    answers: Sequence[str] | None = None
    foils: Sequence[str] | None = None
    keywords: Sequence[str] | None = None
    examples: int | None = None
    chat: bool | None = None
    max_new_tokens: int = 24
    multipliers: Sequence[float] = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
    random: int = 3
    instruction: str | None = None
    batch_size: int = 16
    device: str = "auto"
    dtype: str | None = None


class Templates:
    """Makes prompts of questions, and remembers of which."""

    def __init__(self, ask: Callable[[str], str] | None, *, lettered: bool) -> None:
        self._ask, self._lettered, self._questions = ask, lettered, dict[str, str]()

    def __call__(self, question: str) -> str:
        if self._lettered:
            made = ask_plainly(question) if self._ask is None else f"{self._ask(question)}("
        else:
            made = question if self._ask is None else self._ask(question)
        self._questions[made] = question
        return made

    def instructed(self, instruction: str, prompt: str) -> str:
        """The prompt with an instruction put before its question."""
        return self(instruction + self._questions[prompt])


def measure_names(trial: Trial, asked: Questions) -> tuple[str, ...]:
    """The measures that are taken, those that need what the questions lack refused."""
    names = tuple(dict.fromkeys(trial.measure or (asked.measure, "divergence")))
    for name in ("preference", "matching"):
        if name in names and asked.measure != name and not (asked.items and name == "preference"):
            need = "--answers and --foils, or a task" if name == "preference" else "lettered questions"
            raise ValueError(f"{name} is measured on {need}; {asked.name} has none.")
    return names


def measures(trial: Trial, asked: Questions, *, batch_size: int) -> list[Measure]:
    """Measures in the order of their names; those of what the model writes are of the same texts."""
    single: dict[str, Callable[[], Measure]] = {
        "preference": lambda: Preference(asked.items, batch_size=batch_size),
        "matching": lambda: Matching(asked.items, batch_size=batch_size),
        "divergence": lambda: Divergence(asked.asked, batch_size=batch_size),
    }
    scores: dict[str, Any] = {
        "keywords": {"keywords": Each(partial(_counted, words=tuple(trial.keywords or ())))},
        "refusal": {"refusal": Each(refuses)},
        "fluency": {"surprise": surprise, "distinct": Each(distinct)},
    }
    names = list(trial.measure or [])
    found: list[Measure] = [single[name]() for name in names if name in single]
    wanted = [name for name in names if name in _WRITTEN]
    if wanted:
        every = {k: score for name in wanted for k, score in scores[name].items()}
        written = Generated(asked.asked, every, max_new_tokens=trial.max_new_tokens, batch_size=batch_size)
        found.insert(0 if wanted[0] == names[0] else len(found), written)
    return found


def _counted(text: str, words: tuple[str, ...]) -> float:
    return sum(occurrences(text, words).values())
