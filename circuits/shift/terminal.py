"""Judging features at a terminal, by single keys."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..annotations import visible
from ..terminal import Styled, say
from .dossier import Dossier, Evidence
from .keys import END, Read, keys
from .screen import Screen, page
from .verdict_log import VerdictLog
from .verdicts import Verdict, Verdicts

# Spaces that do not break lines, between a key and what it does.
_KEYS = "y\u00a0spurious  n\u00a0keep  s\u00a0skip  u\u00a0undo  c\u00a0more  q\u00a0quit  ?\u00a0help"
_HELP = """\
y\u00a0\u00a0spurious: the classifier should not use this feature; it will be ablated
n\u00a0\u00a0keep: the feature has to do with what the classifier is for, or with nothing
s\u00a0\u00a0skip: undecided; it is asked about again the next time
u\u00a0\u00a0undo: the last verdict or skip is taken back, also one of an earlier sitting
c\u00a0\u00a0more contexts
q\u00a0\u00a0quit; every verdict is on the disk already, and the next time goes on here

What do the marked tokens have in common? A feature goes with a label of the texts by the correlation of its \
mean over a text with the label; apart: among texts that have the other label in common."""
_STEP = 6  # contexts that a key adds


def in_terminal(
    evidence: Dossier | Iterable[Evidence],
    path: str | Path | None = None,
    *,
    contexts: int = 5,
    by: str = "",
) -> Verdicts:
    """The verdicts of whoever sits at the terminal, feature by feature.

    With a path each is written as it is given, what stands there is not asked again, and it can be undone.
    Ctrl-C leaves as it ever does, and loses nothing. Where standard input is no terminal, every line of it
    is a key.

    Args:
        contexts: as many are shown at first.
        by: who judges, to be written with the verdicts.

    Raises:
        ValueError: a file of other features; standard input that is neither a terminal nor holds a line.
        KeyboardInterrupt: Ctrl-C.
    """
    dossier = evidence if isinstance(evidence, Dossier) else Dossier(tuple(evidence))
    log = VerdictLog(path, about=dossier.about, known=[(one.site, one.feature) for one in dossier])
    AtTerminal(contexts=contexts, by=by).all(dossier, log)
    return log.verdicts


@dataclass(frozen=True)
class AtTerminal:
    """A judge for `judged` and `shift`: whoever sits at the terminal; see `in_terminal`."""

    contexts: int = 5
    by: str = ""

    def __call__(self, evidence: Evidence) -> Verdict | None:
        log = VerdictLog()
        self.all(Dossier((evidence,)), log)
        return log.verdicts.get((evidence.site, evidence.feature))

    def all(self, evidence: Dossier, log: VerdictLog) -> None:
        """Goes through all that is not judged in the log yet."""
        with keys() as read:
            _Sitting(evidence, log, read, self.contexts, self.by or "terminal").run()


@dataclass
class _Sitting:
    """One person at one terminal."""

    dossier: Dossier
    log: VerdictLog
    read: Read
    contexts: int
    by: str
    skipped: list[int] = field(default_factory=list)
    history: list[str] = field(default_factory=list)  # what was done: "skip" or "verdict"
    note: str = ""
    back: int | None = None  # the feature that an undo came back to

    def run(self) -> None:
        asked = answered = False
        try:
            while (at := self._next()) is not None:
                asked = True
                if not self._ask(at, first=not answered):
                    break
                answered = True
        except KeyboardInterrupt:
            say()
            self._goodbye()
            raise
        if asked or len(self.dossier):
            self._goodbye()

    def _next(self) -> int | None:
        if self.back is not None:
            return self.back
        done = self.log.verdicts
        left = (i for i, one in enumerate(self.dossier) if (one.site, one.feature) not in done)
        return next((i for i in left if i not in self.skipped), None)

    def _ask(self, at: int, *, first: bool) -> bool:
        """Whether to go on, once the feature is dealt with."""
        one, shown = self.dossier[at], self.contexts
        shown = self._fitting(one, at, shown)
        self._draw(one, at, shown)
        while True:
            key = self.read()
            if key in ("y", "n"):
                self.log.add(Verdict(one.site, one.feature, key == "y", by=self.by))
                self._done("verdict", f"{one.name} is {'spurious' if key == 'y' else 'kept'}.")
                return True
            if key == "s":
                self.skipped.append(at)
                self._done("skip", f"{one.name} is skipped.")
                return True
            if key == "u":
                if self._undo():
                    return True
                self._draw(one, at, shown)
            elif key == "c":
                whole = len(one.contexts) + len(one.elsewhere)
                self.note = "" if shown < whole else "There are no more contexts."
                shown = min(max(whole, self.contexts), shown + _STEP)
                self._draw(one, at, shown)
            elif key in ("?", "h"):
                self._help()
            elif key == END and first and not sys.stdin.isatty():
                raise ValueError(
                    "There is nobody to judge: standard input is no terminal, and has no lines. Run this in "
                    "a terminal, pipe lines of y, n or s into it, or judge by a file or a rule."
                )
            elif key in ("q", END):
                return False
            elif key == "\x0c":  # Ctrl-L
                self._draw(one, at, shown)
            else:
                self.note = (
                    f"{visible(key)!r} is no key here." if key.isprintable() else "That is no key here."
                )
                self._draw(one, at, shown)

    def _undo(self) -> bool:
        """Takes back what was done last; False where there is nothing."""
        if self.history and self.history[-1] == "skip":
            self.history.pop()
            self.back = self.skipped.pop()
            self.note = "The skip is taken back."
            return True
        verdict = self.log.undo()
        if verdict is None:
            self.note = "There is nothing to take back."
            return False
        if self.history:
            self.history.pop()
        known = [(one.site, one.feature) for one in self.dossier]
        self.back = known.index(verdict.at)
        self.note = f"It was {'spurious' if verdict.spurious else 'kept'}, which is taken back."
        return True

    def _done(self, what: str, note: str) -> None:
        self.history.append(what)
        self.back, self.note = None, f"{note} u takes it back."

    def _draw(self, one: Evidence, at: int, contexts: int) -> None:
        screen = Screen.of()
        say(Styled(screen.cleared + "\n".join(self._lines(one, at, contexts, screen))))
        self._prompt()

    def _fitting(self, one: Evidence, at: int, contexts: int) -> int:
        """As many contexts as there is room for, but two at least."""
        screen = Screen.of()
        room = screen.height - 2 - len(screen.lines([(_KEYS, "")]))  # for the keys, and for a note
        while contexts > 2 and len(self._lines(one, at, contexts, screen)) > room:
            contexts -= 1
        return contexts

    def _lines(self, one: Evidence, at: int, contexts: int, screen: Screen) -> list[str]:
        verdicts = self.log.verdicts
        spurious = sum(verdict.spurious for verdict in verdicts.values())
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        state = f"{len(verdicts)} of {len(self.dossier)} judged, {spurious} spurious{skipped}"
        lines = [*screen.lines([(state, "faint")]), screen.rule()]
        lines += [screen.text(f"{visible(one.name)}   {at + 1} of {len(self.dossier)}", "bold")]
        return [*lines, *page(one, screen, contexts=contexts), screen.rule()]

    def _help(self) -> None:
        screen = Screen.of()
        lines = [line for text in _HELP.split("\n") for line in screen.lines([(text, "")], indent="   ")]
        say(Styled("\n".join(["", *lines, ""])))
        self._prompt()

    def _prompt(self) -> None:
        screen = Screen.of()
        lines = screen.lines([(visible(self.note), "active")]) if self.note else []
        say(Styled("\n".join([*lines, *screen.lines([(_KEYS, "faint")])])))
        self.note = ""

    def _goodbye(self) -> None:
        verdicts, path = self.log.verdicts, self.log.path
        spurious = sum(verdict.spurious for verdict in verdicts.values())
        kept, left = len(verdicts) - spurious, len(self.dossier) - len(verdicts)
        say(f"{len(verdicts)} of {len(self.dossier)} judged: {spurious} spurious, {kept} kept.")
        if path is not None:
            rest = f" The {left} left are asked about the next time." if left else ""
            say(f"All is in {path}.{rest}")
