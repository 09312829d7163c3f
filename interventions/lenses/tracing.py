"""Reads a prompt through a lens, a site and some positions at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..dictionaries.measures.text import pieces
from ..model import Model
from ..steering.likelihood import text_ids
from .lens import Lens
from .reading import Prompt, Reading, reading
from .statistics import log_probs, log_probs_of, parts, statistics, top
from .trajectory import Trajectory


def trajectory(
    lens: Lens,
    prompt: Prompt,
    *,
    k: int = 5,
    targets: Sequence[int | str] = (),
    positions: slice = slice(None),
    at_once: int | None = None,
) -> Trajectory:
    """What a model would say at every site of a lens after each token of a prompt.

    One pass of the model; then the lens reads some positions of one site at a time, so that the logits held
    are those of the pass and of these. Inside `applied(...)` it is the changed pass that is read, and
    compared with its own output.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from interventions.lenses import LogitLens
    >>> config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)
    >>> found = trajectory(LogitLens(Model.load(GPT2LMHeadModel(config))), [3, 1, 4, 1], targets=[5])
    >>> found.sites, found["kl"].shape, found.top_tokens.shape
    (('embed', 'resid.0', 'output'), torch.Size([3, 4]), torch.Size([3, 4, 5]))
    >>> found.log_prob(5)[-1].exp().shape
    torch.Size([4])

    Args:
        prompt: a text, before which the tokenizer's beginning of text is put, or tokens as they are.
        k: how many of the likeliest tokens are kept.
        targets: tokens, or texts of one token (" is"), whose log-probabilities are kept.
        positions: which are read, such as `slice(-1, None)` for the last alone; by default all.
        at_once: positions that are read at a time; by default as many as keep their logits small.

    Raises:
        TypeError: text for a model without a tokenizer.
        ValueError: no token, no position, or a target of several tokens.
    """
    return of_reading(reading(lens, prompt), k=k, targets=targets, positions=positions, at_once=at_once)


def trajectories(
    lens: Lens,
    prompts: Iterable[Prompt],
    *,
    k: int = 5,
    targets: Sequence[int | str] = (),
    positions: slice = slice(None),
    at_once: int | None = None,
    progress: bool | None = None,
) -> list[Trajectory]:
    """The trajectory of each of several prompts, one after the other, so that nothing is padded."""
    if isinstance(prompts, str):
        raise TypeError("Give a sequence of prompts, not one text.")
    bar = tqdm(list(prompts), desc="prompts", disable=None if progress is None else not progress)
    return [
        trajectory(lens, prompt, k=k, targets=targets, positions=positions, at_once=at_once) for prompt in bar
    ]


@torch.no_grad()
def of_reading(
    read: Reading,
    *,
    k: int = 5,
    targets: Sequence[int | str] = (),
    positions: slice = slice(None),
    at_once: int | None = None,
) -> Trajectory:
    """The trajectory of a pass that was read before."""
    if k < 1:
        raise ValueError(f"k={k}: at least 1 of the likeliest tokens is kept.")
    model, where = read.lens.model, torch.arange(len(read.tokens))[positions]
    if not len(where):
        raise ValueError(f"No token is left of {len(read.tokens)} at {positions}.")
    ids = tuple(dict.fromkeys(token_id(model, target, read.vocab) for target in targets))
    # Of classes none follows.
    nexts = read.tokens[1:] if model.classes is None else torch.full_like(read.tokens[1:], -1)
    following = torch.cat([nexts, read.tokens.new_full((1,), -1)])[where]
    found: dict[str, list[Tensor]] = {}
    for some in parts(len(where), read.vocab, at_once):
        final = log_probs(read.output[where[some]])
        rows: dict[str, list[Tensor]] = {}
        for site in read.sites:
            logits = read.logits(site, where[some])
            for name, x in _numbers(logits, final, following[some], ids, k).items():
                rows.setdefault(name, []).append(x)
        for name, x in rows.items():
            found.setdefault(name, []).append(torch.stack(x))
    whole = {name: torch.cat(x, dim=1) for name, x in found.items()}
    shown = {*whole["top_tokens"].flatten().tolist(), *ids}
    return Trajectory(
        sites=read.sites,
        tokens=read.tokens[where],
        positions=where,
        words=pieces(model.tokenizer, read.tokens.tolist())[positions],
        top_tokens=whole.pop("top_tokens"),
        top_probabilities=whole.pop("top_probabilities"),
        targets=ids,
        target_log_probs=whole.pop("targets"),
        statistics=whole,
        texts={token: _text(model, token) for token in sorted(shown)},
        lens=repr(read.lens),
        fingerprint=model.fingerprint,
    )


def token_id(model: Model, target: int | str, vocab: int) -> int:
    """The token that is meant by a number or by a text; of a classifier, the class.

    Raises:
        TypeError: text for a model without a tokenizer.
        ValueError: a text of another number of tokens than one; a number beyond the vocabulary; what is no
            class of a classifier.
    """
    if model.classes is not None:
        return _class(model.classes, target)
    ids = text_ids(model, target) if isinstance(target, str) else (int(target),)
    if isinstance(target, str) and len(ids) != 1 and target.startswith(" "):
        bare = text_ids(model, target[1:])  # some tokenizers put a space before every text themselves
        ids = bare if len(bare) == 1 and pieces(model.tokenizer, bare)[0] == target else ids
    if len(ids) != 1:
        raise ValueError(f"{target!r} is {len(ids)} tokens; a target is one, often with a space before it.")
    if not 0 <= ids[0] < vocab:
        raise ValueError(f"There is no token {ids[0]}: the vocabulary has {vocab}.")
    return ids[0]


def _class(classes: Sequence[str], target: int | str) -> int:
    if (target not in classes) if isinstance(target, str) else not 0 <= int(target) < len(classes):
        raise ValueError(
            f"{target!r} is none of the model's {len(classes)} classes, which are {', '.join(classes)}."
        )
    return classes.index(target) if isinstance(target, str) else int(target)


def _text(model: Model, token: int) -> str:
    return pieces(model.tokenizer, [token])[0] if model.classes is None else model.classes[token]


def _numbers(
    logits: Tensor, final: Tensor, following: Tensor, targets: Sequence[int], k: int
) -> dict[str, Tensor]:
    """What is kept of the logits of some positions."""
    log_p, device = log_probs(logits), logits.device
    found = statistics(logits, log_p, final.to(device), following.to(device))
    found["top_tokens"], found["top_probabilities"] = top(log_p, k)
    found["targets"] = log_probs_of(log_p, targets)
    return {name: x.cpu() for name, x in found.items()}
