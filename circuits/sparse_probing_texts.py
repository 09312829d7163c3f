"""Which texts are probed, and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.biographies import bias_in_bios, biographies
from tasks.labelled import LabelledSet

if TYPE_CHECKING:
    from .sparse_probing_commands import Probing


@dataclass(frozen=True)
class Texts:
    """All texts, the columns of labels, and which texts are trained on, tested on, and of other kinds."""

    name: str
    texts: Sequence[str]
    labels: Mapping[str, Sequence[str]]
    train: Sequence[int]
    test: Sequence[int]
    kinds: Mapping[str, Sequence[int]]

    def __str__(self) -> str:
        others = "".join(f", {len(index)} of {kind}" for kind, index in self.kinds.items())
        counted = f"{len(self.train)} to train on, {len(self.test)} to test on{others}"
        return f"{self.name}: {counted}; labels: {', '.join(self.labels)}"


def texts_of(asked: Probing) -> Texts:
    """What is asked for, read or written by rules.

    Raises:
        ValueError: options that do not go together, a text that is among those to train on and those to test
            on, and what `LabelledSet.load` refuses.
    """
    if asked.each is not None and not asked.bias_in_bios:
        raise ValueError("--each is for --bias-in-bios.")
    if asked.train is None and (asked.test or asked.shifted):
        raise ValueError("--test and --shifted go with --train.")
    if asked.train is None:
        if asked.labels or asked.text_column != "text":
            raise ValueError("--label and --text-column are for files: give --train.")
        return _biographies(asked)
    whole = _columns(asked, asked.train)
    if asked.test is None:
        first, second = _split(whole, asked)
    else:
        first, second = whole, _columns(asked, asked.test)
        if both := sorted(set(_texts(first)) & set(_texts(second))):
            raise ValueError(f"{asked.test} has a text that is in {asked.train} too: {both[0][:40]!r}.")
    shifted = {Path(path).stem: _columns(asked, path) for path in asked.shifted or ()}
    return _joined(Path(asked.train).stem, tuple(whole), first, second, shifted)


Columns = Mapping[str, LabelledSet]  # a set of the same texts for each column of labels


def _columns(asked: Probing, path: str) -> Columns:
    if asked.labels:
        return {c: LabelledSet.load(path, text=asked.text_column, label=c) for c in asked.labels}
    found = LabelledSet.load(path, text=asked.text_column)
    return {"label": found, **({"spurious": _of_spurious(found)} if all(found.spurious) else {})}


def _of_spurious(found: LabelledSet) -> LabelledSet:
    return LabelledSet(found.name, [replace(one, label=one.spurious) for one in found])


def _biographies(asked: Probing) -> Texts:
    if asked.bias_in_bios:
        train = bias_in_bios("train", most=asked.each)
        test = bias_in_bios("test", most=asked.each)
        sets = [{"profession": one, "gender": _of_spurious(one)} for one in (train, test)]
        return _joined("bias_in_bios", ("profession", "gender"), sets[0], sets[1], {})
    n = asked.biographies or 300
    train, test = _distinct(biographies(2 * n, seed=asked.seed), n, asked.held_out, asked.seed)
    other = biographies(max(40, len(test)), unseen=True, seed=asked.seed + 1)
    sets = [{"profession": one, "gender": _of_spurious(one)} for one in (train, test, other)]
    kinds = {"unseen hints": sets[2]} if "shift" in asked.regime else {}
    return _joined("biographies", ("profession", "gender"), sets[0], sets[1], kinds)


def _distinct(found: LabelledSet, n: int, held_out: float, seed: int) -> tuple[LabelledSet, LabelledSet]:
    """Two sets without a text in common, of `n` texts together where there are so many."""
    first, second = found.split(1 - held_out, seed)
    some = round(n * (1 - held_out))
    return (
        LabelledSet(found.name, first.texts[:some]),
        LabelledSet(found.name, second.texts[: max(1, n - some)]),
    )


def _split(whole: Columns, asked: Probing) -> tuple[Columns, Columns]:
    """Either side; of texts that are the same, only the first is kept."""
    if not asked.held_out:
        raise ValueError("--held-out 0 leaves no text to test on: give --test.")
    found = next(iter(whole.values()))
    place = {one.text: i for i, one in reversed(list(enumerate(found)))}
    sides = [[place[one.text] for one in side] for side in found.split(1 - asked.held_out, asked.seed)]
    first, second = ({c: _picked(one, index) for c, one in whole.items()} for index in sides)
    return first, second


def _picked(found: LabelledSet, index: Sequence[int]) -> LabelledSet:
    return LabelledSet(found.name, [found[i] for i in index])


def _texts(found: Columns) -> list[str]:
    return [one.text for one in next(iter(found.values()))]


def _joined(
    name: str, columns: Sequence[str], train: Columns, test: Columns, kinds: Mapping[str, Columns]
) -> Texts:
    texts: list[str] = []
    labels: dict[str, list[str]] = {column: [] for column in columns}
    places = []
    for part in (train, test, *kinds.values()):
        places.append(list(range(len(texts), len(texts) + len(_texts(part)))))
        texts += _texts(part)
        for column in columns:
            if column not in part:
                raise ValueError(
                    f"{name} has {column!r}, which is missing in {next(iter(part.values())).name}."
                )
            labels[column] += part[column].labels
    return Texts(name, texts, labels, places[0], places[1], dict(zip(kinds, places[2:], strict=True)))
