"""What is asked on the command line: a model, its dictionaries and a task, by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import torch

from interventions.acts import Dictionary, Identity
from interventions.dictionaries import load
from interventions.model import Model
from tasks import METRICS, TASKS, LogitDifference, Pair, ProbabilityDifference, Task
from tasks.encoding import Encoder

from . import embedded
from .annotations import visible
from .graph import Circuit

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A task put to a model, as it stands on the command line and in settings.json."""

    model: str = "embedded"
    dictionaries: str | None = None
    sites: Sequence[str] | None = None
    task: str = "agreement_across_rc"
    metric: str | None = None
    examples: int | None = None
    held_out: float = 0.5
    seed: int = 0
    batch_size: int = 16
    device: str = "auto"
    dtype: str | None = None

    def resolved(self) -> Question:
        """With what is left open decided, and files by their whole path."""
        given = self.dictionaries or ("embedded" if self.model == "embedded" else "neurons")
        return replace(
            self,
            model=whole_path(self.model, "embedded"),
            dictionaries=whole_path(given, "embedded", "neurons"),
            task=whole_path(self.task, *TASKS),
            examples=self.examples or (100 if self.task in TASKS else None),
            device=checked_device(self.device),
        )


@dataclass(frozen=True)
class Asked:
    """A question with everything loaded: the pairs to find a circuit on, and those to test it on."""

    model: Model
    dictionaries: Mapping[str, Dictionary]
    first: Task
    second: Task


