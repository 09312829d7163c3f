"""What there is to see of one feature, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from interventions.dictionaries.measures.profiles import Context

from .annotations import visible
from .portrait import Portrait
from .terminal import Styled

_BACKGROUNDS = tuple(f"48;5;{shade}" for shade in (223, 216, 209))  # from weak to strong, under dark text


def feature_table(portrait: Portrait, *, width: int = 100, colour: bool = False) -> Iterator[Styled]:
    """Lines that describe a feature; tokens at which it is active are shaded, or stand in brackets."""
    yield Styled(_bold(portrait.name, colour))
    there = f"{portrait.density:.2%} of {portrait.positions:,} positions"
    if portrait.largest:
        there += f", mean {portrait.mean:.3g} there, at most {portrait.largest:.3g}"
    yield _line("active at", there)
    for name, changes in (("raises", portrait.raised), ("lowers", portrait.lowered)):
        if changes is not None:
            said = (f"{_token(token)} {value:+.2f}" for token, value in changes)
            yield _line(name, _fitted(said, width - 12))
    said = (f"/{near.feature} {near.decoder:.2f}" for near in portrait.nearest)
    yield _line("nearest", _fitted(said, width - 12))
    for name, contexts in (("most active", portrait.strongest), ("at random", portrait.drawn)):
        if contexts:
            yield Styled("")
            yield Styled(f"  {name}")
        for context in contexts:
            yield Styled(f"  {context.value:7.3g}  {_context(context, portrait.largest, width - 11, colour)}")


def _line(name: str, said: str) -> Styled:
    return Styled(f"  {name:10}{said}")


def _fitted(parts: Iterator[str], width: int) -> str:
    line = ""
    for part in parts:
        longer = f"{line}   {part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line


def _context(context: Context, largest: float, width: int, colour: bool) -> str:
    """One line of text about the place of the peak: two thirds of it before, one after."""
    shown = [visible(token) for token in context.tokens]
    marked = [bool(value) and (colour or at == context.at) for at, value in enumerate(context.values)]
    sizes = [len(text) + (0 if colour or not mark else 2) for text, mark in zip(shown, marked, strict=True)]
    first = last = context.at
    used = sizes[first]
    while first > 0 and used + sizes[first - 1] <= width * 2 // 3:
        first -= 1
        used += sizes[first]
    while last + 1 < len(sizes) and used + sizes[last + 1] <= width:
        last += 1
        used += sizes[last]
    parts = []
    for at in range(first, last + 1):
        text = shown[at]
        if marked[at]:
            text = text or "∅"
            space = " " if text[:1] == " " and len(text) > 1 else ""
            text = text.removeprefix(space)
            strength = abs(context.values[at]) / (largest or 1)
            text = space + (_shaded(text, strength) if colour else f"[{text}]")
        parts.append(text)
    return "".join(parts)


def _token(text: str) -> str:
    return visible(text).replace(" ", "·") or "∅"


def _shaded(text: str, strength: float) -> str:
    background = _BACKGROUNDS[min(len(_BACKGROUNDS) - 1, int(strength * len(_BACKGROUNDS)))]
    return f"\x1b[38;5;16;{background}m{text}\x1b[0m"


def _bold(text: str, colour: bool) -> str:
    return f"\x1b[1m{visible(text)}\x1b[0m" if colour else visible(text)


def columns(rows: Sequence[Sequence[str]], *, left: int = 1) -> Iterator[str]:
    """A table on a terminal: the first so many columns stand on the left, the others on the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{cell:{'<' if at < left else '>'}{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
