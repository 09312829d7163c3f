"""Writes the control vector of this folder with repeng, whose format it is.

    pip install repeng==0.4.0 && python tests/golden/steering/make_control_vector.py

The safetensors file beside it has what repeng reads back from it, by layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent
WIDTH, LAYERS = 32, (2, 1)  # in the order of layers in which repeng trains


def main() -> None:
    np.float_ = np.float64  # gone in numpy 2, which repeng 0.4.0 does not know
    from repeng import ControlVector

    rng = np.random.default_rng(0)
    vectors = {layer: rng.standard_normal(WIDTH).astype(np.float32) for layer in LAYERS}
    ControlVector("gpt2", vectors).export_gguf(HERE / "repeng.gguf")
    read = ControlVector.import_gguf(HERE / "repeng.gguf")
    assert read.model_type == "gpt2"
    save_file({str(layer): np.array(v) for layer, v in read.directions.items()}, HERE / "repeng.safetensors")


if __name__ == "__main__":
    main()
