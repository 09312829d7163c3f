"""The same dictionary in another form: scaled, with unit rows, cut down. All of it is exact, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .activations import Activation, GroupMax
from .normalisation import Normalise
from .units import Units

if TYPE_CHECKING:
    from .coders import SparseCoder

_PARTS = (
    "W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "b_pre", "activation", "normalise", "site", "reads",
    "prefixes", "units", "meta",
)  # fmt: skip


class Forms:
    """What a SparseCoder can be made into. Each method returns a new dictionary."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    W_skip: Tensor | None
    b_pre: Tensor | None
    activation: Activation
    normalise: Normalise | None
    prefixes: tuple[int, ...]
    units: Units
    n_features: int

    def scale_input(self, scale: float, out: float | None = None) -> SparseCoder:
        """What was trained on `scale * x` (to predict `out * y`), made to read x and write y.

        Exact. Features keep their sizes; those are then of the scaled input. `out` is `scale` if not given.
        """
        if self.normalise is not None:
            raise ValueError(f"{self.normalise} undoes every scale of the input: there is none to fold in.")
        out = scale if out is None else out
        if not 0 < out < float("inf"):
            raise ValueError(f"Scales are positive, finite numbers, not {out}.")
        units = replace(self.units, latents="normalised", input_scale=scale * (self.units.input_scale or 1.0))
        return self._with(
            W_enc=self.W_enc * scale,
            b_pre=None if self.b_pre is None else self.b_pre / scale,
            W_dec=self.W_dec / out,
            b_dec=self.b_dec / out,
            W_skip=None if self.W_skip is None else self.W_skip * (scale / out),
            units=units,
        )

    def scale_latents(self, factor: float | Float[Tensor, " feature"]) -> SparseCoder:
        """Every feature times a positive factor, its decoder row divided by it. Exact.

        Raises ValueError where features compete by size (TopK) and factors differ.
        """
        factor = torch.as_tensor(factor, dtype=self.W_enc.dtype, device=self.W_enc.device)
        if factor.ndim and factor.shape != self.b_enc.shape:
            raise ValueError(f"{tuple(factor.shape)} factors do not fit {self.n_features} features.")
        if not (factor > 0).all() or not factor.isfinite().all():
            raise ValueError("Features are scaled by positive, finite factors: a decoder row is zero.")
        return self._with(
            W_enc=self.W_enc * factor,
            b_enc=self.b_enc * factor,
            W_dec=self.W_dec / (factor[:, None] if factor.ndim else factor),
            activation=self.activation.scaled(factor),
        )

    def unit_decoder(self) -> SparseCoder:
        """The same with decoder rows of unit norm, so that a feature is as large as what it writes.

        Raises ValueError where features compete by size (TopK) and the norms differ.
        """
        norms = self.W_dec.norm(dim=-1)
        if self.activation.selects and torch.allclose(norms, norms[0]):
            norms = norms[0]
        return self.scale_latents(norms)

    @property
    def has_unit_decoder(self) -> bool:
        """Whether all decoder rows are of unit norm, to the precision of the weights."""
        off = (self.W_dec.float().norm(dim=-1) - 1).abs().max().item()
        return off <= max(1e-4, 4 * torch.finfo(self.W_dec.dtype).eps)

    def select(self, index: Int[Tensor, " n"] | Sequence[int] | slice) -> SparseCoder:
        """A dictionary of some of the features. Raises ValueError where they compete with the others."""
        if not isinstance(index, slice | Tensor):
            index = torch.tensor(index, dtype=torch.long)
        index = torch.arange(self.n_features)[index]
        return self._only(index.to(self.W_enc.device), self.activation.selected(index))

    def prefix(self, n_features: int) -> SparseCoder:
        """The first features of a Matryoshka dictionary, which make a dictionary of their own.

        Bussmann et al. 2025, arXiv 2503.17547. Raises ValueError for a width that is none of `prefixes`, and
        where features compete in groups, which would be others.
        """
        if isinstance(self.activation, GroupMax):
            raise ValueError(f"{self.activation} divides all features into groups: a part has other groups.")
        if n_features not in self.prefixes:
            raise ValueError(
                f"{n_features} is none of the prefixes {list(self.prefixes)} of this dictionary."
            )
        index = torch.arange(n_features, device=self.W_enc.device)
        activation = self.activation if self.activation.selects else self.activation.selected(index)
        return self._only(index, activation)

    def _only(self, index: Tensor, activation: Activation) -> SparseCoder:
        kept = tuple(width for width in self.prefixes if width <= len(index))
        contiguous = torch.equal(index.cpu(), torch.arange(len(index)))
        return self._with(
            W_enc=self.W_enc[:, index],
            b_enc=self.b_enc[index],
            W_dec=self.W_dec[index],
            activation=activation,
            prefixes=kept if contiguous else (),
        )

    def _with(self, **changes: Any) -> SparseCoder:
        from .coders import SparseCoder

        return SparseCoder(**{name: getattr(self, name) for name in _PARTS} | changes)
