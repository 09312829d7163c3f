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
    """A module in eval mode whose weights are frozen, and its tokenizer (None where there is none).

    `device="auto"` spreads a large model over what there is (accelerate's device map).
    """
    if isinstance(source, nn.Module):
        module = source.to(dtype=dtype) if dtype else source
    else:
        how: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        if device == "auto":
            how["device_map"] = device
        module, found = _pretrained(str(source), how)
        tokenizer = found if tokenizer is None else tokenizer
    if device is not None and device != "auto":
        module = module.to(device)
    return frozen(module), tokenizer


def frozen(module: nn.Module) -> nn.Module:
    """The same module in eval mode, asking for no gradients with respect to its weights."""
    module = module.eval().requires_grad_(False)
    config: Any = getattr(module, "config", None)
    if getattr(config, "rescale_every", 0) and not any(
        getattr(m, "layers_are_rescaled", False) for m in module.modules()
    ):
        # RWKV halves its stream every few blocks and divides its weights in place to match, for the sake
        # of float16: what a block writes would not be what is added.
        config.rescale_every = 0
    if any(p.dtype == torch.float64 for p in module.parameters()) and hasattr(
        module, "set_experts_implementation"
    ):
        module.set_experts_implementation("eager")  # type: ignore[operator]  # the grouped product knows no float64
    return module


def _pretrained(source: str, how: dict[str, Any]) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, where, gguf = Path(source), source, {}
    if path.suffix == ".gguf":
        where, gguf = str(path.parent), {"gguf_file": path.name}
    if (path.is_absolute() or source.startswith(".")) and not path.exists():
        raise FileNotFoundError(f"There is nothing at {source!r}.")
    try:
        module = AutoModelForCausalLM.from_pretrained(where, **gguf, **how)
    except OSError as error:
        if path.exists():
            raise FileNotFoundError(f"No model in {source!r}: {_first_line(error)}") from error
        raise FileNotFoundError(
            f"There is nothing at {source!r}, neither on this disk nor, as far as can be told from here, on "
            f"the Hugging Face hub ({_first_line(error)})"
        ) from error
    except ValueError as error:
        if "Unrecognized" not in str(error):
            raise
        raise ValueError(
            f"{source!r} is not a causal language model that transformers knows: {_first_line(error)}"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **gguf)
    except Exception:  # many things are raised where there is none, and a model without one is of use
        return module, None
    # Where there are no files, transformers makes a tokenizer of the usual kind that knows no words.
    return module, tokenizer if tokenizer.vocab_size > len(tokenizer.added_tokens_decoder) else None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
