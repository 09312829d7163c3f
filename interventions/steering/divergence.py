"""How far an intervention moves what a model predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..model import Model
from .choices import Prompting
from .likelihood import Ids, batches, log_softmax, logits_of, prompt_ids


@dataclass(frozen=True)
class Divergence:
    """A measure: KL(unsteered || steered) of the next token, in nats, the mean over each prompt's positions.

    Two passes over every batch of prompts: as the model is now, and as it is without what `applied` has open.
    With `prompted`, the model is asked the changed prompt, and compared over the tokens that both end with.
    """

    prompts: Sequence[str | Sequence[int]]
    batch_size: int = field(default=8, kw_only=True)
    asked: Sequence[str | Sequence[int]] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            raise TypeError("Give a sequence of prompts, not one text.")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if not self.prompts:
            raise ValueError("There are no prompts to measure.")

    @torch.no_grad()
    def __call__(self, model: Model) -> Float[Tensor, " item"]:
        plain = [prompt_ids(model, prompt) for prompt in self.prompts]
        asked = plain if self.asked is None else [prompt_ids(model, prompt) for prompt in self.asked]
        common = [_common_end(one, other) for one, other in zip(plain, asked, strict=True)]
        if 0 in common:
            raise ValueError(
                f"The prompt {self.prompts[common.index(0)]!r} and the one asked in its place do not end "
                "with the same token, so that there is nothing to compare."
            )
        values = torch.zeros(len(plain), dtype=torch.float64)
        sizes = [(len(one), len(other)) for one, other in zip(plain, asked, strict=True)]
        for batch in batches(sizes, model, self.batch_size):
            now = logits_of(model, [asked[i] for i in batch])
            with model.apart():
                before = logits_of(model, [plain[i] for i in batch])
            for row, i in enumerate(batch):
                n = common[i]
                p, q = (
                    log_softmax(x[row, len(ids) - n : len(ids)]).double()
                    for x, ids in ((before, plain[i]), (now, asked[i]))
                )
                values[i] = (p.exp() * (p - q)).where(p > -torch.inf, 0).sum(-1).mean().item()
        return values

    def prompted(self, change: Prompting) -> Divergence:
        """The same measure where the model is asked other prompts: with an instruction before each, say."""
        return replace(self, asked=[change(prompt) for prompt in self.prompts])


def _common_end(one: Ids, other: Ids) -> int:
    """How many tokens two rows end with in common."""
    n = 0
    while n < min(len(one), len(other)) and one[-1 - n] == other[-1 - n]:
        n += 1
    return n
