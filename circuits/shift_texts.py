"""The texts that `circuits shift` is asked about: files, or biographies."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import LabelledSet, bias_in_bios, biographies
from tasks.biographies import without_gendered_words

Delete = Callable[[Sequence[str]], Sequence[str]]
NAMES = ("train", "test", "known")
_PAIRS = {"professor": "male", "nurse": "female"}


@dataclass(frozen=True)
class Texts:
    """Texts to train a biased probe on, to test it on, and to train on what knows the spurious label."""

    train: LabelledSet
    test: LabelledSet
    known: LabelledSet | None = None

    def save(self, folder: Path) -> None:
        """Writes them as JSON lines."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            texts = getattr(self, name)
            if texts is not None:
                texts.save(folder / f"{name}.jsonl")

    @classmethod
    def load(cls, folder: Path) -> Texts:
        """What `save` wrote. Raises FileNotFoundError where there is nothing."""
        found = {name: folder / f"{name}.jsonl" for name in NAMES}
        known = LabelledSet.load(found["known"]) if found["known"].is_file() else None
        return cls(LabelledSet.load(found["train"]), LabelledSet.load(found["test"]), known)

    def __str__(self) -> str:
        known = "" if self.known is None else f", {len(self.known)} of every pair to train on"
        seen = {one.text for texts in (self.train, self.known or ()) for one in texts}
        both = sum(one.text in seen for one in self.test)
        also = f"; {both} of those to test on are among those to train on" if both else ""
        return f"{len(self.train)} to train on, {len(self.test)} to test on{known}{also}"


def of_files(train: str, test: str, known: str | None, *, text: str, label: str, spurious: str) -> Texts:
    """Texts in files.

    Raises:
        FileNotFoundError: a file that there is not.
        ValueError: a column that is missing, or a row without a text or a label; names the place.
    """
    first, second = (
        LabelledSet.load(path, text=text, label=label, spurious=spurious) for path in (train, test)
    )
    third = None if known is None else LabelledSet.load(known, text=text, label=label, spurious=spurious)
    return Texts(first, second, third)


def generated(n: int, seed: int) -> Texts:
    """Generated biographies: tested on hints of other wording than those trained on."""
    train, known = (
        biographies(n, correlation=correlation, seed=3 * seed + k) for k, correlation in enumerate((1, 0))
    )
    return Texts(train, biographies(n, correlation=0, unseen=True, seed=3 * seed + 2), known)


def published(each: int, seed: int) -> Texts:
    """Published biographies of professors and nurses; half of the training split is ambiguous."""
    one, other = bias_in_bios("train", most=2 * each).split(0.5, seed)
    test = bias_in_bios("test", most=each)
    return Texts(one.aligned(_PAIRS), test.balanced(seed=seed), other.balanced(seed=seed))


def deletion(path: str | None, *, gendered: bool) -> Delete | None:
    """What deletes words from texts: those in a file, one a line; or those that tell a gender; or nothing.

    Raises:
        FileNotFoundError: no file there.
        ValueError: a file without words, or of no text.
    """
    if path is None:
        return without_gendered_words if gendered else None
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path} of words to delete.")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8.") from None
    words = [line.strip() for line in lines if line.strip()]
    if not words:
        raise ValueError(f"{path} holds no words to delete.")
    longest = sorted(words, key=len, reverse=True)  # or "Mr" would leave the stop of "Mr."
    pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest))})(?!\w)", re.IGNORECASE)
    return lambda texts: [" ".join(pattern.sub("", text).split()) for text in texts]
