import sys
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # spinning OpenMP threads make tiny models many times slower on busy cores


@pytest.fixture(autouse=True)
def models_are_as_they_were_built() -> Iterator[None]:
    yield
    if families := sys.modules.get("families"):  # not every test needs them, and they are slow to import
        families.forget_changed()
