"""Where in a text features are most active."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...acts import Dictionary
from ...model import Model
from ..coders import SparseCoder
from ..texts import TextLike
from .prediction import Prediction, encoded, predictions
from .text import pieces, token_rows


@dataclass(frozen=True)
class Context:
    """A stretch of one row of text about the place where a feature is most active in that row.

    `tokens` are what each token adds to the text, or its number where the model has no tokenizer; `values`
    are the feature's at each; `at` is the place of the peak among them, `pos` its place in the row.
    """

    row: int
    pos: int
    at: int
    tokens: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """The feature's value at the peak."""
        return self.values[self.at]

    def __str__(self) -> str:
        words = [token.replace("\n", "⏎") for token in self.tokens]
        words[self.at] = f"[{words[self.at]}]"
        return "".join(words)


@dataclass(frozen=True)
class Profile:
    """When a feature is active: contexts by descending peak, each from another row of the text.

    `density` is the share of positions at which it is active, `mean` its mean value there, `largest` its
    value at the highest peak; of signed features, peaks are those of their magnitude.
    """

    site: str
    feature: int
    density: float
    mean: float
    largest: float
    contexts: tuple[Context, ...]

    def __str__(self) -> str:
        head = f"{self.site}/{self.feature}: active at {self.density:.2%} of positions, mean {self.mean:.3g}"
        return "\n".join([head, *(f"  {c.value:7.3g}  {c}" for c in self.contexts)])


@torch.no_grad()
def contexts(
    model: Model,
    dictionaries: SparseCoder | Mapping[str, Dictionary],
    text: TextLike,
    features: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    *,
    n: int = 10,
    before: int = 16,
    after: int = 3,
    ignore: Collection[int] | None = None,
    batch_size: int = 16,
) -> dict[tuple[str, int], Profile]:
    """The `n` contexts in which each feature is most active, keyed by (site, feature).

    One pass over the text, `batch_size` rows at a time, whatever the number of features and sites. Of each
    row only the highest peak counts, the first of equal ones. Text is whatever can be trained on.
    Positions of the tokens in `ignore` are no peaks, and count neither for the density nor for the means;
    by default those are the special ones, where text is not given as tokens.

    Args:
        features: those of each site; a sequence, of the only dictionary; None for all.
        before: tokens shown before the peak, and `after` it.

    Raises:
        LookupError: a feature or a site that there is not.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = Model.load(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)))
    >>> sae = SparseCoder.random(32, 64, site="mlp.0")
    >>> found = contexts(model, sae, torch.arange(60).view(6, 10), [7], n=2)
    >>> [len(context.tokens) > 3 for context in found["mlp.0", 7].contexts]
    [True, True]
    """
    tokens, ignore = token_rows(model, text, ignore=ignore)
    bound = {p.site.name: p for p in predictions(model, dictionaries)}
    chosen = _chosen(model, bound, features)
    peaks = {name: _Peaks(bound[name], index, n, before, after) for name, index in chosen.items()}
    ignored = torch.tensor(sorted(ignore), dtype=torch.long, device=tokens.device)
    counted = torch.isin(tokens, ignored, invert=True)
    reads = sorted({p.prediction.read for p in peaks.values()})
    for first in range(0, len(tokens), batch_size):
        rows = slice(first, first + batch_size)
        acts = model.read(tokens[rows], reads)
        for found in peaks.values():
            found.add(acts[found.prediction.read], counted[rows], first)
    return {
        (name, profile.feature): profile
        for name, found in peaks.items()
        for profile in found.profiles(model.tokenizer, tokens)
    }


