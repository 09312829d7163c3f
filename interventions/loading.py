"""From a name, a folder, a GGUF file or a module to a frozen module and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


def load(
    source: str | Path | nn.Module,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[nn.Module, Any]:
    """A module in eval mode whose weights are frozen, and its tokenizer (None where there is none)."""
    if isinstance(source, nn.Module):
        module = source.to(dtype=dtype) if dtype else source
    else:
        module, found = _pretrained(str(source), dtype)
        tokenizer = tokenizer if tokenizer is not None else found
    if device is not None:
        module = module.to(device)
    return frozen(module), tokenizer


def frozen(module: nn.Module) -> nn.Module:
    """The same module in eval mode, asking for no gradients with respect to its weights."""
    module = module.eval().requires_grad_(False)
    config = getattr(module, "config", None)
    if getattr(config, "rescale_every", 0):
        # RWKV halves its stream every few blocks, and its own weights with it, for the sake of float16;
        # then what a block writes is not what is added.
        config.rescale_every = 0  # type: ignore[union-attr]
    floats = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if torch.float64 in floats and hasattr(module, "set_experts_implementation"):
        module.set_experts_implementation("eager")  # type: ignore[operator]  # grouped_mm knows no float64
    return module


def _pretrained(source: str, dtype: torch.dtype | None) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(source)
    where, how = (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (source, {})
    module = AutoModelForCausalLM.from_pretrained(where, **how, **({"dtype": dtype} if dtype else {}))
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **how)
    except Exception:
        tokenizer = None
    return module, tokenizer
