"""The commands that score dictionaries by labelled texts, as the command line gives them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from interventions.acts import Dictionary
from interventions.concepts import SCR, Sweep, scr_sweep, tpp_sweep
from interventions.model import Model
from interventions.probing import Logistic, Recipe
from interventions.probing.selected import Selected
from interventions.probing.trained import Trained

from . import concept_texts
from .annotations import visible
from .files import writable
from .lens_folder import note
from .question import Say, checked_device, described, loaded_dictionaries, loaded_model, whole_path
from .record import Clock, interruptible, write_json

_ROOM = 0.05  # between base and ceiling of SCR, for scores to mean something
PROBES: Mapping[str, Callable[[], Recipe]] = {
    "logistic": Logistic,
    "selected": Selected,
    "trained": lambda: Trained(lr=1e-3, epochs=20, batch_size=16, l1=1e-3, validation=0.2, standardise=False),
}


@dataclass(frozen=True)
class Evaluating:
    """What dictionaries are scored on, and how, as it stands on the command line and in settings.json."""

    model: str = "embedded"
    dictionaries: Sequence[str] = ("embedded",)
    site: Sequence[str] | None = None
    train: str | None = None
    test: str | None = None
    biographies: int | None = None
    bias_in_bios: bool = False
    each: int | None = None
    held_out: float = 0.3
    text_column: str = "text"
    label: str = "label"
    spurious: str | None = None
    together: Sequence[str] | None = None
    context: int = 128
    seed: int = 0
    sizes: Sequence[int] = (2, 5, 10, 20, 50, 100, 500)
    probe: str = "logistic"
    seeds: Sequence[int] = (0,)
    batch_size: int = 16
    device: str = "auto"
    dtype: str | None = None


def scr(asked: Evaluating, **run: Any) -> None:
    """Scores dictionaries by spurious correlation removal, and says and draws it."""
    together = _together(asked.together)
    keep = ("profession", "gender") if asked.train is None else (asked.label, asked.spurious or "spurious")
    _evaluate("scr", asked, lambda *args, **how: scr_sweep(*args, keep=keep, together=together, **how), **run)


def tpp(asked: Evaluating, **run: Any) -> None:
    """Scores dictionaries by targeted probe perturbation, and says and draws it."""
    _evaluate("tpp", asked, tpp_sweep, **run)


def _evaluate(
    kind: str, asked: Evaluating, sweep: Callable[..., Sweep], *, out: str | None, fresh: bool,
    pictures: bool, progress: bool | None, command: str, say: Say,
) -> None:  # fmt: skip
    clock = Clock()
    concept_texts.check(asked)
    asked = _whole(asked)
    name = concept_texts.named(asked)
    train, test = concept_texts.texts_of(asked)
    folder = writable(out or Path("results") / f"{kind}-{name}")
    if fresh:
        _discard(folder / kind)
    model = loaded_model(asked.model, device=asked.device, dtype=asked.dtype)
    say(f"Model         {described(model, asked.model)}")
    dictionaries = _dictionaries(asked, model)
    say(f"Dictionaries  {_counted(dictionaries)}")
    say(f"Texts         {visible(name)}: {len(train)} to fit probes to, {len(test)} to test on")
    clock.lap("loading")
    with interruptible("Dictionaries that are done are kept: the same command goes on."):
        found = sweep(
            model, dictionaries, train, test, sizes=tuple(asked.sizes), recipe=PROBES[asked.probe](),
            seeds=tuple(asked.seeds), context=asked.context, batch_size=asked.batch_size,
            folder=folder / kind, progress=progress,
        )  # fmt: skip
    clock.lap("scoring")
    say(f"\n{found}")
    if narrow := _narrow(found):
        say(
            f"\nAt {', '.join(map(visible, narrow))} a probe of its own tells the label hardly better than "
            f"the spurious one does, by less than {_ROOM:g}: scores there are noise."
        )
    written = [f"{kind}/", f"{kind}.json"]
    write_json(folder / f"{kind}.json", _numbers(found))
    if pictures:
        from .concept_plots import plot_costs, plot_scores

        written.append(plot_scores(found, folder / f"{kind}.svg", title=f"{kind.upper()} on {name}").name)
        if len({one.l0 for one in found.values()}) > 1:
            written.append(plot_costs(found, folder / f"{kind}-l0.svg", width=5.0).name)
    record = {"command": command, "options": asdict(asked), "model": model.fingerprint, **clock.record()}
    note(folder, f"evaluate-dictionary {kind}", record)
    say(f"\nWritten to {folder} after {clock}: {', '.join(written)}.")


def _narrow(found: Sweep) -> list[str]:
    """The sites at which there is hardly anything to recover."""
    rooms: dict[str, list[float]] = {}
    for one in found.values():
        rooms.setdefault(one.site, []).extend(score.room for score in one.scores if isinstance(score, SCR))
    return [site for site, those in rooms.items() if those and sum(those) / len(those) < _ROOM]


def _whole(asked: Evaluating) -> Evaluating:
    return replace(
        asked,
        model=whole_path(asked.model, "embedded"),
        dictionaries=[whole_path(one, "embedded") for one in asked.dictionaries],
        train=asked.train and whole_path(asked.train),
        test=asked.test and whole_path(asked.test),
        device=checked_device(asked.device),
    )


def _dictionaries(asked: Evaluating, model: Model) -> dict[str, dict[str, Dictionary]]:
    """Those of all folders by their sites, and where there are several folders by their names.

    Raises:
        ValueError: two folders that are the same.
    """
    names = [Path(one).name for one in asked.dictionaries]
    names = [
        one if names.count(name) > 1 else name for name, one in zip(names, asked.dictionaries, strict=True)
    ]
    if len(set(names)) < len(names):
        raise ValueError(f"Dictionaries are named twice: {', '.join(names)}.")
    found: dict[str, dict[str, Dictionary]] = {}
    for name, source in zip(names, asked.dictionaries, strict=True):
        some = loaded_dictionaries(source, model, sites=asked.site, dtype=model.dtype)
        for site, dictionary in some.items():
            found.setdefault(site, {})[name if len(names) > 1 else ""] = dictionary
    return found


def _counted(dictionaries: Mapping[str, Mapping[str, Dictionary]]) -> str:
    n = sum(map(len, dictionaries.values()))
    return f"{n} at {', '.join(map(visible, dictionaries))}"


def _together(given: Sequence[str] | None) -> dict[str, str] | None:
    if given is None:
        return None
    parts = [one.partition("=") for one in given]
    if odd := [
        one for one, (label, _, spurious) in zip(given, parts, strict=True) if not (label and spurious)
    ]:
        raise ValueError(f"--together takes pairs such as professor=male, not {odd[0]!r}.")
    return {label: spurious for label, _, spurious in parts}


def _discard(folder: Path) -> None:
    """Removes a sweep of an earlier run, and nothing that is not one."""
    if (folder / "sweep.json").is_file():
        shutil.rmtree(folder)


def _numbers(found: Sweep) -> dict[str, Any]:
    return {
        "score": found.kind.upper(),
        "features_ablated": list(found.sizes),
        "seeds": list(found.seeds),
        "dictionaries": {
            name: {
                "site": one.site, "features": one.n_features, "l0": one.l0, "seconds": one.seconds,
                "score": one.score.tolist(), "interval": one.interval().tolist(),
            }
            for name, one in found.items()
        },
    }  # fmt: skip