def _chosen(
    model: Model,
    bound: Mapping[str, Prediction],
    features: Mapping[str, Sequence[int]] | Sequence[int] | None,
) -> dict[str, Tensor]:
    if features is not None and not isinstance(features, Mapping):
        if len(bound) != 1:
            raise LookupError(f"There are {len(bound)} dictionaries: pass features as {{site: features}}.")
        features = {next(iter(bound)): features}
    chosen = {}
    for name in bound if features is None else features:
        if str(name) not in bound:
            raise LookupError(f"No dictionary at {name!r}; there is one at {', '.join(bound)}.")
        p = bound[str(name)]
        row = torch.zeros(1, p.read.width, device=model.device, dtype=model.dtype)
        width = p.dictionary.encode(row).shape[-1]
        index = torch.arange(width) if features is None else torch.as_tensor(features[name], dtype=torch.long)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < width:
            wrong = next(i for i in index.tolist() if not 0 <= i < width)
            raise LookupError(f"No feature {wrong} at {name}: there are {width}, 0 to {width - 1}.")
        chosen[str(name)] = index
    return chosen


class _Peaks:
    """The highest peaks of some features so far, with the values about them."""

    def __init__(self, prediction: Prediction, features: Int[Tensor, " n"], n: int, before: int, after: int):
        self.prediction, self.features, self.n = prediction, features, n
        self.before, self.after = before, after
        self.positions = 0
        self._count = self._sum = torch.zeros(len(features), dtype=torch.float64)
        self._best = torch.empty(0, len(features))  # (peak feature), descending; where, and the values there
        self._where = torch.empty(0, len(features), 2, dtype=torch.long)
        self._window = torch.empty(0, len(features), before + 1 + after)

    def add(self, x: Float[Tensor, "row pos d_in"], counted: Tensor, first: int) -> None:
        """Some more rows of text, whose numbers start at `first`."""
        flat = x.flatten(0, 1)
        at = self.features.to(x.device)
        acts = torch.cat([part[:, at] for _, part in encoded(self.prediction.dictionary, flat)])
        acts = acts.unflatten(0, x.shape[:2]).float()
        keep = counted.to(x.device)[..., None]
        real = acts.where(keep, 0.0)
        self.positions += int(counted.sum())
        self._count = self._count + (real != 0).sum((0, 1)).cpu()
        self._sum = self._sum + real.double().sum((0, 1)).cpu()
        peak, pos = real.abs().where(keep, -torch.inf).max(1)  # (row feature); some features are signed
        padded = torch.nn.functional.pad(acts, (0, 0, self.before, self.after), value=torch.nan)
        span = pos[:, None] + torch.arange(self.before + 1 + self.after, device=x.device)[None, :, None]
        window = padded.gather(1, span).transpose(1, 2)
        row = first + torch.arange(len(x), device=x.device)[:, None].expand_as(pos)
        best = torch.cat([self._best.to(peak), peak])
        # earlier rows first where peaks are equal, as in texts that open alike
        order = best.sort(dim=0, descending=True, stable=True).indices[: self.n]
        self._best = best.gather(0, order)
        self._where = _taken(torch.cat([self._where.to(pos), torch.stack([row, pos], -1)]), order)
        self._window = _taken(torch.cat([self._window.to(window), window]), order)

    def profiles(self, tokenizer: Any, tokens: Int[Tensor, "row pos"]) -> list[Profile]:
        """The profile of each feature."""
        found = []
        best, where, window = self._best.cpu(), self._where.cpu(), self._window.cpu()
        words: dict[int, tuple[str, ...]] = {}
        for i, feature in enumerate(self.features.tolist()):
            shown = []
            for value, (row, pos), values in zip(
                best[:, i].tolist(), where[:, i].tolist(), window[:, i], strict=True
            ):
                if value <= 0:
                    continue
                first = max(0, pos - self.before)
                if row not in words:
                    words[row] = pieces(tokenizer, tokens[row].tolist())
                there = words[row][first : pos + self.after + 1]
                values = values[~values.isnan()]
                shown.append(Context(row, pos, pos - first, there, tuple(values.tolist())))
            count = self._count[i].item()
            found.append(
                Profile(
                    site=self.prediction.site.name,
                    feature=feature,
                    density=count / max(1, self.positions),
                    mean=self._sum[i].item() / max(1.0, count),
                    largest=shown[0].value if shown else 0.0,
                    contexts=tuple(shown),
                )
            )
        return found


def _taken(values: Tensor, order: Int[Tensor, "peak feature"]) -> Tensor:
    return values.gather(0, order[..., None].expand(*order.shape, values.shape[-1]))
