"""Conditions on activations that an intervention may hang on."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .passage import Passage


@dataclass(frozen=True, eq=False)
class Condition:
    """That the cosine between activations and a direction is above a threshold, or below one.

    As in conditional activation steering (Lee et al. 2024). `direction` maps one site to a vector
    (d_model); the site is the one that is changed or one before it. With `over="token"` every token decides
    for itself. With `over="prompt"` the mean over the tokens of the prompt decides for the whole text, with
    `over="last"` the prompt's last token does; a generation goes on as its prompt was decided.

    >>> condition = Condition({"resid.3": torch.ones(4)}, above=0.2, over="prompt")
    >>> condition
    Condition(cosine at resid.3 above 0.2, over prompt)
    """

    direction: Mapping[str, Tensor]
    above: float | None = None
    below: float | None = None
    over: Literal["token", "prompt", "last"] = "token"

    def __post_init__(self) -> None:
        if len(self.direction) != 1:
            raise ValueError(f"A condition reads one site, not {list(map(str, self.direction)) or 'none'}.")
        if (self.above is None) == (self.below is None):
            raise ValueError("A condition needs one threshold: `above=` or `below=`.")
        if self.over not in ("token", "prompt", "last"):
            raise ValueError(f"over={self.over!r} is none of 'token', 'prompt', 'last'.")

    @property
    def sites(self) -> Set[str]:
        return {str(site) for site in self.direction}

    def scores(self, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos"]:
        """Cosine of every token's activations with the direction."""
        ((site, direction),) = self.direction.items()
        if direction.shape != x.shape[-1:]:
            raise ValueError(
                f"A condition's direction of shape {tuple(direction.shape)} does not fit {site}, whose width "
                f"is {x.shape[-1]}."
            )
        return torch.cosine_similarity(x, direction.to(x), dim=-1)

    def __call__(
        self, passage: Passage, x: Float[Tensor, "row pos d_model"], seen: Mapping[str, Tensor]
    ) -> Bool[Tensor, "row pos"]:
        """Which tokens of the pass it holds for."""
        (site,) = self.sites
        x = seen.get(site, x)
        if self.over == "token":
            return self._met(self.scores(x))
        key = ("decided", id(self))
        if passage.start == 0 or key not in passage.memory:
            passage.memory[key] = self._decided(passage, x)
        return passage.memory[key][:, None].expand(x.shape[:2])

    def _decided(self, passage: Passage, x: Tensor) -> Bool[Tensor, " row"]:
        if passage.start or passage.prompted[:, passage.stop :].any():
            raise ValueError(
                f"{self} decides by the whole prompt, but this pass is over a part of it: read the prompt in "
                "one pass, or let each token decide (over='token')."
            )
        prompt = passage.of_this_pass(passage.prompted)
        if self.over == "last":
            last = passage.of_this_pass(passage.position * prompt).argmax(-1)
            return self._met(self.scores(x[torch.arange(len(x), device=x.device), last]))
        mean = (x * prompt[..., None]).sum(1) / prompt.sum(1, keepdim=True)
        return self._met(self.scores(mean))

    def _met(self, score: Tensor) -> Tensor:
        if self.above is not None:
            return score > self.above
        assert self.below is not None
        return score < self.below

    def __repr__(self) -> str:
        (site,) = self.sites
        bound = f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"
        return f"Condition(cosine at {site} {bound}, over {self.over})"
