"""The ways in which a model may write, and which of them its own logits bear out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .observation import arguments, sample, text_config

if TYPE_CHECKING:
    from .model import Model

_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError)


def way_of_writing(model: Model) -> str:
    """`padded`: any rows at once; `equal`: rows of one length at once; `single`: one row at a time;
    `uncached`: rows of one length, every pass over all tokens; `own`: the same, without the module's
    `generate`."""
    if not hasattr(model.module, "generate"):
        return "own"
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.no_grad():
        tokens = sample(model.module, 2, 5)
        full = torch.ones_like(tokens)
        if _follows(model, tokens, full, "equal"):
            half = full.clone()
            half[0, :2] = 0
            return "padded" if _follows(model, tokens, half, "equal") else "equal"
        if _follows(model, tokens[:1], full[:1], "single"):
            return "single"
        return "uncached" if _follows(model, tokens, full, "uncached") else "own"


def lingers(model: Model) -> bool:
    """Whether the module keeps something of its last cached pass, which the next one would go on from."""
    if "use_cache" not in arguments(model.module):
        return False

    def held() -> dict[tuple[int, str], Tensor]:
        named = (
            (i, vars(m) | dict(m.named_buffers(recurse=False))) for i, m in enumerate(model.module.modules())
        )
        return {(i, k): v.clone() for i, values in named for k, v in values.items() if isinstance(v, Tensor)}

    with model.apart(), torch.no_grad():
        before = held()
        try:
            model.module(sample(model.module), use_cache=True)
        except _FAILURES:
            return False
        after = held()
        model.logits(sample(model.module))
    return before.keys() != after.keys() or any(
        x.shape != after[key].shape or not torch.equal(x, after[key]) for key, x in before.items()
    )


def _follows(model: Model, tokens: Tensor, mask: Tensor, way: str) -> bool:
    """Whether the odds of generated tokens are those of passes without cache and padding."""
    # what is left in a module by an earlier text must not matter either
    asked = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True,
             "output_logits": True, "eos_token_id": None}  # fmt: skip
    try:
        with model.apart():
            out: Any = written(model, (tokens, mask), way, asked)
            for row, start in enumerate((tokens.shape[1] - mask.sum(1)).tolist()):
                plain = model.logits(out.sequences[row : row + 1, start:])[0, -4:-1]
                if not model.close(torch.stack([step[row] for step in out.logits]).to(plain), plain):
                    return False
    except _FAILURES:
        return False
    return True


def written(model: Model, prompts: tuple[Tensor, Tensor], way: str, kwargs: dict[str, Any]) -> Any:
    tokens, mask = prompts
    if way == "own":
        return _own(model, tokens, **kwargs)
    if model.lingers:
        with model.apart():
            model.logits(tokens[:1, :1])
    asked: dict[str, Any] = {"attention_mask": mask, **kwargs}
    if way == "uncached":
        asked["use_cache"] = False
    if "generation_config" not in kwargs:
        asked.setdefault("pad_token_id", padding(model, kwargs))
    return model.module.generate(tokens, **asked)  # type: ignore[operator]


def _own(
    model: Model,
    tokens: Tensor,
    *,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    eos_token_id: int | None = None,
    streamer: Any = None,
    **unknown: Any,
) -> Tensor:
    if unknown:
        raise TypeError(
            f"{type(model.module).__name__} has no `generate` of its own, and `{next(iter(unknown))}` is not "
            "known without: max_new_tokens, do_sample, temperature, top_k and eos_token_id are."
        )
    if temperature <= 0:
        raise ValueError(f"The temperature is above 0, not {temperature}.")
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    if streamer is not None:
        streamer.put(tokens.cpu())
    with model.following(tokens.shape[1]):
        for _ in range(max_new_tokens):
            logits = model.logits(tokens, last=1)[:, -1]
            if do_sample:
                scores = logits.float() / temperature
                if top_k:
                    scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -torch.inf)
                new = torch.multinomial(scores.softmax(-1), 1)[:, 0]
            else:
                new = logits.argmax(-1)
            if eos_token_id is not None:
                new = torch.where(ended, eos_token_id, new)
                ended |= new == eos_token_id
            tokens = torch.cat([tokens, new[:, None]], dim=1)
            if streamer is not None:
                streamer.put(new.cpu())
            if eos_token_id is not None and ended.all():
                break
    if streamer is not None:
        streamer.end()
    return tokens


def padding(model: Model, kwargs: dict[str, Any]) -> int:
    config, tokenizer = text_config(model.module), model.tokenizer
    for found in (
        kwargs.get("pad_token_id"),
        getattr(tokenizer, "pad_token_id", None),
        getattr(config, "pad_token_id", None),
        kwargs.get("eos_token_id"),
        getattr(config, "eos_token_id", None),
    ):
        if isinstance(found, list | tuple) and found:
            found = found[0]
        if isinstance(found, int) and found >= 0:
            return found
    return 0
