"""What sites hold at the tokens of some texts, read once for however many dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..acts import Identity
from ..binding import Splice
from ..features.passes import Consume, Reading, each_token
from ..model import Model
from ..sites import Site
from ..steering.likelihood import prompt_ids
from ..steering.token_choice import Choice, chosen, every


@dataclass(frozen=True, eq=False)
class Held:
    """What a site holds at the tokens of some texts that count, in the model's precision."""

    site: Site
    rows: Float[Tensor, "token d_model"]
    text: Int[Tensor, " token"]  # the number of the text that each is of; those of a text lie together
    n_texts: int

    def __len__(self) -> int:
        return self.n_texts

    def __repr__(self) -> str:
        return f"Held({len(self.rows):,} tokens of {self.n_texts} texts at {self.site})"


def held(
    model: Model,
    sites: Sequence[str | Site],
    texts: Sequence[Any],
    *,
    tokens: Choice = every,
    context: int | None = None,
    batch_size: int = 16,
    name: str = "text",
    progress: bool | None = None,
) -> dict[str, Held]:
    """What sites hold, by their names: one forward pass for each text, whatever is asked of them after.

    Args:
        texts: texts, or token ids. What is wrong with one is said with `name` and its number, from 0 on.
        tokens: the ones that count: by default all but those that open a text; padding never counts.
        context: of each text only so many tokens are read, those that open it among them.

    Raises:
        ValueError: no texts, or a text of which no token is left.
        LookupError: a site that the model does not have.
        TypeError: text for a model without a tokenizer.
    """
    listed = numbered(model, texts, tokens, context=context, name=name)
    return read(model, sites, listed, batch_size=batch_size, progress=progress)


def numbered(
    model: Model, texts: Sequence[Any], tokens: Choice, *, context: int | None, name: str
) -> list[Reading]:
    """Texts ready to be read, labelled by their numbers. See `held` for errors."""
    if context is not None and context < 1:
        raise ValueError(f"context={context}: at least one token of a text is read.")
    if isinstance(texts, str):
        raise TypeError(f"{name}: pass a list of texts, not one string.")
    found = []
    for i, text in enumerate(texts):
        try:
            ids = prompt_ids(model, text.flatten().tolist() if isinstance(text, Tensor) else text)[:context]
            found.append(Reading(ids, chosen(tokens, ids, ids, model.tokenizer), i))
        except ValueError as error:
            raise ValueError(f"{name} {i}, {text!r:.60}: {str(error).rstrip('.')}.") from None
    if not found:
        raise ValueError(f"{name}: there are no texts.")
    return found


def read(
    model: Model,
    sites: Sequence[str | Site],
    texts: Sequence[Reading],
    *,
    batch_size: int,
    progress: bool | None,
) -> dict[str, Held]:
    """What sites hold at the chosen tokens of texts that are labelled by their numbers."""
    wanted = dict.fromkeys(model.site(site) for site in sites)
    rows: dict[Site, list[Tensor]] = {site: [] for site in wanted}
    owner: dict[Site, list[Tensor]] = {site: [] for site in wanted}

    def consume(splice: Splice, found: Tensor, text: Tensor) -> None:
        rows[splice.site].append(found.to(model.dtype))
        owner[splice.site].append(text)

    read_tokens(model, list(wanted), texts, consume, batch_size=batch_size, progress=progress)
    return {
        site.name: Held(site, torch.cat(rows.pop(site)), torch.cat(owner.pop(site)), len(texts))
        for site in wanted
    }


def read_tokens(
    model: Model,
    sites: Sequence[Site],
    texts: Sequence[Reading],
    consume: Consume,
    *,
    batch_size: int,
    progress: bool | None,
) -> None:
    """Hands on what sites hold at chosen tokens, a few rows at a time, those of a text one after another."""
    plain = {site: Splice(site, site, Identity(), site.width, model.device, model.dtype) for site in sites}
    each_token(model, plain, texts, consume, batch_size=batch_size, progress=progress)
