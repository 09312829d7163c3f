"""The commands that take out of a classifier what it should not use, as the command line gives them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tasks import LabelledSet

from .files import writable
from .question import Say, checked_device, whole_path
from .record import Clock, interruptible
from .shift.baselines import check_words, deleted
from .shift.dossier import Dossier
from .shift.judges import Judge, by_attribution, correlates, from_file, judged
from .shift.ranking import Ranking
from .shift.report import Across, Report
from .shift.shift import ranked, reported, shown
from .shift.verdicts import Verdicts
from .shift_folder import (
    CHECKPOINT,
    EVIDENCE,
    PROBE,
    RANKING,
    REPORT,
    RUN,
    SETTINGS,
    TEXTS,
    VERDICTS,
    Begun,
    Shifting,
    asked_in,
    begun,
    check_same,
    discard,
    evidence_in,
    note,
    options,
    read_settings,
    required,
    texts_in,
    verdicts_in,
)
from .shift_texts import Delete, Texts, deletion

__all__ = ["Reporting", "Shifting", "judge", "report", "run"]
LATER = "later"
_BY_HAND, _BY_MACHINE = 100, 1000  # features that are judged
_FEW = 10  # features listed


@dataclass(frozen=True)
class Reporting:
    """What SHIFT is held against, as it stands on the command line."""

    draws: int = 3
    words: Sequence[str] | None = None
    delete: str | None = None


def run(
    asked: Shifting, *, judge: str, contexts: int, out: str | None, fresh: bool, reporting: Reporting,
    pictures: bool, progress: bool | None, command: str, say: Say,
) -> None:  # fmt: skip
    """Ranks what a biased probe uses, has it judged, ablates what is spurious, and compares."""
    clock = Clock()
    asked = asked.resolved()
    judging = _judge(judge, contexts)
    delete = deletion(reporting.delete, gendered=_gendered(asked))
    folder = writable(out or Path("results") / asked.name)
    before = read_settings(folder).get(RUN, {})
    if not (before and fresh):
        check_same(folder, asked)
        _check_judge(folder, judge)
    going_on = {} if fresh else before
    texts = texts_in(folder, asked) if going_on else asked.texts
    _check_known(texts, judge)
    done = begun(folder, asked, texts, going_on, progress=progress, say=say)
    _check_comparison(done, reporting, delete)
    if not going_on:  # what was refused so far leaves nothing behind, and takes nothing away
        discard(folder)
        texts.save(folder / TEXTS)
    record = {"command": command, "options": options(asked), "model": done.trial.model.fingerprint}
    note(folder, RUN, record)
    clock.lap("loading")
    with interruptible(f"The same command goes on from what is in {folder}."):
        dossier = _ranked(
            done, asked.ranked or (_BY_HAND if judge in (LATER, "terminal") else _BY_MACHINE), say
        )
        clock.lap("ranking")
        if judging is None:
            note(folder, RUN, clock.record())
            say(f"\nWritten to {folder} after {clock}: {RANKING}, {EVIDENCE}, {SETTINGS}.")
            say(f"`circuits shift judge {folder}` asks you about every feature.")
            return
        note(folder, RUN, {"judge": judge})  # first, so that no other one goes on with its verdicts
        verdicts = judged(dossier, judging, folder / VERDICTS, progress=progress)
        clock.lap("judging")
        say(f"Verdicts      {_counted(verdicts, dossier)}\n")
        if verdicts:
            written = _reported(done, verdicts, folder, reporting, pictures, say)
        else:
            say(f"`circuits shift judge {folder}` goes on.")
            return
    clock.lap("comparing")
    note(folder, RUN, clock.record())
    written += [RANKING, EVIDENCE, VERDICTS, SETTINGS]
    say(f"\nWritten to {folder} after {clock}: {', '.join(written)}.")


def judge(given: str, *, contexts: int, by: str, say: Say) -> None:
    """Asks whoever is at the terminal about every feature that is not judged yet."""
    from .shift.terminal import in_terminal

    folder = required(given)
    dossier = evidence_in(folder)
    with interruptible(f"What is judged is in {folder / VERDICTS}; the same command goes on."):
        verdicts = in_terminal(dossier, folder / VERDICTS, contexts=contexts, by=by)
    note(folder, RUN, {"judge": "terminal"})
    say(f"\n{_counted(verdicts, dossier)}")
    more = len(dossier) > len(verdicts)
    say(f"`circuits shift {'judge' if more else 'report'} {folder}` {'goes on' if more else 'ablates them'}.")


def report(
    given: Sequence[str], reporting: Reporting, *, model: str | None, verdicts: str | None, device: str,
    dtype: str | None, batch_size: int, out: str | None, pictures: bool, progress: bool | None,
    command: str, say: Say,
) -> None:  # fmt: skip
    """Ablates what was judged spurious, trains the probe again, and compares; or the mean over folders."""
    if len(given) > 1:
        _across([required(one) for one in given], out, pictures, say)
        return
    clock = Clock()
    folder = required(given[0])
    dossier = evidence_in(folder)
    found = verdicts_in(folder, verdicts, dossier)
    asked = asked_in(folder)
    delete = deletion(reporting.delete, gendered=_gendered(asked))
    target = writable(out or folder)
    asked = replace(
        asked,
        model=whole_path(model, "embedded") if model else asked.model,
        device=checked_device(device),
        dtype=dtype or asked.dtype,
        batch_size=batch_size,
    )
    before = read_settings(folder)[RUN]
    done = begun(folder, asked, Texts.load(folder / TEXTS), before, progress=progress, say=say)
    _check_comparison(done, reporting, delete)
    say(f"Verdicts      {_counted(found, dossier)}\n")
    with interruptible(f"`circuits shift report {folder}` begins anew."):
        written = _reported(done, found, target, reporting, pictures, say)
    clock.lap("comparing")
    if target == folder:
        note(folder, "shift report", {"command": command, **clock.record()})
    say(f"\nWritten to {target} after {clock}: {', '.join(written)}.")


# --- steps --------------------------------------------------------------------------------------------------


def _ranked(done: Begun, most: int, say: Say) -> Dossier:
    """The evidence on what the probe uses; what is in the folder is not made again."""
    folder, trial = done.folder, done.trial
    if not (folder / PROBE / "probe.json").is_file():
        trial.probe.save(folder / PROBE)
    if (folder / RANKING).is_file():
        ranking = Ranking.load(folder / RANKING)
        say(f"Ranking       {len(ranking)} features, of before")
    else:
        texts = _some(trial.train, done.asked.ranked_on, trial.seed)
        ranking = ranked(trial, done.dictionaries, most=most, texts=texts, checkpoint=folder / CHECKPOINT)
        ranking.save(folder / RANKING)
        say(f"Ranking       {len(ranking)} features by their effects on {ranking.texts} texts\n")
        say(f"{ranking.table(most=_FEW)}\n")
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    if (folder / EVIDENCE).is_file():
        return Dossier.load(folder / EVIDENCE)
    dossier = shown(trial, done.dictionaries, ranking)
    dossier.save(folder / EVIDENCE)
    return dossier


def _reported(
    done: Begun, verdicts: Verdicts, folder: Path, reporting: Reporting, pictures: bool, say: Say
) -> list[str]:
    """Compares, says and writes; gives the names of the files."""
    found = reported(
        done.trial, done.dictionaries, verdicts, words=reporting.words,
        delete=deletion(reporting.delete, gendered=_gendered(done.asked)), draws=reporting.draws,
        config={"options": options(done.asked)},
    )  # fmt: skip
    found.save(folder / REPORT)
    say(str(found))
    return [REPORT, *(_drawn(found, folder) if pictures else ())]


def _across(folders: Sequence[Path], out: str | None, pictures: bool, say: Say) -> None:
    reports = []
    for folder in folders:
        if not (folder / REPORT).is_file():
            raise FileNotFoundError(f"There is no report in {folder}: `circuits shift report {folder}`.")
        reports.append(Report.load(folder / REPORT))
        if reports[-1] in reports[:-1]:
            raise ValueError(f"{folder} has the report of another folder: the mean is over different seeds.")
    found = Report.across(reports)
    target = writable(out or Path("results") / "shift-means")
    found.save(target / "means.json")
    say(str(found))
    say(f"\nWritten to {target}: {', '.join(['means.json', *(_drawn(found, target) if pictures else ())])}.")


def _drawn(found: Report | Across, folder: Path) -> Iterator[str]:
    from .shift_plots import plot_groups, plot_shift

    yield plot_shift(found, folder / "report.svg").name
    yield plot_groups(found, folder / "groups.svg").name


# --- parts --------------------------------------------------------------------------------------------------


def _judge(given: str, contexts: int) -> Judge | None:
    """Who judges; nobody, where that is for later.

    Raises:
        FileNotFoundError: neither one of the words nor a file.
        ValueError: a file that holds no verdicts.
    """
    if given == LATER:
        return None
    if given == "attribution":
        return by_attribution()
    if given == "rule":
        return correlates()
    if given == "terminal":
        from .shift.terminal import AtTerminal

        return AtTerminal(contexts=contexts)
    if not Path(given).is_file():
        raise FileNotFoundError(
            f"There is no judge and no file {given!r}; there are attribution, rule, terminal and later."
        )
    return from_file(given)


def _check_judge(folder: Path, given: str) -> None:
    """Raises ValueError where another judge has given verdicts, which would stand."""
    before = read_settings(folder).get(RUN, {}).get("judge")
    if before not in (None, given) and given != LATER and (folder / VERDICTS).is_file():
        raise ValueError(
            f"{folder / VERDICTS} has the verdicts of {before}: `circuits shift report {folder}` goes by "
            "them; move the file away to have the features judged anew."
        )


def _check_known(texts: Texts, judge: str) -> None:
    if texts.known is None and judge in ("attribution", "rule"):
        raise ValueError(
            f"--judge {judge} takes texts in which the two labels do not go together: give --known FILE, or "
            "judge by --judge terminal or a file."
        )


def _check_comparison(done: Begun, reporting: Reporting, delete: Delete | None) -> None:
    """Raises ValueError for words that the baselines could make nothing of, before anything is worked out."""
    if reporting.words is not None:
        check_words(done.trial, reporting.words)
    if delete is not None:
        deleted(done.trial, delete)


def _some(texts: LabelledSet, most: int, seed: int) -> LabelledSet:
    """About so many, each pair of labels by its share; or any, where rounding leaves none or all of them."""
    if len(texts) <= most:
        return texts
    try:
        return texts.split(most, seed)[0]
    except ValueError:
        return replace(texts, texts=random.Random(seed).sample(list(texts), most))


def _gendered(asked: Shifting) -> bool:
    return asked.biographies is not None or asked.bias_in_bios


def _counted(verdicts: Verdicts, dossier: Dossier) -> str:
    spurious = sum(verdict.spurious for verdict in verdicts.given)
    left = len(dossier) - len(verdicts)
    return f"{len(verdicts)} of {len(dossier)} features judged, {spurious} spurious" + (
        f"; {left} left, which are kept" if left else ""
    )
