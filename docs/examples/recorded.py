"""What one pass of a model held at a site, as a model of its own: what reads that site reads it at no cost.

A token is a place in a text, and the embedding is what the site held there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from interventions import Model
from interventions.probing import Probe


class Recorded(nn.Module):
    """Gives every place in the texts what the site held there; what comes after says nothing."""

    def __init__(self, held: Tensor):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(held)
        self.blocks = nn.ModuleList([nn.Linear(held.shape[1], held.shape[1], bias=False)])
        self.head = nn.Linear(held.shape[1], 2, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Places:
    """A tokenizer of texts that were read: their places, and one that opens each."""

    all_special_ids = (0,)
    pad_token_id, bos_token_id, eos_token_id = 0, 0, None

    def __init__(self, texts: Sequence[str], ids: Sequence[Sequence[int]], tokenizer: Any):
        self.tokenizer, self.ids, self.at, start = tokenizer, [0], {}, 1
        for text, tokens in zip(texts, ids, strict=True):
            self.at[text] = list(range(start, start + len(tokens)))
            self.ids += tokens
            start += len(tokens)

    def __len__(self) -> int:
        return len(self.ids)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        if text not in self.at:
            raise KeyError(f"Nothing was recorded of the text {text[:60]!r}.")
        return [0] * add_special_tokens + self.at[text]

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return self.tokenizer.decode([self.ids[int(i)] for i in ids if int(i)], **options)


def recorded(
    model: Model,
    texts: Sequence[str],
    at: str,
    *,
    opening: str = "",
    path: Path | None = None,
    batch_size: int = 32,
) -> Model:
    """The model of what a site of another one holds of some texts, read behind `opening`.

    Special tokens, such as that may be, open a text and are not kept.

    What was read is kept in a file, and taken from it where there is one.
    """
    texts = sorted(dict.fromkeys(texts), key=len)
    special = set(model.tokenizer.all_special_ids)
    first = list(takewhile(special.__contains__, model.tokenizer.encode(opening + texts[0])))
    ids = [model.tokenizer.encode(opening + text)[len(first) :] for text in texts]
    tokens = torch.tensor([0, *(token for one in ids for token in one)])
    if path is None or not path.exists():
        held = _held(model, at, first, ids, batch_size)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"held": held, "tokens": tokens}, path)
    else:
        kept = load_file(path)
        if not torch.equal(kept["tokens"], tokens):
            raise ValueError(f"{path} holds other texts than these: remove it, or write elsewhere.")
        held = kept["held"]
    return Model.load(Recorded(held), tokenizer=Places(texts, ids, model.tokenizer))


def _held(
    model: Model, at: str, first: Sequence[int], ids: Sequence[Sequence[int]], batch_size: int
) -> Tensor:
    """What the site holds at every token behind the opening ones; zeros stand before all."""
    width = model.site(at).width
    reader = model.probed(Probe(torch.zeros(width), torch.tensor(0.0)), at=at)  # its passes end there
    found = [torch.zeros(1, width)]
    for start in tqdm(range(0, len(ids), batch_size), desc="reading", unit="batch", disable=None):
        part = [[*first, *tokens] for tokens in ids[start : start + batch_size]]
        tokens, mask = torch.zeros(2, len(part), max(map(len, part)), dtype=torch.long)
        for row, one in enumerate(part):
            tokens[row, : len(one)], mask[row, : len(one)] = torch.tensor(one), 1
        x = reader.read(tokens, [at], mask)[reader.site(at)].float().cpu()
        found += [x[row, len(first) : len(one)] for row, one in enumerate(part)]
    return torch.cat(found)
