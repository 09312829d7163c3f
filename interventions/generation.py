"""What a model writes, right with any padding, with and without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from .ways import padding, written

if TYPE_CHECKING:
    from .model import Model


@torch.no_grad()
def generate(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"] | None = None,
    **kwargs: Any,
) -> Int[Tensor, "batch longer"]:
    """Tokens and their continuation; prompts of unequal length stand at the right, next to what follows.

    `mask` is 1 at tokens and 0 at padding, on either side. Keyword arguments are those of the module's own
    `generate`: `max_new_tokens`, `do_sample`, `temperature`, `num_beams`, ... What its cached passes get
    wrong (padding, several rows at once) is tried out once, and done in another way: rows one by one, or in
    groups of equal length, or without a cache. A module without `generate` knows `max_new_tokens`,
    `do_sample`, `temperature`, `top_k` and `eos_token_id`.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from interventions import Model
    >>> model = Model.load(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)))
    >>> model.generate(torch.tensor([[3, 1, 4]]), max_new_tokens=5, do_sample=False).shape
    torch.Size([1, 8])
    """
    mask = kwargs.pop("attention_mask", None) if mask is None else mask
    tokens = tokens.to(model.device)
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(
            f"Tokens are (batch pos), with at least one to go on from; got {tuple(tokens.shape)}."
        )
    mask = torch.ones_like(tokens) if mask is None else mask.to(model.device).long()
    if mask.shape != tokens.shape or not mask.any(1).all():
        raise ValueError("The mask has a number for each token, and a 1 in every row.")
    way = model.writes
    # In parts of a pass, padding may be read as text is.
    groups = _groups(mask, "equal" if model.follower.parted and way == "padded" else way)
    if len(groups) == 1:
        turned = _turned(tokens, mask)
        out = written(model, turned, way, kwargs)
        spare = tokens.shape[1] - turned[0].shape[1]
        if not spare or not isinstance(out, Tensor):
            return out
        return torch.nn.functional.pad(out, (spare, 0), value=padding(model, kwargs))
    if kwargs.get("return_dict_in_generate"):
        raise ValueError(
            "These rows are generated one after the other, so there is no single dictionary of them."
        )
    width, pieces = tokens.shape[1], {}
    for rows in groups:
        n = int(mask[rows].sum(1).max())
        part = (
            tokens[rows][mask[rows].bool()].view(len(rows), n),
            torch.ones(len(rows), n, device=model.device),
        )
        with model.follower.of_rows(rows, len(tokens)):
            out = written(model, (part[0], part[1].long()), way, kwargs)
        copies = len(out) // len(rows)
        for i, row in enumerate(rows.tolist()):
            pieces[row] = (n, out[i * copies : (i + 1) * copies])
    longest = max(out.shape[1] - n for n, out in pieces.values())
    pad = padding(model, kwargs)
    return torch.cat(
        [
            torch.nn.functional.pad(out, (width - n, longest - (out.shape[1] - n)), value=pad)
            for _, (n, out) in sorted(pieces.items())
        ]
    )


def complete(
    model: Model,
    texts: str | Sequence[str],
    *,
    max_new_tokens: int = 40,
    batch_size: int = 16,
    progress: bool | None = None,
    **kwargs: Any,
) -> Any:
    """What the model writes after a text, or a list of it for a list of texts.

    Keyword arguments are those of `generate`. Special tokens are left out of what is returned; a prompt gets
    those that the tokenizer opens a text with.

    Raises:
        ValueError: a model without tokenizer; an empty text where the tokenizer opens it with nothing.
    """
    if isinstance(texts, str):
        return complete(model, [texts], max_new_tokens=max_new_tokens, progress=False, **kwargs)[0]
    rows = [opened(model, text) for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, str] = {}
    bar = tqdm(total=len(rows), desc="texts", disable=None if progress is None else not progress)
    for at in range(0, len(rows), batch_size):
        batch = order[at : at + batch_size]
        width = max(len(rows[i]) for i in batch)
        tokens = torch.tensor([[0] * (width - len(rows[i])) + rows[i] for i in batch])
        mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in batch])
        with model.follower.of_rows(torch.tensor(batch), len(rows)):
            out = generate(model, tokens, mask, max_new_tokens=max_new_tokens, **kwargs)
        for i, row in zip(batch, out, strict=True):
            found[i] = said(model, row[width:].tolist())
        bar.update(len(batch))
    bar.close()
    return [found[i] for i in range(len(rows))]


def said(model: Model, ids: Sequence[int]) -> str:
    """The text of generated tokens, without the special ones."""
    special = set(getattr(model.tokenizer, "all_special_ids", ()))
    return model.tokenizer.decode([i for i in ids if i not in special])


def opened(model: Model, text: str) -> list[int]:
    """Token ids of a text that is to be continued: opened as the tokenizer opens one, once, and not ended."""
    if model.tokenizer is None:
        raise ValueError("This model has no tokenizer: pass tokens to `generate`.")
    bare = model.tokenizer.encode(text, add_special_tokens=False)
    full = model.tokenizer.encode(text, add_special_tokens=True)
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    ends = getattr(model.tokenizer, "eos_token_id", None)
    opening = full[:start] if bare else [i for i in full if i != ends]
    if not (ids := bare if bare[:start] == opening else opening + bare):
        raise ValueError("There is nothing to go on from: the text is empty, and the tokenizer opens none.")
    return ids


def _groups(mask: Tensor, way: str) -> list[Tensor]:
    rows = torch.arange(len(mask))
    lengths = mask.sum(1).cpu()
    if way == "padded":
        return [rows]
    if way == "single":
        return list(rows.split(1))
    return [rows[lengths == n] for n in lengths.unique()]


def _turned(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows with their padding on the left, and no more of it than they need."""
    if mask.all():
        return tokens, mask
    width = int(mask.sum(1).max())
    turned, new = torch.zeros_like(tokens[:, :width]), torch.zeros_like(mask[:, :width])
    for row in range(len(tokens)):
        kept = tokens[row][mask[row].bool()]
        turned[row, width - len(kept) :], new[row, width - len(kept) :] = kept, 1
    return turned, new
