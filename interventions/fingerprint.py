"""A hash that tells models apart."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

# What a config says about where it came from and how it is run, not about what the model computes.
_INCIDENTAL = {
    "architectures", "attn_implementation", "bos_token_id", "dtype", "eos_token_id", "experts_implementation",
    "id2label", "label2id", "output_attentions", "output_hidden_states", "pad_token_id", "problem_type",
    "return_dict", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
_SAMPLES = 64


@torch.no_grad()
def fingerprint(module: nn.Module) -> str:
    """A hash of the model's class, its config, and the names, shapes, types and a sample of its weights."""
    config = getattr(module, "config", None)
    digest = hashlib.sha256(type(module).__name__.encode())
    if config is not None:
        digest.update(json.dumps(_essential(config.to_dict()), sort_keys=True, default=str).encode())
    samples = []
    for name, parameter in module.state_dict().items():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        flat = parameter.detach().flatten()
        samples.append(flat[:: max(1, flat.numel() // _SAMPLES)][: _SAMPLES + 1].float().cpu())
    digest.update(torch.cat(samples).numpy().tobytes() if samples else b"")
    return digest.hexdigest()


def _essential(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(key): _essential(item)
            for key, item in value.items()
            if key not in _INCIDENTAL and not str(key).startswith("_") and item is not None
        }
    return value
