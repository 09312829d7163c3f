"""The published data of Contrastive Activation Addition, read as it is."""

from __future__ import annotations

from pathlib import Path

from . import lines

KEYS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
_NAMELESS = ("generate_dataset", "test_dataset_ab", "test_dataset", "dataset")


def read(path: str | Path) -> tuple[tuple[str, str], list[tuple[str, tuple[str, str, str]]]]:
    """The name and description, and each item with where it stands: question, matching, not matching.

    Raises ValueError for items that lack a key. Those with a question alone are the open-ended ones, which
    have no answers to choose from.
    """
    path = Path(path)
    records = lines.read(path)
    name, description = path.stem if path.stem not in _NAMELESS else path.resolve().parent.name, ""
    if "choices" in records[0][1]:
        header = records.pop(0)[1]
        name, description = str(header["choices"]), str(header.get("description", ""))
    found = []
    for where, record in records:
        missing = [key for key in KEYS if key not in record]
        if missing == list(KEYS[1:]):
            raise ValueError(
                f"{where}: a question without answers; this is the open-ended part of the data, whose "
                "questions are prompts to write after."
            )
        if missing:
            raise ValueError(f"{where}: no {missing[0]!r}; an item has {', '.join(KEYS)}.")
        found.append((where, tuple(record[key] for key in KEYS)))
    return (name, description), found
