"""Whether a dictionary is where it belongs: how much of a short text it leaves unexplained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...acts import CrossLayer, Dictionary, Transcoder
from ...model import Model

SAMPLE = (
    "On Monday morning the baker opened her shop a little later than usual. Rain had kept the first "
    "customers at home, and the street was quiet. She put two loaves of rye bread in the window, counted 25 "
    "coins into the drawer, and asked herself: what would they like today? By noon there was a long line at "
    "the door."
)


@torch.no_grad()
def fvu(
    model: Model, dictionaries: Mapping[str, Dictionary], text: str | Int[Tensor, "batch pos"] = SAMPLE
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
    tokens = _tokens(model, text)
    places = {str(site): getattr(held, "reads", None) or str(site) for site, held in dictionaries.items()}
    seen = {site.name: x for site, x in model.read(tokens, {*places, *places.values()}).items()}
    crossing = {site: held for site, held in dictionaries.items() if isinstance(held, CrossLayer)}
    features = {str(site): held.encode(seen[places[str(site)]]) for site, held in crossing.items()}
    out = {}
    for name, held in ((str(site), held) for site, held in dictionaries.items()):
        x, y = seen[places[name]], seen[name]
        predicted = held.decode(features[name] if name in features else held.encode(x))
        skip = held.skip(x) if isinstance(held, Transcoder) else None
        predicted = predicted if skip is None else predicted + skip
        for site, earlier in crossing.items():
            if name in earlier.later:
                predicted = predicted + earlier.later[name].decode(features[str(site)])
        out[name] = _unexplained(y[:, 1:].flatten(0, 1), predicted[:, 1:].flatten(0, 1))
    return out


def _unexplained(y: Float[Tensor, "token d_out"], predicted: Float[Tensor, "token d_out"]) -> float:
    y = y.double()
    return ((y - predicted.double()).square().sum() / (y - y.mean(0)).square().sum()).item()


def _tokens(model: Model, text: str | Tensor) -> Tensor:
    if isinstance(text, str):
        if model.tokenizer is None:
            raise ValueError("The model has no tokenizer: pass tokens (batch pos) instead of text.")
        text = torch.tensor([model.tokenizer(text)["input_ids"]])
    if text.ndim != 2 or text.shape[0] * (text.shape[1] - 1) < 2:
        raise ValueError(f"Tokens (batch pos), three or more, are needed, not {tuple(text.shape)}.")
    return text.to(model.device)
