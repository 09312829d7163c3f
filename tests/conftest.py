import sys
from collections.abc import Callable, Iterator

import pytest
import torch

torch.set_num_threads(1)  # spinning OpenMP threads make tiny models many times slower on busy cores


@pytest.fixture(autouse=True)
def models_are_as_they_were_built() -> Iterator[None]:
    yield
    if families := sys.modules.get("families"):  # not every test needs them, and they are slow to import
        families.forget_changed()


@pytest.fixture
def said(capfd, request) -> Callable[..., str]:
    """Runs a command that should succeed, by the module's `command`; gives what it says."""

    def run(*argv: object) -> str:
        capfd.readouterr()
        assert request.module.command(*argv) == 0
        return capfd.readouterr().out

    return run


@pytest.fixture
def mistake(capfd, request) -> Callable[..., str]:
    """Runs a command that should fail as a mistake, by the module's `command`; gives the line on it."""

    def run(*argv: object, code: int = 2) -> str:
        capfd.readouterr()
        assert request.module.command(*argv) == code
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("circuits: ")]
        (line,) = [line for line in lines if not line.startswith("circuits: note")]
        return line

    return run
