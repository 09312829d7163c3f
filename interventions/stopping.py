"""A pass that ends at a site, and the logits of what the site holds."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .observation import arguments
from .pooling import Pool
from .sites import Site
from .visits import visited

if TYPE_CHECKING:
    from .model import Model
    from .probed import Classifier

INNER = "inner"  # what the module that is stopped is called in the one that stops it


class Reading:
    """Logits (batch pos class) of what a site holds."""

    def __init__(self, probe: Classifier, pool: Pool):
        self.probe, self.pool = probe, pool
        held = next((x.dtype for x in probe.tensors().values() if x.is_floating_point()), torch.float32)
        self.dtype = torch.promote_types(held, torch.float32)

    def __call__(
        self, x: Float[Tensor, "batch pos width"], counted: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos class"]:
        pooled = self.pool(x.to(self.dtype), counted)
        if pooled.shape != x.shape:
            raise ValueError(
                f"{called(self.pool)} pooled {tuple(x.shape)} to {tuple(pooled.shape)}: a pooling gives, of "
                "the same shape, what is read of the text up to each position."
            )
        logits = self.probe.logits(pooled)
        if self.probe.n_classes == 2 and logits.ndim == x.ndim - 1:
            logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Stopped(Exception):
    """That a pass has come to the site where it ends."""


class Probed(nn.Module):
    """Runs a module up to a site, and gives the logits of what it holds."""

    opening: Tensor

    def __init__(self, model: Model, site: Site, reading: Reading):
        super().__init__()
        self.add_module(INNER, model.module)
        if hasattr(model.module, "config"):
            self.config = model.module.config
        self.reading = reading
        self._site, self._first, self._seen = site, model.blocks[0], model._seen
        self._follower = model.follower
        special = sorted(getattr(model.tokenizer, "all_special_ids", ()))
        self.register_buffer("opening", torch.tensor(special, dtype=torch.long, device=model.device), False)

    def forward(
        self, input_ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos class"]:
        counted = ~torch.isin(input_ids, self.opening.to(input_ids.device))
        told: dict[str, Any] = {}
        if attention_mask is not None:
            counted &= attention_mask.bool()
            told["attention_mask"] = attention_mask
        if empty := (~counted.any(1)).nonzero()[:, 0].tolist():
            raise ValueError(f"Of text {empty[0]} of a batch no token counts: there is nothing to classify.")
        x = self._held(input_ids, told)
        return self.reading(x, counted.to(x.device))

    def _held(self, tokens: Tensor, told: dict[str, Any]) -> Float[Tensor, "batch pos width"]:
        held: list[Tensor] = []

        def take(_site: Site, x: Tensor) -> Tensor:
            held.append(x)
            if self._follower.parted:
                return x
            raise _Stopped

        inner = self.get_submodule(INNER)
        # Hooked anew in each pass, so that visits that are open have been before.
        ending = visited(inner, [self._site], take, first=self._first, seen=self._seen, muted=lambda: False)
        with suppress(_Stopped), ending:
            inner(tokens, **arguments(inner, **told))
        if not held:
            raise ValueError(f"The pass never came to {self._site}, which the probe reads.")
        if any(len(x) != len(tokens) for x in held):
            raise ValueError("As its state is changed, this model reads row by row: give one row at a time.")
        return torch.cat(held, dim=1)


def called(pool: Pool) -> str:
    return getattr(pool, "__name__", None) or repr(pool)
