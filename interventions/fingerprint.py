"""A hash that tells models apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

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
    state = module.state_dict()
    for name, parameter in state.items():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
    digest.update(samples(state.values()))
    return digest.hexdigest()


def samples(tensors: Iterable[Tensor]) -> bytes:
    """Some numbers of each tensor, in float32."""
    found = []
    for x in tensors:
        flat = x.detach().flatten()
        found.append(flat[:: max(1, flat.numel() // _SAMPLES)][: _SAMPLES + 1].float().cpu())
    return torch.cat(found).numpy().tobytes() if found else b""


def _essential(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(key): _essential(item)
            for key, item in value.items()
            if key not in _INCIDENTAL and not str(key).startswith("_") and item is not None
        }
    return value
