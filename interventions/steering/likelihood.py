"""How probable a model finds texts as continuations of prompts, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..generation import opened
from ..model import Model

Ids = tuple[int, ...]


def prompt_ids(model: Model, prompt: str | Sequence[int]) -> Ids:
    """The tokens of a prompt, after those with which the tokenizer opens a text, which are not doubled.

    Token ids are taken as they are. Raises TypeError for text without a tokenizer, ValueError for no token.
    """
    if not isinstance(prompt, str):
        ids = tuple(int(i) for i in prompt)
    else:
        _tokenizer(model, prompt)
        ids = tuple(opened(model, prompt))
    if not ids:
        raise ValueError("A prompt needs at least one token: an empty one leaves nothing to predict from.")
    return ids


def text_ids(model: Model, text: str) -> Ids:
    """The tokens of a text that stands after something else: without any that open a text."""
    return tuple(_tokenizer(model, text).encode(text, add_special_tokens=False))


def grown(model: Model, prompt: str | Sequence[int], text: str) -> Ids | None:
    """The tokens by which a prompt grows when a text is put after it; None where its own tokens change."""
    before = prompt_ids(model, prompt)
    if not isinstance(prompt, str):
        return text_ids(model, text)
    after = prompt_ids(model, prompt + text)
    return after[len(before) :] if after[: len(before)] == before else None


def continuation_ids(model: Model, prompt: str | Sequence[int], text: str | int) -> Ids:
    """The tokens by which a text, or one token id, continues a prompt.

    Raises ValueError where the prompt cannot be continued by it in whole tokens.
    """
    if isinstance(text, int):
        return (text,)
    found = grown(model, prompt, text)
    if not found or unknown(model, found):
        raise ValueError(
            f"{text!r} does not continue {_tail(prompt)} by whole known tokens: put the space at the start "
            "of the answer, not at the end of the prompt, or give token ids."
        )
    return found


@torch.no_grad()
def log_probabilities(
    model: Model, rows: Sequence[tuple[Ids, Ids]], *, batch_size: int = 16
) -> list[Float[Tensor, " token"]]:
    """The log-probability of each token of a continuation, in nats, for rows of (prompt, continuation).

    Rows that need the same pass share it: of several single tokens after one prompt, all are read off one
    row. Where the model's results change with padding, only rows of equal length are batched. Interventions
    that tell prompt from generated tokens take the continuation for generated.
    """
    wanted: dict[tuple[Ids, int], list[int]] = {}  # what is read, and how much of it is prompt
    for i, (prompt, more) in enumerate(rows):
        if not prompt or not more:
            raise ValueError("A row needs at least one token of prompt and one of continuation.")
        wanted.setdefault((prompt + more[:-1], len(prompt)), []).append(i)
    inputs = list(wanted)
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in batches([len(ids) for ids, _ in inputs], model, batch_size):
        first = min(inputs[i][1] for i in batch) - 1
        ids, prompts = zip(*(inputs[i] for i in batch), strict=True)
        logits = logits_of(model, ids, first, prompts)
        for row, i in enumerate(batch):
            ids, n = inputs[i]
            odds = log_softmax(logits[row, n - 1 - first : len(ids) - first])
            for j in wanted[inputs[i]]:
                more = torch.tensor(rows[j][1], device=odds.device)
                found[j] = odds.gather(1, more[:, None])[:, 0].double().cpu()
    return found


def batches(lengths: Sequence[Any], model: Model, batch_size: int) -> Iterator[list[int]]:
    """Indices of rows that go in one pass, shortest first; of one length where padding may be read.

    A row of several parts has its length as a tuple.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: a batch has at least 1 row.")
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    pads = len(set(lengths)) == 1 or (model.pads and not model.follower.parted)
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == batch_size or not (pads or lengths[batch[0]] == lengths[i])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def logits_of(
    model: Model, rows: Sequence[Ids], first: int = 0, prompts: Sequence[int] | None = None
) -> Float[Tensor, "batch pos vocab"]:
    """The logits after each token of some rows, from position `first` on; what is beyond a row is padding.

    `prompts` says how many tokens of each row are prompt; without, all are.
    """
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with model.following(prompts):
        logits = model.logits(tokens, mask, last=width - first)
    if mask.all() or not logits[..., 0].isnan()[mask[:, first:].bool().to(logits.device)].any():
        return logits
    # Padding longer than a sliding window leaves positions that see nothing, and spoils the others.
    for i, row in enumerate(rows):
        with model.following(None if prompts is None else [prompts[i]]):
            alone = model.logits(tokens[i : i + 1, : len(row)], last=len(row) - first)
        logits[i, : len(row) - first] = alone[0]
    return logits


def log_softmax(logits: Tensor) -> Tensor:
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def unknown(model: Model, ids: Ids) -> bool:
    """Whether the token for what the tokenizer does not know is among them."""
    return getattr(model.tokenizer, "unk_token_id", None) in ids


def _tokenizer(model: Model, text: str) -> Any:
    if model.tokenizer is None:
        raise TypeError(f"This model has no tokenizer for texts such as {text[:40]!r}: give token ids.")
    return model.tokenizer


def _tail(prompt: str | Sequence[int]) -> str:
    if not isinstance(prompt, str):
        return "these token ids"
    return repr(prompt if len(prompt) <= 40 else f"...{prompt[-40:]}")
