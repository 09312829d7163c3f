"""A feature as it is drawn on a terminal, in colours or without."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TextIO

from interventions.dictionaries.measures import Context

from ..annotations import visible
from .dossier import Change, Correlation, Evidence

Span = tuple[str, str]  # text, and how it is drawn
_CODES = {"bold": "1", "faint": "2", "peak": "1;7", "active": "33", "yes": "1;31", "no": "1;32", "": ""}
_WIDEST = 100
_TOKEN = 24  # columns at most of a token in a list


@dataclass(frozen=True)
class Screen:
    """Where things are drawn: how many columns and lines, whether in colours, whether it can be cleared."""

    width: int = 80
    height: int = 24
    colours: bool = False
    clears: bool = False

    @classmethod
    def of(cls, stream: TextIO | None = None) -> Screen:
        """That of a stream, by default standard output; `NO_COLOR` in the environment turns colours off."""
        drawn = sys.stdout if stream is None else stream
        able = drawn.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        size = shutil.get_terminal_size()
        width = max(20, min(_WIDEST, size.columns - 1))
        return cls(width, size.lines, able and not os.environ.get("NO_COLOR"), able)

    def lines(self, spans: Iterable[Span], *, first: str = "", indent: str = "") -> list[str]:
        """Text broken at spaces into lines that fit."""
        return [self._drawn(_trimmed(line)) for line in _broken(spans, self.width, first, indent)]

    def text(self, text: str, style: str = "") -> str:
        """One line, cut where it does not fit."""
        return self.lines([(text, style)])[0]

    @property
    def cleared(self) -> str:
        """What clears it; what stood there can be scrolled back to."""
        return "\x1b[2J\x1b[H" if self.clears else "\n"

    def rule(self) -> str:
        return self.text("─" * self.width, "faint")

    def _drawn(self, line: Sequence[Span]) -> str:
        if not self.colours:
            return "".join(character for character, _ in line).replace("\u00a0", " ")
        runs = (
            (style, "".join(c for c, _ in run).replace("\u00a0", " "))
            for style, run in groupby(line, key=lambda span: span[1])
        )
        return "".join(f"\x1b[{_CODES[s]}m{t}\x1b[0m" if _CODES[s] else t for s, t in runs)


def page(evidence: Evidence, screen: Screen, *, contexts: int) -> list[str]:
    """The lines of one feature: its numbers, the tokens it speaks for, and so many contexts."""
    facts = [
        (
            "effect",
            f"{evidence.effect:+.3g} ± {evidence.candidate.error:.2g}, {evidence.share:+.1%} of the logit",
        ),
        ("active", f"at {evidence.density:.2%} of tokens, mean {evidence.mean:.3g} there"),
        ("goes with", ", ".join(_going(evidence.label, evidence.spurious))),
    ]
    if evidence.attribution is not None:
        share = evidence.attribution_share
        of = "" if share is None else f", {share:+.1%} of the logit"
        facts.append(("attribute", f"{evidence.attribution:+.3g}{of}"))
    lines = []
    for name, value in facts:
        lines += screen.lines([(value, "")], first=f"{name:11}", indent=" " * 11)
    for name, tokens in _tokens(evidence):  # as many as there is room for in a line
        room = min(_TOKEN, screen.width - 11)
        lines += screen.lines([(_listed(tokens, room), "")], first=f"{name:11}")[:1]
    shown = 0
    for title, found in (("", evidence.contexts), ("On other text:", evidence.elsewhere)):
        some = found[: max(0, contexts - shown)]
        shown += len(some)
        lines += ["", screen.text(title, "bold")] if title and some else [""] * bool(some)
        for context in some:
            lines += screen.lines(_spans(context, screen), first=f"{context.value:6.3g}  ", indent=" " * 8)
    left = len(evidence.contexts) + len(evidence.elsewhere) - shown
    if left:
        lines += screen.lines([(f"and {left} more, by c", "faint")], first=" " * 8)
    elif not shown:
        lines += ["", screen.text("Nowhere active in these texts.", "faint")]
    return lines


def _going(label: Correlation, spurious: Correlation | None) -> list[str]:
    found = [label] if spurious is None else [spurious, label]
    return [str(one) for one in found]


def _tokens(evidence: Evidence) -> list[tuple[str, Change]]:
    both = (("raises", evidence.raised), ("lowers", evidence.lowered))
    return [(name, tokens) for name, tokens in both if tokens]


def _listed(tokens: Change, widest: int) -> str:
    found = (visible(token).strip().replace(" ", "·") or "·" for token, _ in tokens)
    return "  ".join(_cut(token, widest) for token in found)


def _cut(text: str, widest: int) -> str:
    """A text without its end where it takes more columns."""
    if _wide(text) <= widest:
        return text
    while _wide(text) >= widest:
        text = text[:-1]
    return f"{text}…"


def _spans(context: Context, screen: Screen) -> list[Span]:
    """A context with its peak marked: by colour, else by brackets."""
    spans: list[Span] = []
    for at, (token, value) in enumerate(zip(context.tokens, context.values, strict=True)):
        text = visible(token)
        bare = text.lstrip(" ")
        space = text[: len(text) - len(bare)]
        if at == context.at:
            bare = bare or "·"
            spans += [(space, ""), (bare if screen.colours else f"[{bare}]", "peak")]
        else:
            spans += [(space, ""), (bare, "active" if value else "")]
    return spans


def _broken(spans: Iterable[Span], width: int, first: str, indent: str) -> list[list[Span]]:
    """Lines of single characters, broken at spaces where there are some."""
    characters = [(c, style) for text, style in spans for c in text]
    while characters and characters[0][0] == " ":
        characters.pop(0)
    lines, line, used = [], [(c, "bold") for c in first], _wide(first)
    for word in _words(characters):
        if word[0][0] == " ":
            if used < width:
                line += word
                used += 1
            continue
        size = sum(_wide(c) for c, _ in word)
        if used + size > width and used > len(indent):
            lines.append(line)
            line, used = [(c, "") for c in indent], len(indent)
        for character in word:
            if used + _wide(character[0]) > width:  # a word wider than the line
                lines.append(line)
                line, used = [(c, "") for c in indent], len(indent)
            line.append(character)
            used += _wide(character[0])
    return [*lines, line]


def _trimmed(line: list[Span]) -> list[Span]:
    while line and line[-1][0] == " ":
        line = line[:-1]
    return line


def _words(characters: Sequence[Span]) -> list[list[Span]]:
    """Runs without spaces, and single spaces."""
    found: list[list[Span]] = []
    for character in characters:
        if character[0] == " " or not found or found[-1][0][0] == " ":
            found.append([])
        found[-1].append(character)
    return found


def _wide(text: str) -> int:
    """How many columns a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )
