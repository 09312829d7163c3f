"""The example that compares dictionaries, at toy size."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def test_the_tables_and_pictures_come_out(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    comparisons = import_module("comparisons")
    weights = Path(comparisons.WEIGHTS)
    if not (weights / "stories260K").exists():
        pytest.skip("the weights of the examples are not here")
    tokens = torch.randint(3, 512, (64, 32), generator=torch.Generator().manual_seed(0))
    torch.save(tokens, tmp_path / "text.pt")
    settings = ["--steps", "5", "--meta-steps", "5", "--widths", "24", "160"]
    comparisons.main(["--weights", str(weights), "--out", str(tmp_path), *settings])
    said = capsys.readouterr().out
    for head in ("| recipe | features | L0", "of the denser half", "area under", "| of random rows |"):
        assert head in said
    pictures = {path.name for path in tmp_path.glob("*.svg")}
    assert {"densities.svg", "cosines.svg", "frontier.svg", "overlap.svg"} < pictures
    assert {"stitching-BatchTopK.svg", "stitching-ReLU.svg", "principal-ReLU.svg"} < pictures
