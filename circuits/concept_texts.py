"""The labelled texts on which dictionaries are scored: of files, written by rules, or published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks import LabelledSet, bias_in_bios, biographies

if TYPE_CHECKING:
    from .concept_commands import Evaluating

_BIOGRAPHIES = 400


def check(asked: Evaluating) -> None:
    """Raises ValueError for options that do not go together."""
    if asked.each is not None and not asked.bias_in_bios:
        raise ValueError("--each is for --bias-in-bios.")
    if asked.train is None and (asked.test or asked.text_column != "text"):
        raise ValueError("--test and --text-column are for files: give --train.")
    if asked.train is None and (asked.label, asked.spurious or "spurious") != ("label", "spurious"):
        raise ValueError("--label and --spurious name columns of files: give --train.")


def texts_of(asked: Evaluating) -> tuple[LabelledSet, LabelledSet]:
    """Those to fit probes to, and those to test them on.

    Raises:
        ValueError: no texts left to test on, one that is in both files, and what `LabelledSet.load` refuses.
    """
    if asked.bias_in_bios:
        return bias_in_bios("train", most=asked.each), bias_in_bios("test", most=asked.each)
    if asked.train is None:
        n = asked.biographies or _BIOGRAPHIES
        return (
            biographies(n - n // 2, seed=asked.seed),
            biographies(n // 2, unseen=True, seed=asked.seed + 1),
        )
    train = _loaded(asked, asked.train)
    if asked.test is None:
        if not asked.held_out:
            raise ValueError("--held-out 0 leaves no text to test on: give --test.")
        return train.split(1 - asked.held_out, asked.seed)
    test = _loaded(asked, asked.test)
    if both := {one.text for one in train} & {one.text for one in test}:
        raise ValueError(f"{asked.test} has a text that is in {asked.train} too: {min(both)[:40]!r}.")
    return train, test


def named(asked: Evaluating) -> str:
    """What the texts are called."""
    if asked.bias_in_bios:
        return "bias_in_bios"
    return "biographies" if asked.train is None else Path(asked.train).stem


def _loaded(asked: Evaluating, path: str) -> LabelledSet:
    return LabelledSet.load(path, text=asked.text_column, label=asked.label, spurious=asked.spurious)
