"""The folders on the way to a file, whose names say what no file says."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from .source import Disk, Source


def trail(source: Source, file: str) -> tuple[str, ...]:
    """Names of the repository or of the folders on this disk, down to the file.

    >>> from pathlib import Path
    >>> trail(Source(Disk(Path("/data/gemma-scope-2b-pt-res"))), "layer_3/params.npz")[-3:]
    ('gemma-scope-2b-pt-res', 'layer_3', 'params.npz')
    """
    disk = isinstance(source.place, Disk)
    name = Path(source.name).absolute().as_posix() if disk else re.sub("@[^/]*", "", source.name)
    parts = PurePosixPath(name).parts
    return parts if source.files == [file] and parts[-1] == file else (*parts, *PurePosixPath(file).parts)


def innermost(pattern: str, parts: tuple[str, ...]) -> re.Match[str] | None:
    """The match of a pattern in the name nearest to the file."""
    return next((match for part in reversed(parts) if (match := re.search(pattern, part))), None)
