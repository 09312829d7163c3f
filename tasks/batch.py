"""Prompts of one length as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Tokenizer(Protocol):
    """What a task asks of a tokenizer; those of Hugging Face have it."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, ids: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples whose prompts have the same number of tokens, so that nothing is padded.

    `answers` and `foils` hold each example's token ids, filled up with -1 on the right where examples
    have different numbers of them. `reference` holds log probabilities of the next token to compare
    with; see `referenced`. An index, a list of them, a slice or a tensor selects examples.

    >>> one, two = torch.tensor([[1], [1]]), torch.tensor([[2], [2]])
    >>> batch = Batch(torch.tensor([[5, 6], [7, 6]]), None, answers=one, foils=two)
    >>> len(batch), batch[1].clean
    (2, tensor([[7, 6]]))
    """

    clean: Int[Tensor, "batch pos"]
    patch: Int[Tensor, "batch pos"] | None
    answers: Int[Tensor, "batch answer"]
    foils: Int[Tensor, "batch foil"]
    reference: Float[Tensor, "batch vocab"] | None = None
    cases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.patch is not None and self.patch.shape != self.clean.shape:
            shapes = f"{tuple(self.clean.shape)} and {tuple(self.patch.shape)}"
            raise ValueError(f"Clean and patch are compared position by position; their shapes are {shapes}.")
        sizes = {len(t) for t in self._tensors().values()} | ({len(self.cases)} if self.cases else set())
        if len(sizes) > 1:
            raise ValueError(f"Everything in a batch has one row per example; the sizes are {sorted(sizes)}.")

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Batch:
        rows = torch.arange(len(self), device=self.clean.device)[index].reshape(-1)
        cases = tuple(self.cases[row] for row in rows.tolist()) if self.cases else ()
        return replace(self, cases=cases, **{name: t[rows] for name, t in self._tensors().items()})

    def to(self, device: torch.device | str | None) -> Batch:
        """The same batch on `device`."""
        return replace(self, **{name: t.to(device) for name, t in self._tensors().items()})

    def referenced(self, logits: Float[Tensor, "batch pos vocab"]) -> Batch:
        """The same batch with the predictions of `logits` after the last token as its reference.

        >>> batch = Batch(torch.tensor([[5]]), None, torch.tensor([[1]]), torch.tensor([[0]]))
        >>> batch.referenced(torch.zeros(1, 1, 4)).reference.exp()
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
        """
        return replace(self, reference=logits[:, -1].detach().log_softmax(-1))

    def labels(self, tokenizer: Tokenizer | None = None, *, example: int = 0) -> list[str]:
        """What stands at each position of one clean prompt: text, or token ids without a tokenizer."""
        ids = self.clean[example].tolist()
        return [str(i) if tokenizer is None else tokenizer.decode([i]) for i in ids]

    def _tensors(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name) for name in ("clean", "patch", "answers", "foils", "reference")}
        return {name: t for name, t in tensors.items() if t is not None}
