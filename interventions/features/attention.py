"""How much attention goes where, per layer and head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..model import Model
from ..steering.token_choice import Choice, last
from .passes import batches, padded, readings


@torch.no_grad()
def attention_patterns(
    model: Model, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"] | None = None
) -> dict[int, Float[Tensor, "batch head query key"]]:
    """Attention probabilities by layer; layers without attention are left out. What is applied takes part.

    Read off the modules that hand on such a tensor, with the model's slower ("eager") attention turned on
    for the pass: whatever the family, probabilities of 0 at later tokens that sum to 1 are found, or an error
    is raised.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    >>> patterns = attention_patterns(Model.load(GPT2LMHeadModel(config)), torch.tensor([[3, 1, 4]]))
    >>> patterns[1].shape, patterns[1].sum(-1).allclose(torch.ones(1, 4, 3))
    (torch.Size([1, 4, 3, 3]), True)

    Raises:
        ValueError: a model that has no attention, or that does not hand on its weights.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise ValueError(f"Attention is between tokens: give (batch pos) of two or more, not {tokens.shape}.")
    found: dict[int, dict[str, Tensor]] = {}
    real = torch.ones_like(tokens) if mask is None else mask
    handles = []

    def keep(layer: int, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, Tensor) and _is_pattern(x, real):
                    found.setdefault(layer, {})[name] = x

        return hook

    try:
        for layer, block in enumerate(model.blocks):
            for name, module in block.named_modules():
                handles.append(module.register_forward_hook(keep(layer, name)))
        with _eager(model.module):
            model.logits(tokens, mask, last=1)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(
            f"{type(model.module).__name__} hands on no attention probabilities: it has no attention, as "
            "recurrent models have none, or keeps it to itself. Effects on its sites are measured by "
            "`interventions.run`, and those on its state in `interventions.recurrence`."
        )
    return {layer: _only(layer, seen) for layer, seen in sorted(found.items())}


def attention_to(
    model: Model,
    texts: Iterable[Any],
    to: Choice,
    *,
    queries: Choice = last,
    batch_size: int = 16,
    progress: bool | None = None,
) -> dict[int, Float[Tensor, "item head"]]:
    """The attention that goes from the last token of each text to chosen ones, summed over these, by layer.

    `to` and `queries` choose tokens as `contrast` does: a function of token ids and tokenizer, such as
    `Within(" Lily")`. Over several queries it is the mean. Texts are strings or token ids. Within `applied`
    it is the attention of the steered model.

    Raises:
        ValueError: no attention in this model, no texts, or one of which no token is chosen.
        TypeError: one string instead of several.
    """
    from tqdm import tqdm

    texts = texts if isinstance(texts, str) else list(texts)
    keys = readings(model, texts, to)
    asked = readings(model, texts, queries)
    # the number of a text stands where its set would
    numbered = [type(text)(text.ids, text.at, i) for i, text in enumerate(keys)]
    found: dict[int, list[Tensor]] = {}
    off = None if progress is None else not progress
    with tqdm(total=len(numbered), desc="attention", unit="text", disable=off) as bar:
        for batch in batches(numbered, batch_size, padded=model.pads and not model.follower.parted):
            tokens, mask = padded(batch)
            for layer, pattern in attention_patterns(model, tokens, mask).items():
                rows = found.setdefault(layer, [torch.empty(0)] * len(numbered))
                for row, text in enumerate(batch):
                    of_queries = pattern[row][:, list(asked[text.label].at)]
                    rows[text.label] = of_queries[..., list(text.at)].sum(-1).mean(-1).double().cpu()
            bar.update(len(batch))
    return {layer: torch.stack(rows) for layer, rows in found.items()}


def _is_pattern(x: Tensor, real: Int[Tensor, "batch pos"]) -> bool:
    """Whether these are probabilities over tokens, (batch head query key), of each token that is none of
    padding: not below 0, 0 for later tokens, and 1 in sum."""
    batch, pos = real.shape
    if x.ndim != 4 or x.shape[0] != batch or x.shape[-2:] != (pos, pos) or not x.is_floating_point():
        return False
    rows = x.float().transpose(1, 2)[real.bool().to(x.device)]
    later = x.triu(1).transpose(1, 2)[real.bool().to(x.device)]
    tolerance = max(1e-4, 4 * torch.finfo(x.dtype).eps)
    sums = (rows.sum(-1) - 1).abs().amax() <= tolerance
    return bool(sums and (rows >= 0).all() and not later.any())


def _only(layer: int, seen: dict[str, Tensor]) -> Tensor:
    """The pattern of a layer, which several modules in each other may hand on."""
    first, *others = seen.values()
    for other in others:
        if other.shape != first.shape or not torch.equal(other, first):
            raise ValueError(f"Layer {layer} has several attentions: {', '.join(map(repr, seen))}.")
    return first


@contextmanager
def _eager(module: nn.Module) -> Iterator[None]:
    """While open, attention is worked out step by step, so that there are probabilities to hand on."""
    configs = {id(c): c for m in module.modules() if (c := getattr(m, "config", None)) is not None}
    before = [
        (config, config._attn_implementation)
        for config in configs.values()
        if getattr(config, "_attn_implementation", None) is not None
    ]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, was in before:
            config._attn_implementation = was
