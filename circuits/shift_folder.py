"""What `circuits shift run` keeps in a folder: settings, texts, probe, ranking, evidence, verdicts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from interventions.acts import Dictionary, Identity
from interventions.binding import splices
from interventions.probing import Logistic, Probe

from .annotations import visible
from .files import read_json
from .question import Say, checked_device, chosen, described, loaded_dictionaries, loaded_model, whole_path
from .record import write_json
from .shift.dossier import Dossier
from .shift.shift import check_before
from .shift.trial import Trial
from .shift.verdicts import Verdicts
from .shift_texts import NAMES, Texts, generated, of_files, published

SETTINGS, RUN = "settings.json", "shift run"
TEXTS, PROBE, CHECKPOINT = "texts", "probe", "checkpoint"
RANKING, EVIDENCE, VERDICTS, REPORT = "ranking.json", "evidence.json", "verdicts.jsonl", "report.json"


@dataclass(frozen=True)
class Shifting:
    """What SHIFT is asked to do, as it stands on the command line and in settings.json."""

    model: str = "embedded"
    dictionaries: str | None = None
    sites: Sequence[str] | None = None
    at: str | None = None
    train: str | None = None
    test: str | None = None
    known: str | None = None
    text_column: str = "text"
    label: str = "label"
    spurious: str = "spurious"
    biographies: int | None = None
    bias_in_bios: bool = False
    each: int = 500
    seed: int = 0
    l2: float = 1.0
    ranked: int | None = None
    ranked_on: int = 100
    batch_size: int = 16
    device: str = "auto"
    dtype: str | None = None

    def resolved(self) -> Shifting:
        """With what is left open decided, and files by their whole path.

        Raises:
            ValueError: no texts, or several kinds of them.
        """
        files = [name for name in ("train", "test", "known") if getattr(self, name) is not None]
        kinds = [bool(files), self.biographies is not None, self.bias_in_bios]
        if sum(kinds) != 1:
            raise ValueError(
                "Give texts: --train FILE and --test FILE, or --biographies N, or --bias-in-bios"
                + ("; not several of these." if sum(kinds) else ".")
            )
        if files and not {"train", "test"} <= set(files):
            raise ValueError("Files come as --train FILE and --test FILE, and perhaps --known FILE.")
        given = self.dictionaries or ("embedded" if self.model == "embedded" else "neurons")
        whole = {name: str(Path(getattr(self, name)).resolve()) for name in files}
        return replace(
            self,
            model=whole_path(self.model, "embedded"),
            dictionaries=whole_path(given, "embedded", "neurons"),
            device=checked_device(self.device),
            **whole,
        )

    @property
    def texts(self) -> Texts:
        if self.biographies is not None:
            return generated(self.biographies, self.seed)
        if self.bias_in_bios:
            return published(self.each, self.seed)
        return of_files(
            str(self.train), str(self.test), self.known,
            text=self.text_column, label=self.label, spurious=self.spurious,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """What the folder is called where no other is asked for."""
        stem = "biographies" if self.biographies is not None else "bias-in-bios"
        stem = stem if self.train is None else Path(self.train).stem
        return f"shift-{_plain(stem)}"


@dataclass(frozen=True)
class Begun:
    """A folder with its model loaded."""

    folder: Path
    asked: Shifting
    trial: Trial
    dictionaries: Mapping[str, Dictionary]


def begun(
    folder: Path, asked: Shifting, texts: Texts, before: Mapping[str, Any], *, progress: bool | None, say: Say
) -> Begun:
    """The texts of a folder, with the model, dictionaries and probe that it is about. `before` is what was
    noted of the run that goes on, if one does.

    Raises:
        ValueError: what `Trial` refuses; a dictionary after the probe; another model than the folder's.
        LookupError: a site that there is not.
    """
    model = loaded_model(asked.model, device=asked.device, dtype=asked.dtype)
    say(f"Model         {described(model, asked.model)}")
    known = before.get("model")
    if known not in (None, model.fingerprint):
        raise ValueError(
            f"{folder} is of another model ({str(known)[:8]}), or of another --dtype, than {asked.model} in "
            f"{str(model.dtype).removeprefix('torch.')} ({model.fingerprint[:8]})."
        )
    at = asked.at or f"resid.{min(2 * len(model.blocks) // 3, len(model.blocks) - 1)}"
    trial = Trial(
        model, texts.train, texts.test, at, texts.known, Logistic(asked.l2), seed=asked.seed,
        batch_size=asked.batch_size, progress=progress,
    )  # fmt: skip
    dictionaries = _dictionaries(trial, asked, say)
    say(f"Texts         {', '.join(map(visible, trial.classes))}: {texts}")
    if before and (folder / PROBE / "probe.json").is_file():
        trial = trial.with_probe(Probe.load(folder / PROBE))
    return Begun(folder, asked, trial, dictionaries)


def _dictionaries(trial: Trial, asked: Shifting, say: Say) -> dict[str, Dictionary]:
    """Those asked for, or all up to the site that the probe reads."""
    model, last = trial.model, trial.model.site(trial.at)
    source = str(asked.dictionaries)
    if source == "neurons":
        every = {name: Identity() for name, site in model.sites.items() if asked.sites or site.side == "out"}
        found: dict[str, Dictionary] = chosen(every, asked.sites)  # type: ignore[arg-type]
    else:
        found = loaded_dictionaries(source, model, sites=asked.sites, dtype=model.dtype)
    if not asked.sites:
        found = {name: found[name] for name in found if model.site(name) <= last}
        if not found:
            raise ValueError(
                f"There is no dictionary up to {trial.at}, where the probe reads: put it later with --at."
            )
    check_before(trial, found)
    stems = ", ".join(dict.fromkeys(re.sub(r"\.\d+$", ".*", visible(name)) for name in found))
    sites = f"{len(found)} site{'s' * (len(found) != 1)}"
    say(f"Dictionaries  {visible(Path(source).name)}, at {sites}: {stems}; the probe reads {trial.at}")
    splices(trial.reader, found)
    return found


def required(given: str | Path) -> Path:
    """The folder, if `circuits shift run` wrote it. Raises FileNotFoundError where it did not."""
    folder = Path(given)
    if not (folder / SETTINGS).is_file() or RUN not in read_settings(folder):
        raise FileNotFoundError(f"There is no SHIFT in {str(given)!r}; `circuits shift run` begins one.")
    return folder


def asked_in(folder: Path) -> Shifting:
    """The options with which a folder was begun."""
    options = read_settings(folder)[RUN].get("options", {})
    known = set(asdict(Shifting()))
    return Shifting(**{name: value for name, value in options.items() if name in known})


def evidence_in(folder: Path) -> Dossier:
    """What was gathered for a judge. Raises FileNotFoundError where that is not done yet."""
    if not (folder / EVIDENCE).is_file():
        raise FileNotFoundError(
            f"The features in {folder} are not ranked yet: the command in its {SETTINGS} goes on with that."
        )
    return Dossier.load(folder / EVIDENCE)


def verdicts_in(folder: Path, given: str | None, dossier: Dossier) -> Verdicts:
    """The verdicts in a folder, or in a file.

    Raises:
        FileNotFoundError: none there.
        ValueError: none in the file, or some on features that are not ranked.
    """
    path = folder / VERDICTS if given is None else Path(given)
    if given is None and not path.is_file():
        raise FileNotFoundError(f"Nothing is judged in {folder} yet: `circuits shift judge {folder}` does.")
    found = Verdicts.load(path)
    if not found:
        raise ValueError(f"{path} holds no verdict yet: `circuits shift judge {folder}` goes on.")
    try:
        found.check([(one.site, one.feature) for one in dossier])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return found


def texts_in(folder: Path, asked: Shifting) -> Texts:
    """The texts with which a folder was begun. Raises ValueError where their files say something else now."""
    found = Texts.load(folder / TEXTS)
    files = [path for path in (asked.train, asked.test, asked.known) if path is not None]
    if files and all(Path(path).is_file() for path in files):
        now = asked.texts
        for name in NAMES:
            before, after = (
                None if (one := getattr(sets, name)) is None else one.texts for sets in (found, now)
            )
            if before != after:
                raise ValueError(
                    f"{getattr(asked, name)} has changed since {folder} was begun; give --out, or --fresh to "
                    "replace it."
                )
    return found


def check_same(folder: Path, asked: Shifting) -> None:
    """Raises ValueError where a folder is of something else, or of other options."""
    settings = read_settings(folder)
    if not settings:
        return
    before = settings.get(RUN)
    if not isinstance(before, dict) or not isinstance(before.get("options"), dict):
        raise ValueError(f"{folder / SETTINGS} is a file of something else: choose another folder.")
    now, then = options(asked), {**options(Shifting()), **before["options"]}
    free = ("device", "batch_size")
    if differ := [name for name in now if now[name] != then.get(name) and name not in free]:
        raise ValueError(
            f"{folder} is of a run with another --{', --'.join(differ).replace('_', '-')}; give --out, or "
            "--fresh to replace it."
        )


def discard(folder: Path) -> None:
    """Removes what a run left, if one did."""
    if RUN not in read_settings(folder):
        return
    for name in (TEXTS, PROBE, CHECKPOINT):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (RANKING, EVIDENCE, VERDICTS, REPORT, SETTINGS):
        (folder / name).unlink(missing_ok=True)


def options(asked: Shifting) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(asked)))


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a folder, or none."""
    return read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}


def note(folder: Path, command: str, record: Mapping[str, Any]) -> None:
    """Notes a command in the settings of a folder, beside what is there."""
    before = read_settings(folder)
    write_json(folder / SETTINGS, {**before, command: {**before.get(command, {}), **record}})


def _plain(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "texts"
