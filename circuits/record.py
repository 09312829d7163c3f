"""What is noted of a run on the command line: when, how long, with what; and what an interruption says."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from interventions.writing import write

from .discovery import versions


class Clock:
    """Seconds, stage by stage."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._stages: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self._stages[stage] = round(now - self._last, 3)
        self._last = now

    def record(self) -> dict[str, Any]:
        """What is noted of every run: versions, when, how long, and how many bytes of memory at the peak."""
        return {
            "versions": versions(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": {**self._stages, "all": round(time.monotonic() - self._started, 3)},
            "peak_memory": _peak_memory(),
        }

    def __str__(self) -> str:
        seconds, peak = time.monotonic() - self._started, max(_peak_memory().values(), default=0)
        return f"{seconds:.0f} s" + (f", at most {peak / 1e9:.1f} GB" if peak else "")


def _peak_memory() -> dict[str, int]:
    peak = {}
    if sys.platform != "win32":
        resource = import_module("resource")
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak["process"] = used * (1 if sys.platform == "darwin" else 1024)
    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated()
    return peak


def whole(path: str | None) -> str | None:
    """A path that holds from anywhere."""
    return None if path is None else str(Path(path).resolve())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object, whole or not at all; numbers that are not finite become null."""
    write(path, json.dumps(_finite(values), indent=1, allow_nan=False).encode())


def _finite(value: Any) -> Any:
    """What JSON can hold; it has no numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """An interruption in here says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(advice) from None
