"""Texts that a model writes while it is steered, and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..model import Model
from .choices import Prompting
from .fluency import Score


@dataclass(frozen=True)
class Generated:
    """A measure: scores of what the model writes after each prompt, under whatever `applied` has open.

    Scores are callables of (model, prompts, texts), and are worked out on the unsteered model: `surprise`,
    `Each(refuses)`, `Judged(KeywordJudge(...))`. What is in `options`, such as `do_sample`, goes to
    `model.complete`; without, the most probable token is written. `texts` are kept with the scores. The
    random seed is the same at every call.
    """

    prompts: Sequence[str]
    scores: Mapping[str, Score]
    max_new_tokens: int = field(default=40, kw_only=True)
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    batch_size: int = field(default=16, kw_only=True)
    asked: Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            raise TypeError("Give a sequence of prompts, not one text.")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if not self.prompts:
            raise ValueError("There are no prompts to write after.")
        if not isinstance(self.scores, Mapping):
            raise TypeError("Give scores by name, such as {'surprise': surprise}.")

    def __call__(self, model: Model) -> dict[str, Tensor | list[str]]:
        texts = self.texts(model)
        found: dict[str, Tensor | list[str]] = {"texts": texts}
        with model.apart():
            for name, score in self.scores.items():
                values = score(model, self.prompts, texts)
                found |= values if isinstance(values, Mapping) else {name: values}
        return found

    def texts(self, model: Model) -> list[str]:
        """What the model writes, without the prompts."""
        options: dict[str, Any] = {"do_sample": False, **self.options}
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            return model.complete(
                list(self.prompts if self.asked is None else self.asked),
                max_new_tokens=self.max_new_tokens, batch_size=self.batch_size, progress=False, **options,
            )  # fmt: skip

    def prompted(self, change: Prompting) -> Generated:
        """The same measure where the model is asked other prompts; scores are told the prompts as before."""
        return replace(self, asked=[change(prompt) for prompt in self.prompts])
