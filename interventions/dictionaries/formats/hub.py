"""Repositories on the Hugging Face hub, of which only the files asked for are downloaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_ADDRESS = re.compile(
    r"(?:hf://)?(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[^/]+))?(?:/(?P<folder>.+))?", re.ASCII
)


@dataclass(frozen=True)
class Repository:
    """A repository at a revision. Without the hub, what is in the cache is all that there is of it."""

    repo: str
    revision: str | None = None

    @property
    def name(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    def listed(self) -> list[str]:
        return self._files

    def local(self, file: str) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.repo, file, revision=self.revision))
        except Exception as error:
            raise ValueError(
                f"{self.name}/{file} is not in the cache and cannot be downloaded ({_first_line(error)}) "
                "Run once with a connection to the hub and without HF_HUB_OFFLINE, or download it elsewhere "
                "and pass the folder."
            ) from error

    @cached_property
    def _files(self) -> list[str]:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        if constants.HF_HUB_OFFLINE:
            return self._cached("HF_HUB_OFFLINE is set")
        try:
            return sorted(HfApi().list_repo_files(self.repo, revision=self.revision))
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise FileNotFoundError(
                f"There is nothing at {self.name!r}, neither on this disk nor on the Hugging Face hub."
            ) from error
        except Exception as error:  # whatever keeps the hub from being reached
            return self._cached(_first_line(error))

    def _cached(self, why: str) -> list[str]:
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(self.repo, revision=self.revision, local_files_only=True))
        except Exception as error:
            raise ValueError(
                f"{self.name!r} is neither a path on this disk nor in the cache of the Hugging Face hub, and "
                f"the hub cannot be asked ({why}). Run once with a connection and without HF_HUB_OFFLINE."
            ) from error
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def repository(address: str) -> tuple[Repository, str]:
    """The repository and the folder in it that an address names. Raises FileNotFoundError for no address."""
    match = _ADDRESS.fullmatch(address)
    if match is None or ".." in address:
        raise FileNotFoundError(
            f"There is nothing at {address!r}, and it is no repository: those are called owner/repo, "
            "owner/repo@revision or owner/repo/sub/folder."
        )
    return Repository(match["repo"], match["revision"]), (match["folder"] or "").strip("/")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
