"""What a model's ending does, in a few numbers: by these a lens knows the model that it was made for."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from ..model import Model

_STATES, _WORDS = 8, 32
FAR = 0.5  # of the logits' own spread; those of two models that have nothing in common are 1.4 apart


@torch.no_grad()
def probed(model: Model) -> Float[Tensor, "state word"]:
    """A few logits that a model's ending gives for random states, the same states for every model of a width.

    With them the norm, the head, the soft cap and the logit scale are told apart, without naming any.
    """
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(_STATES, model.width, generator=generator, dtype=torch.float64)
    logits = model.unembed(states.to(model.device, model.dtype))
    words = torch.randperm(logits.shape[-1], generator=generator)[:_WORDS]
    return logits[:, words.to(logits.device)].float().cpu()


def apart(ours: Float[Tensor, "state word"], theirs: Float[Tensor, "state word"]) -> float:
    """How far two endings' logits are from each other, as a share of their own spread.

    What is added to all logits of a state alike is no difference, and what both rule out (minus infinity) is
    none. Where one alone does, or has no number, they are infinitely far apart.

    >>> x = torch.tensor([[1.0, 2.0, 4.0]])
    >>> apart(x, x + 3)
    0.0
    """
    known = ours.isfinite()
    if not torch.equal(torch.where(known, 0, ours), torch.where(theirs.isfinite(), 0, theirs)):
        return float("inf")
    count = known.sum(-1, keepdim=True).clamp(min=1)
    x, y = (logits.double().where(known, 0) for logits in (ours, theirs))
    x, y = ((z - z.sum(-1, keepdim=True) / count).where(known, 0) for z in (x, y))
    spread = (x.norm() * y.norm()).sqrt()
    return float((x - y).norm() / spread) if spread > 0 else 0.0


def check(
    model: Model, *, noun: str, name: str, fingerprint: str, d_model: int, vocab: int, probes: Tensor
) -> None:
    """Raises ValueError where something was made for a model with another ending; warns where for a near one.

    The model that it was made for passes in silence. `noun` says what it is that was made, and the rest is
    what was kept of the model then.
    """
    if model.fingerprint == fingerprint:
        return
    ours = probed(model)
    this, that = model_name(model), name
    if model.width != d_model:
        raise ValueError(
            f"The {noun} was made for {that}, whose blocks write {d_model} numbers; those of {this} write "
            f"{model.width}."
        )
    if (words := vocabulary(model)) != vocab:
        raise ValueError(
            f"The {noun} was made for {that}, which has a vocabulary of {vocab:,}; {this} has {words:,}."
        )
    if probes.shape != ours.shape:
        raise ValueError(f"The {noun} does not say what the ending of {that} does.")
    far = apart(ours, probes)
    if not far <= FAR:
        raise ValueError(
            f"The {noun} was made for {that}, and {this} is another model: for the same states, their logits "
            f"differ by {far:.0%} of their spread."
        )
    how = f"differ by {far:.1%} of their spread" if far > 1e-5 else "are the same, and what is before is not"
    warnings.warn(
        f"The {noun} was made for {that} (fingerprint {fingerprint[:8]}), and {this} "
        f"({model.fingerprint[:8]}) is near it, but not the same: for the same states, the logits {how}.",
        stacklevel=3,
    )


@torch.no_grad()
def vocabulary(model: Model) -> int:
    """How many logits the model gives. Raises ValueError where these are not of tokens."""
    if model.classes is not None:
        raise ValueError(
            f"The logits of {model!r} are of classes, not of tokens: it is read by a LogitLens, and no lens "
            "is fitted to it."
        )
    return model.unembed(torch.zeros(1, model.width, device=model.device, dtype=model.dtype)).shape[-1]


def model_name(model: Model) -> str:
    """What to call a model: the name or path it was loaded from, else its class."""
    config = getattr(model.module, "config", None)
    return (
        getattr(config, "name_or_path", "")
        or getattr(config, "_name_or_path", "")
        or type(model.module).__name__
    )
