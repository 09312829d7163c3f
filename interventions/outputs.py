"""The logits in what a module returns: of every position, or of a whole text where it classifies texts."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from .observation import Observation, observe, sample, text_config


def logits_of(out: Any) -> Float[Tensor, "batch pos vocab"]:
    """The logits at every position; those of whole texts, (batch class), at one."""
    logits = _logits(out)
    return logits[:, None] if logits.ndim == 2 else logits


def text_classes(module: nn.Module, out: Any) -> tuple[str, ...] | None:
    """What the logits are of where they are (batch class), as those of a sequence-classification head are."""
    logits = _logits(out)
    if logits.ndim != 2:
        return None
    labels = getattr(getattr(module, "config", None), "id2label", None) or {}
    return tuple(str(labels.get(i, f"class {i}")) for i in range(logits.shape[1]))


def ended(module: nn.Module, tokens: Int[Tensor, "batch pos"], mask: Tensor) -> Int[Tensor, "batch pos"]:
    """Tokens whose padding is the module's own: a head that classifies texts looks for it in the tokens."""
    pad = getattr(text_config(module), "pad_token_id", None)
    return tokens if pad is None else tokens.masked_fill(~mask.to(tokens.device).bool(), pad)


def observed(module: nn.Module) -> Observation:
    """One small forward pass. Raises ValueError where it gives no logits, or finds no end of its texts."""
    try:
        seen = observe(module, sample(module))
    except ValueError as error:
        if getattr(text_config(module), "pad_token_id", 0) is not None:
            raise
        raise ValueError(
            f"{type(module).__name__}: {error} Set `config.pad_token_id` to a token that no text ends with, "
            "such as the padding of the tokenizer."
        ) from error
    if not isinstance(seen.output, Tensor | tuple) and not hasattr(seen.output, "logits"):
        raise ValueError(
            f"{type(module).__name__} returns no logits but {type(seen.output).__name__}; "
            "load the model with its language-modelling head."
        )
    return seen


def _logits(out: Any) -> Tensor:
    if isinstance(out, Tensor):
        return out
    return out.logits if hasattr(out, "logits") else out[0]
