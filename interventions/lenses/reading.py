"""One pass of a model, read through a lens as often as wanted: what its sites held, and what it said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model import Model
from ..sites import Site
from ..steering.likelihood import prompt_ids
from .ending import vocabulary
from .lens import OUTPUT, Lens

Prompt = str | Sequence[int] | Int[Tensor, " pos"] | Int[Tensor, "1 pos"]


@dataclass(frozen=True, eq=False)
class Reading:
    """What the sites of a lens held in one pass over a prompt, and the model's own logits.

    Small beside the logits of all sites, which are worked out anew whenever they are asked for.
    """

    lens: Lens
    tokens: Int[Tensor, " pos"]
    acts: Mapping[str, Float[Tensor, "pos width"]]
    output: Float[Tensor, "pos vocab"]

    @property
    def sites(self) -> tuple[str, ...]:
        """Those of the lens, and "output", which stands for the model's own logits."""
        return (*self.lens.sites, OUTPUT)

    @property
    def vocab(self) -> int:
        return self.output.shape[-1]

    def logits(
        self, site: str | Site, positions: slice | Int[Tensor, " pos"] = slice(None)
    ) -> Float[Tensor, "pos vocab"]:
        """The logits at some positions of one of `sites`. Raises LookupError for other sites."""
        if str(site) == OUTPUT:
            return self.output[positions]
        if str(site) not in self.acts:
            raise LookupError(f"No site {str(site)!r} was read; there are {', '.join(self.sites)}.")
        return self.lens.logits(site, self.acts[str(site)][positions])

    def __repr__(self) -> str:
        return f"Reading({self.lens!r}, {len(self.tokens)} tokens)"


def reading(lens: Lens, prompt: Prompt) -> Reading:
    """What the lens needs of one pass over a prompt: a text, or its tokens.

    Inside `applied(...)` it is the changed pass that is read; the lens's own way from a site to logits is the
    unchanged model's.

    Raises:
        TypeError: text for a model without a tokenizer.
        ValueError: no token, several rows of them, or tokens of another model.
    """
    tokens = prompt_tokens(lens.model, prompt)
    acts, logits = read(lens.model, tokens[None], lens.sites)
    if logits.shape[1] != len(tokens):
        raise ValueError(f"{lens.model!r} classifies whole texts, and says nothing after each token.")
    return Reading(lens, tokens, {name: x[0] for name, x in acts.items()}, logits[0])


def prompt_tokens(model: Model, prompt: Prompt) -> Int[Tensor, " pos"]:
    """The tokens of one prompt, after those with which the tokenizer opens a text.

    Raises:
        TypeError: several texts, text for a model without a tokenizer, numbers that are no tokens.
        ValueError: no token, several rows of them, or tokens of another model.
    """
    if isinstance(prompt, Tensor):
        if prompt.is_floating_point():
            raise TypeError(f"Tokens are whole numbers, not {prompt.dtype}.")
        if prompt.ndim > 1 and prompt.numel() != prompt.shape[-1]:
            raise ValueError(f"One prompt is read at a time: give tokens (pos), not {tuple(prompt.shape)}.")
        prompt = prompt.flatten().tolist()
    elif not isinstance(prompt, str) and any(isinstance(part, str) for part in prompt):
        raise TypeError("One prompt is read at a time: give a text or tokens, not a list of texts.")
    tokens = torch.tensor(prompt_ids(model, prompt))
    if model.classes is not None:
        return tokens
    vocab = vocabulary(model)
    if wrong := [token for token in tokens.tolist() if not 0 <= token < vocab]:
        raise ValueError(f"There is no token {wrong[0]}: the vocabulary has {vocab}.")
    return tokens


@torch.no_grad()
def read(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    sites: Iterable[str | Site],
    mask: Int[Tensor, "batch pos"] | None = None,
    *,
    last: int = 0,
) -> tuple[dict[str, Float[Tensor, "batch pos width"]], Float[Tensor, "batch pos vocab"]]:
    """The tensors at some sites, by name, and the logits of the same pass, or the `last` so many of them."""
    seen: dict[str, list[Tensor]] = {}

    def keep(site: Site, x: Tensor) -> Tensor:
        seen.setdefault(site.name, []).append(x)
        return x

    with model.visiting(sites, keep):
        logits = model.logits(tokens, mask, last=last)
    shape = tuple(tokens.shape)
    found = {}
    for name, pieces in seen.items():
        # Where a state is changed on the way, the pass is made in parts.
        x = torch.cat(pieces, dim=1) if model.follower.parted else pieces[-1]
        if x.shape[:-1].numel() != shape[0] * shape[1]:
            raise ValueError(
                f"What {name} holds has shape {tuple(x.shape)} in a pass over tokens {shape}: a lens reads "
                "one vector for each token. Where a state is being changed, give one row at a time."
            )
        found[name] = x.reshape(*shape, x.shape[-1])
    return found, logits
