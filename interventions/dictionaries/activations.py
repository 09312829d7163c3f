"""Activation functions of sparse dictionaries, as they act at inference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Activation(nn.Module):
    """From pre-activations to features. An active feature keeps its pre-activation, others are 0.

    So the gradient is 1 where a feature is active and 0 elsewhere. Thresholds are buffers that keep their
    dtype whatever the dictionary is cast to: a rounded threshold changes which features are active.
    """

    settings: ClassVar[tuple[str, ...]] = ()  # the constructor's numbers; its tensors are buffers
    selects: ClassVar[bool] = False  # whether a feature is active depends on the others

    @abstractmethod
    def forward(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]: ...

    def sparse(
        self, z: Float[Tensor, "token feature"]
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Token, index and value of the active features, tokens ascending."""
        features = self(z)
        token, index = features.nonzero(as_tuple=True)
        return token, index, features[token, index]

    def over(
        self, parts: Callable[[], Iterable[Float[Tensor, "token feature"]]], n_tokens: int
    ) -> Activation:
        """What does to each part of a batch of so many tokens alone what this does to the whole of it."""
        return self

    def check(self, n_features: int) -> None:
        """Raises ValueError for a number of features that this does not fit."""
        if getattr(self, "k", 0) >= n_features:
            raise ValueError(f"{self} does not fit {n_features} features: k must be smaller.")

    def scaled(self, factor: Float[Tensor, " feature"] | float) -> Activation:
        """What chooses the same features once pre-activations are `factor` times as large.

        Raises ValueError where no such thing exists, because features compete and their factors differ.
        """
        if self.selects and isinstance(factor, Tensor) and not _uniform(factor):
            raise ValueError(
                f"Under {self}, features compete by size: scaling each by a factor of its own would change "
                "which of them win. Scale all by one number."
            )
        return self

    def selected(self, index: Int[Tensor, " n"]) -> Activation:
        """The activation of these features alone. Raises ValueError where they compete with the others."""
        if self.selects:
            raise ValueError(
                f"Under {self}, features compete with each other: some of them alone would be active "
                "elsewhere than they are now. JumpReLU and BatchTopK with a threshold can be divided."
            )
        return self

    @abstractmethod
    def cutoff(self, index: Int[Tensor, " n"]) -> Tensor | float | None:
        """What the pre-activations of these features must exceed; None where it depends on other features."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Activation:
        own = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in own.items():
            self.register_buffer(name, buffer.to(device=getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.settings)


class ReLU(Activation):
    """Every positive pre-activation.

    >>> ReLU()(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def forward(self, z: Tensor) -> Tensor:
        return z.relu()

    def cutoff(self, index: Tensor) -> float:
        return 0.0


class JumpReLU(Activation):
    """Pre-activations above a threshold of their own (Rajamanoharan et al. 2024, arXiv 2407.14435).

    >>> JumpReLU(torch.tensor([1.0, 3.0]))(torch.tensor([2.0, 2.0]))
    tensor([2., 0.])
    """

    threshold: Tensor

    def __init__(self, threshold: Float[Tensor, " feature"]):
        super().__init__()
        if threshold.ndim != 1:
            raise ValueError(
                f"JumpReLU takes one threshold per feature, not a tensor {tuple(threshold.shape)}."
            )
        self.register_buffer("threshold", _thresholds(threshold))

    def forward(self, z: Tensor) -> Tensor:
        return torch.where(z > self.threshold, z, 0.0)

    def check(self, n_features: int) -> None:
        if len(self.threshold) != n_features:
            raise ValueError(f"{len(self.threshold)} thresholds do not fit {n_features} features.")

    def scaled(self, factor: Tensor | float) -> JumpReLU:
        return JumpReLU(self.threshold * factor)

    def selected(self, index: Tensor) -> JumpReLU:
        return JumpReLU(self.threshold[index])

    def cutoff(self, index: Tensor) -> Tensor:
        return self.threshold[index]


class TopK(Activation):
    """The k largest pre-activations of each token, if positive (Gao et al. 2024, arXiv 2406.04093).

    >>> TopK(1)(torch.tensor([[1.0, 3.0, 2.0], [-1.0, -2.0, -3.0]]))
    tensor([[0., 3., 0.],
            [0., 0., 0.]])
    """

    settings = ("k",)
    selects = True

    def __init__(self, k: int):
        super().__init__()
        self.k = _positive(k)

    def winners(
        self, z: Float[Tensor, "*batch feature"]
    ) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
        """The values that features have if they win, and which features these are."""
        self.check(z.shape[-1])
        values, index = z.topk(self.k, dim=-1, sorted=False)
        return values.relu(), index

    def forward(self, z: Tensor) -> Tensor:
        values, index = self.winners(z)
        return torch.zeros_like(z).scatter(-1, index, values)

    def sparse(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, index = self.winners(z)
        token, place = values.nonzero(as_tuple=True)
        return token, index[token, place], values[token, place]

    def cutoff(self, index: Tensor) -> None:
        return None


class AbsTopK(TopK):
    """The k largest pre-activations of each token by magnitude, with their signs (arXiv 2510.00404).

    >>> AbsTopK(1)(torch.tensor([[1.0, -3.0, 2.0]]))
    tensor([[ 0., -3.,  0.]])
    """

    def winners(self, z: Tensor) -> tuple[Tensor, Tensor]:
        _, index = super().winners(z.abs())
        return z.gather(-1, index), index


class GroupMax(TopK):
    """The largest pre-activation of each of k groups of neighbouring features, if positive.

    A cheaper TopK, of EleutherAI's sparsify: the groups are of equal size.

    >>> GroupMax(2)(torch.tensor([[1.0, 3.0, 2.0, -1.0]]))
    tensor([[0., 3., 2., 0.]])
    """

    def winners(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.check(z.shape[-1])
        values, index = z.unflatten(-1, (self.k, -1)).max(-1)
        first = torch.arange(0, z.shape[-1], z.shape[-1] // self.k, device=z.device)
        return values.relu(), first + index

    def check(self, n_features: int) -> None:
        if self.k >= n_features or n_features % self.k:
            raise ValueError(f"{n_features} features do not fall into {self.k} groups of equal size.")


class BatchTopK(Activation):
    """Pre-activations above one threshold, which leaves k of them per token on average (Bussmann et al. 2024,
    arXiv 2412.06410).

    The threshold was stored with the dictionary, or estimated from its text. Where a file has none, see
    `BatchwiseTopK`; where it has one for each feature, `JumpReLU` is the same rule.

    >>> BatchTopK(1, 1.5)(torch.tensor([1.0, 3.0, 2.0]))
    tensor([0., 3., 2.])
    """

    settings = ("k",)
    threshold: Tensor

    def __init__(self, k: int, threshold: Float[Tensor, ""] | float):
        super().__init__()
        self.k = _positive(k)
        threshold = torch.as_tensor(threshold, dtype=None if isinstance(threshold, Tensor) else torch.float32)
        if threshold.numel() != 1:
            raise ValueError(f"BatchTopK takes one threshold, not a tensor {tuple(threshold.shape)}.")
        # one axis, not none: a tensor without axes would be rounded to the dtype of what it is compared with
        self.register_buffer("threshold", _thresholds(threshold.reshape(1)))
        self._value = self.threshold.item()

    def forward(self, z: Tensor) -> Tensor:
        return nn.functional.threshold(z, self._value, 0.0)

    def scaled(self, factor: Tensor | float) -> Activation:
        if isinstance(factor, Tensor) and not _uniform(factor):
            return JumpReLU(self.threshold * factor)
        one = factor.flatten()[0] if isinstance(factor, Tensor) else factor
        return BatchTopK(self.k, self.threshold * one)

    def selected(self, index: Tensor) -> JumpReLU:
        return JumpReLU(self.threshold.expand(len(index)))  # k of them per token there are no more

    def cutoff(self, index: Tensor) -> Tensor:
        return self.threshold

    def extra_repr(self) -> str:
        return f"k={self.k}, threshold={self.threshold.item():.4g}"


class BatchwiseTopK(Activation):
    """The largest pre-activations of the whole batch, k per token on average, if positive.

    As BatchTopK is trained, and evaluated where no threshold was kept (the code of Bussmann et al. 2024): a
    token's features depend on the tokens beside it, so that prompts cannot be compared one by one.

    >>> BatchwiseTopK(1)(torch.tensor([[1.0, 3.0, 2.0], [0.5, 0.0, 1.0]]))
    tensor([[0., 3., 2.],
            [0., 0., 0.]])
    """

    settings = ("k",)
    selects = True

    def __init__(self, k: int):
        super().__init__()
        self.k = _positive(k)

    def forward(self, z: Tensor) -> Tensor:
        tokens = z.detach().flatten(0, -2) if z.ndim > 1 else z.detach()[None]
        return self.over(lambda: [tokens], len(tokens))(z)

    def over(self, parts: Callable[[], Iterable[Tensor]], n_tokens: int) -> Activation:
        kept = torch.empty(0)
        for z in parts():
            flat = torch.cat([kept.to(z), z.flatten()])
            kept = flat.topk(min(self.k * n_tokens, len(flat)), sorted=False).values
        if len(kept) == 0:
            return BatchTopK(self.k, 0.0)
        least = kept.min().float()  # a feature of this size is in; what is smaller is not
        return BatchTopK(self.k, torch.nextafter(least, torch.full_like(least, -torch.inf)).clamp(min=0))

    def cutoff(self, index: Tensor) -> None:
        return None


KINDS: dict[str, type[Activation]] = {
    kind.__name__: kind for kind in (ReLU, JumpReLU, TopK, BatchTopK, BatchwiseTopK, AbsTopK, GroupMax)
}


def _uniform(factor: Tensor) -> bool:
    return bool((factor == factor.flatten()[0]).all())


def _positive(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number of features, at least 1, not {k!r}.")
    return k


def _thresholds(threshold: Tensor) -> Tensor:
    threshold = threshold.detach()
    if threshold.is_complex() or threshold.dtype == torch.bool:
        raise ValueError(f"Thresholds are numbers, not {threshold.dtype}.")
    if not threshold.is_floating_point() or threshold.dtype.itemsize < 4:
        threshold = threshold.float()
    if not threshold.isfinite().all() or (threshold < 0).any():
        raise ValueError(
            f"Thresholds are finite and at least 0, not from {threshold.min():g} to {threshold.max():g}. "
            "Where negative ones were used after a ReLU, 0 means the same."
        )
    return threshold.clone()