def part(kind: type[T], options: Mapping[str, Any]) -> T:
    """A dataclass of options, from options by name; others are left aside."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in options.items() if name in names})


def asked_for(question: Question, say: Say, *, found: Circuit | None = None) -> Asked:
    """Loads what a question names. Mistakes that show without the model come first."""
    check_task(question.task)
    folder = question.dictionaries or ""
    if folder not in ("embedded", "neurons") and not Path(folder).exists() and "/" not in folder.strip("./"):
        raise FileNotFoundError(f"There is no folder {folder!r} of dictionaries; `neurons` needs none.")
    model = model_of(question)
    say(f"Model         {described(model, question.model)}")
    dictionaries = _dictionaries(question, model, found)
    stems = ", ".join(dict.fromkeys(re.sub(r"\.\d+$", ".*", visible(name)) for name in dictionaries))
    say(f"Dictionaries  {visible(Path(folder).name)}, at {len(dictionaries)} sites: {stems}")
    asked = task_of(question, model)
    task = first = second = asked.fitting(model.tokenizer)
    if question.held_out:
        try:
            first, second = task.split(1 - question.held_out, question.seed)
        except ValueError as error:
            raise ValueError(f"{error} --held-out 0 tests on the pairs it finds on.") from None
    pair = task.pairs[0]
    say(f"Task          {visible(task.name)}: {ended(shown(pair.clean), 50)} → {shown(pair.answers)}")
    pairs = f"{len(second)} pairs" if found else f"{len(first)} pairs to find on"
    if len(task) < len(asked):
        pairs = f"{len(task)} of {len(asked)} pairs fit the tokenizer: {pairs}"
    if not found:
        pairs += f", {len(second)} others to test on" if question.held_out else ", the same to test on"
    say(f"              {pairs}")
    return Asked(model, dictionaries, first, second)


def model_of(question: Question) -> Model:
    """The model that a question names."""
    return loaded_model(question.model, device=question.device, dtype=question.dtype)


def loaded_model(name: str, *, device: str, dtype: str | None) -> Model:
    """The model of that name, `embedded` being the shipped one; transformers keeps silent about it."""
    from transformers.utils import logging

    source = str(embedded.HERE / "model") if name == "embedded" else name
    kind = None if dtype is None else getattr(torch, dtype)
    device = checked_device(device)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # What transformers shows while it reads files from this disk is of no use; a download keeps its bar.
        with redirect_stderr(StringIO()) if Path(source).exists() else nullcontext():
            return Model.load(source, device=device, dtype=kind)
    except ImportError as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name} cannot be loaded: {first_line}") from error
    finally:
        logging.set_verbosity(verbosity)


def _dictionaries(question: Question, model: Model, found: Circuit | None) -> dict[str, Dictionary]:
    wanted = list(question.sites or ())
    if question.dictionaries != "neurons":
        return loaded_dictionaries(str(question.dictionaries), model, sites=wanted, dtype=model.dtype)
    wanted = wanted or list(found.features if found else ())
    return chosen({n: Identity() for n, site in model.sites.items() if wanted or site.side == "out"}, wanted)


def loaded_dictionaries(
    source: str,
    model: Model | None,
    *,
    sites: Sequence[str] | None = None,
    place: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> dict[str, Dictionary]:
    """The dictionaries at a path or in a repository, `embedded` being those shipped; on the model's device.

    Only those at `sites` are read. A `place` is where the only one belongs, such as 'mlp_in.3->mlp.3'.
    """
    reads, _, writes = (part.strip() or None for part in (place or "").rpartition("->"))
    known = load(
        embedded.HERE / "dictionaries" if source == "embedded" else source,
        model,
        site=writes,
        reads=reads,
        device=model.device if model else checked_device(device),
        dtype=dtype,
        lazy=True,
    )
    return chosen(known, sites)


def chosen(known: Mapping[str, Dictionary], wanted: Sequence[str] | None) -> dict[str, Dictionary]:
    """Those at sites that a name or a pattern asks for; all where none is wanted.

    Raises:
        LookupError: a pattern that no site matches.
    """
    for pattern in wanted or ():
        if not any(fnmatchcase(name, pattern) for name in known):
            stems = ", ".join(dict.fromkeys(re.sub(r"\.\d+$", ".*", name) for name in known))
            raise LookupError(f"No site matches {pattern!r}; there are {stems}.")
    # by name, for a lazy mapping reads what it is asked for
    return {n: known[n] for n in known if not wanted or any(fnmatchcase(n, p) for p in wanted)}


def task_of(question: Question, model: Model | None) -> Task:
    """The task that a question names, with its metric; built-in ones in words that the model has."""
    metric = None if question.metric is None else METRICS[question.metric.replace("-", "_")]
    if question.task in TASKS:
        make = TASKS[question.task]
        random = "vocab_size" in inspect.signature(make).parameters
        task = make(
            n=question.examples, seed=question.seed, **(_vocabulary(model) if model and random else {})
        )
        task = task if metric is None else replace(task, metric=metric)
    else:
        task = Task.load(question.task, metric=metric)
        n = len(task) if question.examples is None else question.examples
        if n > len(task):
            raise ValueError(f"{question.task} has {len(task)} pairs: cannot take {n}.")
        task = task.take(n)
    if model and model.tokenizer is None and any(isinstance(pair.clean, str) for pair in task.pairs):
        raise ValueError(f"The prompts of {task.name} are texts, and the model has no tokenizer beside it.")
    return task


def _vocabulary(model: Model) -> dict[str, Any]:
    """What a task of random tokens may draw from."""
    with torch.no_grad():
        size = model.logits(torch.zeros(1, 1, dtype=torch.long)).shape[-1]
    if model.tokenizer is None:
        return {"vocab_size": size}
    special = getattr(model.tokenizer, "all_special_ids", ())
    size = min(size, len(model.tokenizer))
    return {"vocab_size": size, "exclude": special, "opening": opening(model.tokenizer)}


def opening(tokenizer: Any) -> tuple[int, ...]:
    """The tokens with which a tokenizer opens every text."""
    return Encoder.of(tokenizer, [Pair("a", None, ())]).opening


def check_task(name: str) -> None:
    """Raises LookupError where there is no such task."""
    if name not in TASKS and not Path(name).exists():
        raise LookupError(f"No task {name!r}, nor such a file. Built in are {', '.join(TASKS)}.")


def checked_device(name: str) -> str:
    """A device that there is; `auto` is resolved."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"No device {name!r}; auto, cpu, cuda, cuda:1 and mps are such.") from None
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if missing or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"There is no device {name} on this machine.")
    return name


def described(model: Model, source: str) -> str:
    """A model in a few words."""
    name = Path(source).name if Path(source).exists() else source
    return f"{visible(name)}: {len(model.blocks)} layers, width {model.width}, on {model.device}"


def whole_path(given: str, *words: str) -> str:
    """A word as it is, a path that exists whole, anything else (a name on the hub) as it is."""
    return given if given in words or not Path(given).exists() else str(Path(given).resolve())


def signed(task: Task) -> bool:
    """Whether the metric is above 0 where the model is right."""
    return isinstance(task.metric, LogitDifference | ProbabilityDifference)


def metric_name(task: Task) -> str:
    """What a metric is called in files and on the command line."""
    known = (name for name, metric in METRICS.items() if metric == task.metric)
    return next(known, repr(task.metric)).replace("_", " ")


def shown(given: Any) -> str:
    """A prompt, or answers, on one line."""
    if given is None or isinstance(given, str):
        return visible(given or "none")
    parts = [visible(x).strip() if isinstance(x, str) else str(x) for x in given]
    return (" " if any(isinstance(x, int) for x in given) else ", ").join(parts)


def ended(text: str, width: int) -> str:
    """The end of a text that is too long."""
    return text if len(text) <= width else "…" + text[1 - width :]
