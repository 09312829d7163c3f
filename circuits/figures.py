"""Sheets for matplotlib to draw on, apart from what the caller does with it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .files import writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = ("svg", "png", "pdf")


def target(path: str | Path) -> tuple[Path, str]:
    """The file to write, .svg where the path has no suffix, and its format.

    Raises:
        ValueError: another format.
    """
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".svg")
    kind = path.suffix[1:].lower()
    if kind not in _FORMATS:
        raise ValueError(f"Cannot write a {path.suffix} file ({path.name}); .svg, .png and .pdf will do.")
    writable(path.parent)
    return path, kind


@contextmanager
def figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Iterator[Figure]:
    """A figure of its own, whatever style or backend the caller has chosen."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        **{key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key},
        "font.size": 8, "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
        "svg.hashsalt": "circuits", "pdf.fonttype": 42,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        sheet = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(sheet)
        yield sheet


def content(sheet: Figure, kind: str) -> bytes:
    """The file, the same at every time of day."""
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        sheet.savefig(
            buffer, format=kind, dpi=min(200, 20000 / max(sheet.get_size_inches())), metadata=metadata
        )
    return buffer.getvalue()
