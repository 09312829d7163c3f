"""What is the same for all dictionaries in training: the optimiser's step, counts, and what a checkpoint
holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..sites import Site
from .pool import Pool
from .recipes import Recipe
from .recipes.topk import largest

_COUNTS = ("silent", "fvu", "l0")


class Trainee(ABC):
    """A dictionary in training, in the centred and scaled units of the pool.

    It has weights, an optimiser and clipping of its own. Where the recipe says so, rows of `decoders` are
    held at unit norm.
    """

    recipe: Recipe
    memory: dict[str, Tensor]

    def begin(
        self,
        parameters: Sequence[Tensor],
        own: Sequence[Tensor],
        decoders: Sequence[Tensor],
        n_features: int,
    ) -> None:
        """Takes up the weights to be trained; the recipe's `own` are clipped apart from the dictionary's.

        A price far from its aim pulls hard at thresholds, and would leave the others next to nothing.
        """
        self.parameters = [weight.requires_grad_() for weight in (*parameters, *own)]
        self._clipped = self.parameters[: len(parameters)], self.parameters[len(parameters) :]
        self.decoders = list(decoders)
        device = self.parameters[0].device
        self.optimizer = torch.optim.Adam(self.parameters, fused=device.type in ("cpu", "cuda"))
        self.silent = torch.zeros(n_features, dtype=torch.long, device=device)  # steps since last active
        self.fvu: Tensor | None = None  # running means
        self.l0: Tensor | None = None

    @property
    @abstractmethod
    def sites(self) -> Sequence[Site]:
        """The sites whose activations it asks for."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call it."""

    @abstractmethod
    def batch_loss(
        self,
        batch: Mapping[Site, Float[Tensor, "token d_model"]],
        progress: float,
        *,
        auxk: float,
        dead_after: int,
    ) -> Float[Tensor, ""]:
        """The loss on a batch; counts which features were active."""

    @abstractmethod
    def finished(self, pool: Pool, meta: dict[str, Any]) -> Any:
        """The dictionary in the units of the model."""

    @torch.enable_grad()
    def advance(
        self,
        batch: Mapping[Site, Float[Tensor, "token d_model"]],
        progress: float,
        *,
        lr: float,
        auxk: float = 1 / 32,
        dead_after: int = 200,
    ) -> None:
        """One step of the optimiser on one batch."""
        loss = self.batch_loss(batch, progress, auxk=auxk, dead_after=dead_after)
        self.optimizer.zero_grad()
        loss.backward()
        unit = self.recipe.unit_decoder
        with torch.no_grad():
            for W in self.decoders if unit else ():
                if W.grad is not None:  # only the part that turns rows, not what stretches them
                    W.grad -= (W.grad * W).sum(-1, keepdim=True) * W
            for weights in filter(None, self._clipped):
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            for W in self.decoders if unit else ():
                W /= W.norm(dim=-1, keepdim=True)

    def count(self, active: Bool[Tensor, " feature"], l0: Tensor, fvu: Tensor) -> None:
        """Takes note of a batch: which features were active in it, how many per token, and the FVU."""
        self.silent += 1
        self.silent[active] = 0
        self.fvu = fvu if self.fvu is None else self.fvu.lerp(fvu, 0.02)
        self.l0 = l0 if self.l0 is None else self.l0.lerp(l0, 0.02)

    def state(self, dead_after: int) -> dict[str, float]:
        """Running means of the fraction of variance unexplained and of L0, and the share of dead features."""
        assert self.fvu is not None and self.l0 is not None
        if not self.fvu.isfinite():
            raise FloatingPointError(
                f"Training at {self.name} diverged: the loss is not finite. Try a smaller lr."
            )
        dead = (self.silent > dead_after).float().mean()
        return {"fvu": self.fvu.item(), "l0": self.l0.item(), "dead": dead.item()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that it carries from step to step, by names that `restore` knows."""
        found = {f"weight {i}": weight.detach() for i, weight in enumerate(self.parameters)}
        for i, weight in enumerate(self.parameters):
            moments = self.optimizer.state[weight]
            found |= {f"adam {i} {name}": value for name, value in moments.items()}
        found |= {f"memory {name}": value for name, value in self.memory.items()}
        return found | {name: value for name in _COUNTS if (value := getattr(self, name)) is not None}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `tensors` gave."""
        device = self.silent.device
        for i, weight in enumerate(self.parameters):
            weight.copy_(tensors[f"weight {i}"])
            start = f"adam {i} "
            self.optimizer.state[weight] = {
                name.removeprefix(start): value.clone().to(device)
                for name, value in tensors.items()
                if name.startswith(start)
            }
        self.memory = {name: tensors[f"memory {name}"].to(device) for name in self.memory}
        for name in _COUNTS:
            setattr(self, name, tensors[name].to(device, copy=True) if name in tensors else None)


def revival(
    x: Float[Tensor, "token d_in"],
    W_enc: Float[Tensor, "feature d_in"],
    bias: Float[Tensor, " feature"],
    W_dec: Float[Tensor, "feature d_out"],
    error: Float[Tensor, "token d_out"],
    dead: Int[Tensor, " dead"],
) -> Float[Tensor, ""]:
    """The share of the error that the dead features leave, weighted down where they are few (AuxK)."""
    k = max(1, error.shape[-1] // 2)
    z = torch.addmm(bias[dead], x, W_enc[dead].T).relu()
    if len(dead) > k:
        z = z * (z >= largest(z, k))
    left = (error - z @ W_dec[dead]).square().sum()
    return left / error.square().sum().clamp(min=1e-12) * min(1.0, len(dead) / k)
