"""The folder that `circuits find` writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import read_json
from .graph import Circuit

FILES = {
    ("circuit.json", "circuit.safetensors"): "the circuit, for Circuit.load",
    ("circuit.svg", "circuit.png", "circuit.pdf", "circuit.dot"): "its picture, and the source for graphviz",
    ("curve.json", "curve.svg", "curve.png", "curve.pdf"): "faithfulness and completeness by size",
    ("evaluation.json",): "the numbers above",
    ("settings.json",): "how this was made",
}


def written_in(folder: Path) -> list[Path]:
    """The files that runs have written into a folder."""
    return [folder / name for names in FILES for name in names if (folder / name).exists()]


def fingerprints(circuit: Circuit) -> dict[str, Any]:
    about = circuit.about
    dictionaries = {site: known["fingerprint"] for site, known in about["dictionaries"].items()}
    prompts = about["task"]["prompts"]
    return {"model": about["model"]["fingerprint"], "dictionaries": dictionaries, "prompts": prompts}


def read_settings(folder: Path) -> dict[str, Any]:
    """What is noted in a folder of the runs that wrote there, by command.

    Raises:
        ValueError: a settings.json of something else.
    """
    path = folder / "settings.json"
    found = read_json(path) if path.exists() else {}
    if not all(name in ("find", "evaluate", "draw") and isinstance(of, dict) for name, of in found.items()):
        raise ValueError(f"{path} is a file of something else: choose another folder.")
    return found


def stem(task: str) -> str:
    """A folder's name for a task."""
    return re.sub(r"[^\w.-]+", "_", Path(task).stem).strip("._") or "task"


def discard(checkpoint: Path) -> None:
    """Removes what a checkpoint holds, and nothing else."""
    for pattern in ("effects-*.safetensors", "edges-*.safetensors", "settings.json", ".*.safetensors.*"):
        for path in checkpoint.glob(pattern):
            path.unlink()
    if checkpoint.is_dir() and not any(checkpoint.iterdir()):
        checkpoint.rmdir()


@contextmanager
def advised(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        _, known, differs = str(error).partition("is the checkpoint of another run, which ")
        if not known:
            raise
        differs = differs.partition(".")[0]
        raise ValueError(
            f"{checkpoint} holds the beginning of another run, which {differs}. --fresh removes it; --out "
            "gives another folder."
        ) from None
