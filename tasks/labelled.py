"""Texts with a label that a classifier should learn, and one that it should not use."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import lines
from .batch import Tokenizer
from .encoding import Encoder
from .metrics import LogitDifference
from .pair import Pair
from .task import Task


@dataclass(frozen=True)
class LabelledText:
    """A text, what it is to be classified as, and what it happens to be besides ("" where that is not known).

    Raises:
        ValueError: an empty text or label.
    """

    text: str
    label: str
    spurious: str = ""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("A labelled text is empty.")
        if not self.label:
            raise ValueError(f"There is no label for {self.text[:40]!r}.")

    @property
    def group(self) -> tuple[str, str]:
        """Both labels."""
        return self.label, self.spurious


@dataclass(frozen=True)
class LabelledSet:
    """Texts with an intended and a spurious label. It is a sequence of its texts.

    >>> texts = [LabelledText(f"{job} {i}", job, sex) for job in ("professor", "nurse")
    ...          for sex in ("male", "female") for i in range(3)]
    >>> set = LabelledSet("jobs", texts)
    >>> set
    LabelledSet('jobs', 12 texts: 3 professor/male, 3 professor/female, 3 nurse/male, 3 nurse/female)
    >>> set.aligned({"professor": "male", "nurse": "female"})
    LabelledSet('jobs', 6 texts: 3 professor/male, 3 nurse/female)

    Raises:
        ValueError: no texts.
    """

    name: str
    texts: Sequence[LabelledText]
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(self.texts))
        if not self.texts:
            raise ValueError(f"The labelled set {self.name!r} has no texts.")

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[LabelledText]:
        return iter(self.texts)

    def __getitem__(self, i: int) -> LabelledText:
        return self.texts[i]

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {'/'.join(filter(None, group))}" for group, n in self.groups.items())
        return f"LabelledSet({self.name!r}, {len(self)} texts: {counts})"

    @property
    def labels(self) -> tuple[str, ...]:
        """What each text is to be classified as."""
        return tuple(one.label for one in self)

    @property
    def spurious(self) -> tuple[str, ...]:
        """What each text happens to be besides."""
        return tuple(one.spurious for one in self)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that there are, in the order in which they appear."""
        return tuple(dict.fromkeys(self.labels))

    @property
    def attributes(self) -> tuple[str, ...]:
        """The spurious labels that there are, in the order in which they appear."""
        return tuple(dict.fromkeys(self.spurious))

    @property
    def groups(self) -> Counter[tuple[str, str]]:
        """How many texts have each pair of labels."""
        return Counter(one.group for one in self)

    def where(self, keep: Callable[[LabelledText], bool]) -> LabelledSet:
        """The texts that `keep` says yes to. Raises ValueError where there is none."""
        return replace(self, texts=[one for one in self if keep(one)])

    def aligned(self, pairs: Mapping[str, str]) -> LabelledSet:
        """The texts whose spurious label is the one that goes with their label: both tell them apart alike.

        Raises:
            ValueError: a pair of labels that no text has.
        """
        return self._with(list(pairs.items()))

    def balanced(self, each: int | None = None, *, seed: int = 0) -> LabelledSet:
        """As many texts of every pair of labels, drawn at random and in random order: the spurious label says
        nothing of the label. By default as many as the rarest pair has.

        Raises:
            ValueError: a pair of labels that no text has, or fewer of one than `each`.
        """
        wanted = [(label, attribute) for label in self.classes for attribute in self.attributes]
        counts = self.groups
        whole = self._with(wanted)
        size = min(counts[group] for group in wanted) if each is None else each
        if short := [group for group in wanted if counts[group] < size]:
            raise ValueError(
                f"There are {counts[short[0]]} texts of {'/'.join(short[0])}; {size} of each are asked for."
            )
        rng, found = random.Random(seed), []
        for group in wanted:
            found += rng.sample([one for one in whole if one.group == group], size)
        return replace(self, texts=rng.sample(found, len(found)))

    def split(self, first: int | float, seed: int = 0) -> tuple[LabelledSet, LabelledSet]:
        """Two sets in random order, with every pair of labels in both in the same proportion.

        `first` is the size of the first: a number of texts, or a fraction of them as a float. Of texts that
        are the same, the first is kept, whatever the labels of the others.

        Raises:
            ValueError: a side would be empty.
        """
        share = first if isinstance(first, float) else first / len(self)
        if not 0 < share < 1:
            raise ValueError(f"Cannot split {len(self)} texts at {first}: one side would be empty.")
        rng = random.Random(seed)
        distinct = {one.text: one for one in reversed(self.texts)}
        sides: tuple[list[LabelledText], list[LabelledText]] = [], []
        for group in self.groups:
            texts = [one for one in dict.fromkeys(self) if one.group == group and distinct[one.text] == one]
            rng.shuffle(texts)
            cut = round(share * len(texts))
            sides[0].extend(texts[:cut])
            sides[1].extend(texts[cut:])
        if not all(sides):
            raise ValueError(f"Cannot split {len(self)} texts at {first}: one side would be empty.")
        one, other = (replace(self, texts=rng.sample(side, len(side))) for side in sides)
        return one, other

    def task(self, tokenizer: Tokenizer, classes: Sequence[str] | None = None) -> Task:
        """To classify each text: a task for models whose logits are over `classes`, by default this set's.

        Prompts are token ids, opened as the tokenizer opens a text, and compared with nothing. The answer is
        the place of the label among the classes, and the foils are the others. The case is both labels, as in
        "nurse/female". The metric is the logit of the answer less the mean of the others.

        >>> from tasks import grammar
        >>> sizes = LabelledSet("sizes", [LabelledText("The boy", "one"), LabelledText("The boys", "many")])
        >>> pair = sizes.task(grammar.tokenizer()).pairs[1]
        >>> pair.answers, pair.foils, pair.case
        ((1,), (0,), 'many')

        Raises:
            ValueError: a label that is none of the classes, fewer than two of these, or one of them twice; a
                text of which nothing is left when it is tokenised.
        """
        known = self.classes if classes is None else tuple(classes)
        if len(set(known)) < max(2, len(known)):
            raise ValueError(
                f"A text is classified as one of two classes or more, all different, not {known}."
            )
        if missing := [label for label in self.classes if label not in known]:
            raise ValueError(f"{missing[0]!r} is none of the classes {', '.join(known)}.")
        place = {label: i for i, label in enumerate(known)}
        encoder = Encoder.of(tokenizer, [Pair(one.text, None, ()) for one in self])
        special, pairs = {*encoder.opening, *getattr(tokenizer, "all_special_ids", ())}, []
        for one in self:
            if special.issuperset(ids := encoder.ids(one.text)):
                raise ValueError(f"Nothing is left of the text {one.text!r:.60} when it is tokenised.")
            right = place[one.label]
            foils = tuple(i for i in range(len(known)) if i != right)
            case = "/".join(filter(None, one.group))
            pairs.append(Pair(ids, None, (right,), foils, case))
        return Task(self.name, pairs, LogitDifference(), self.description)

    def save(self, path: str | Path) -> None:
        """Writes JSON lines with `text`, `label` and `spurious`; a file there is replaced whole."""
        lines.write(path, [{"text": one.text, "label": one.label, "spurious": one.spurious} for one in self])

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        text: str = "text",
        label: str = "label",
        spurious: str | None = None,
    ) -> LabelledSet:
        """The texts in a file of CSV (with a line of names on top), JSON lines or a JSON list.

        `text`, `label` and `spurious` name its columns; without the last, "spurious" where there is such a
        column. Labels may be numbers; they become their texts.

        Raises:
            FileNotFoundError: no file there.
            ValueError: a column that is missing, or a row without a text or a label; names the place.
        """
        path = Path(path)
        records = _csv(path) if path.suffix.lower() in (".csv", ".tsv") else lines.read(path)
        if spurious is None and any("spurious" in record for _, record in records):
            spurious = "spurious"
        columns = [text, label, *([spurious] if spurious else [])]
        found = []
        for where, record in records:
            if missing := [name for name in columns if record.get(name) is None]:
                raise ValueError(f"{where}: no {missing[0]!r}; there are {', '.join(map(str, record))}.")
            try:
                found.append(LabelledText(*(str(record[name]) for name in columns)))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        return cls(path.stem, found)

    def _with(self, groups: Sequence[tuple[str, str]]) -> LabelledSet:
        counts = self.groups
        if absent := [group for group in groups if group not in counts]:
            have = ", ".join("/".join(filter(None, group)) for group in counts)
            raise ValueError(f"No text is {'/'.join(absent[0])}; there are {have}.")
        return self.where(lambda one: one.group in groups)


def _csv(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            found = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8.") from None
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV: {error}.") from None
    if not found:
        raise ValueError(f"{path} has no rows.")
    return found
