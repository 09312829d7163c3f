"""Whether a dictionary is where it belongs: how much of a short text it leaves unexplained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from ...model import Model

SAMPLE = (
    "On Monday morning the baker opened her shop a little later than usual. Rain had kept the first "
    "customers at home, and the street was quiet. She put two loaves of rye bread in the window, counted 25 "
    "coins into the drawer, and asked herself: what would they like today? By noon there was a long line at "
    "the door."
)


@torch.no_grad()
def fvu(
    model: Model, dictionaries: Mapping[str, object], text: str | Int[Tensor, "batch pos"] = SAMPLE
) -> dict[str, float]:
    """The share of each site's variance on a text that its dictionary leaves unexplained, by site.

    0 is a perfect dictionary; 1 is no better than the mean over tokens. Each row's first token is left out:
    many models have something there of a size of its own, and many dictionaries were never shown it.

    Raises ValueError for text of fewer than three tokens, or text where the model has no tokenizer.

    >>> from interventions import Identity, Model
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = Model.load(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)))
    >>> fvu(model, {"mlp.1": Identity()}, torch.tensor([[3, 1, 4, 1, 5]]))
    {'mlp.1': 0.0}
    """
    from ...splice import run

    computed = run(model, _tokens(model, text), dictionaries).computed  # type: ignore[arg-type]
    out = {}
    for site in dictionaries:
        acts = computed[str(site)]
        error = acts.error[:, 1:].flatten(0, 1).double()
        out[str(site)] = error.square().sum().item() / _variance(model, _tokens(model, text), str(site))
    return out


def _variance(model: Model, tokens: Tensor, site: str) -> float:
    (x,) = model.read(tokens, [site]).values()
    x = x[:, 1:].flatten(0, 1).double()
    return (x - x.mean(0)).square().sum().item()


def _tokens(model: Model, text: str | Tensor) -> Tensor:
    if isinstance(text, str):
        if model.tokenizer is None:
            raise ValueError("The model has no tokenizer: pass tokens (batch pos) instead of text.")
        text = torch.tensor([model.tokenizer(text)["input_ids"]])
    if text.ndim != 2 or text.shape[0] * (text.shape[1] - 1) < 2:
        raise ValueError(f"Tokens (batch pos), three or more, are needed, not {tuple(text.shape)}.")
    return text.to(model.device)
