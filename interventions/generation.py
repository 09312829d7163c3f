"""What a model writes: right with any padding, with and without a cache, whole or as a stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from .observation import sample, text_config

if TYPE_CHECKING:
    from .model import Model

_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError)


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
    groups = _groups(mask, way)
    if len(groups) == 1:
        return _written(model, _turned(tokens, mask), way, kwargs)
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
            out = _written(model, (part[0], part[1].long()), way, kwargs)
        copies = len(out) // len(rows)
        for i, row in enumerate(rows.tolist()):
            pieces[row] = (n, out[i * copies : (i + 1) * copies])
    longest = max(out.shape[1] - n for n, out in pieces.values())
    pad = _pad(model, kwargs)
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
            found[i] = model.tokenizer.decode(row[width:], skip_special_tokens=True)
        bar.update(len(batch))
    bar.close()
    return [found[i] for i in range(len(rows))]


def stream(model: Model, text: str, *, max_new_tokens: int = 40, **kwargs: Any) -> Iterator[str]:
    """What the model writes after a text, piece by piece as it is written.

    Pieces add up to what `complete` gives. The model writes in a thread of its own, which ends when the
    iterator is closed; interventions that are applied stay so for as long as their `with` block lasts, so
    read the stream inside of it.
    """
    tokens = torch.tensor([opened(model, text)])
    pieces: queue.Queue[Any] = queue.Queue()
    listener = _Listener(model, pieces)

    def write() -> None:
        try:
            generate(model, tokens, max_new_tokens=max_new_tokens, streamer=listener, **kwargs)
        except _Stopped:
            pass
        except BaseException as error:  # raised again where the stream is read
            pieces.put(error)
        pieces.put(None)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        listener.stopped = True
        thread.join()


def opened(model: Model, text: str) -> list[int]:
    """Token ids of a text that is to be continued: opened as the tokenizer opens one, and not ended."""
    if model.tokenizer is None:
        raise ValueError("This model has no tokenizer: pass tokens to `generate`.")
    bare = model.tokenizer.encode(text, add_special_tokens=False)
    full = model.tokenizer.encode(text, add_special_tokens=True)
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    if not (ids := full[:start] + bare):
        raise ValueError("There is nothing to go on from: the text is empty, and the tokenizer opens none.")
    return ids


class _Stopped(Exception):
    """Nobody reads the stream any more."""


class _Listener:
    """Takes tokens as they are generated, and hands on the text that they add."""

    def __init__(self, model: Model, pieces: queue.Queue[Any]):
        self.tokenizer, self.pieces, self.stopped = model.tokenizer, pieces, False
        self._ids: list[int] | None = None
        self._said = 0

    def put(self, value: Tensor) -> None:
        if self.stopped:
            raise _Stopped
        if self._ids is None:  # the prompt comes first
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        self._say(self.tokenizer.decode(self._ids, skip_special_tokens=True), whole=False)

    def end(self) -> None:
        self._say(self.tokenizer.decode(self._ids or [], skip_special_tokens=True), whole=True)

    def _say(self, text: str, *, whole: bool) -> None:
        if whole or not text.endswith("�"):  # part of a character
            if text[self._said :]:
                self.pieces.put(text[self._said :])
            self._said = len(text)


# Ways of writing, from the quickest to the slowest; which one a model's logits bear out is tried once.


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


def _follows(model: Model, tokens: Tensor, mask: Tensor, way: str) -> bool:
    """Whether the odds of generated tokens are those of passes without cache and padding."""
    # what is left in a module by an earlier text must not matter either
    asked = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True,
             "output_logits": True, "eos_token_id": None}  # fmt: skip
    try:
        with model.apart():
            out: Any = _written(model, (tokens, mask), way, asked)
            for row, start in enumerate((tokens.shape[1] - mask.sum(1)).tolist()):
                plain = model.logits(out.sequences[row : row + 1, start:])[0, -4:-1]
                if not model.close(torch.stack([step[row] for step in out.logits]).to(plain), plain):
                    return False
    except _FAILURES:
        return False
    return True


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


def _written(model: Model, prompts: tuple[Tensor, Tensor], way: str, kwargs: dict[str, Any]) -> Any:
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
        asked.setdefault("pad_token_id", _pad(model, kwargs))
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


def _pad(model: Model, kwargs: dict[str, Any]) -> int:
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
