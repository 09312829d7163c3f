"""How well single features of dictionaries tell two labelled sets of texts apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..binding import Dictionaries, Splice, splices
from ..model import Model
from ..steering.likelihood import prompt_ids
from ..steering.token_choice import Choice, Ids, every, label, last
from .passes import each_text, each_token, readings
from .separated import Separation

WINDOW = 128  # tokens of a long text that share a pass
Texts = Iterable[Any]


@torch.no_grad()
def separation(
    model: Model,
    dictionaries: Dictionaries,
    positives: Texts | Mapping[str, tuple[Texts, Texts]],
    negatives: Texts | None = None,
    *,
    tokens: Choice = last,
    threshold: float = 1e-6,
    density_text: str | Sequence[Any] | None = None,
    max_density: float = 0.02,
    batch_size: int = 16,
    progress: bool | None = None,
) -> Separation:
    """The share of the texts of two sets in which each feature is active, and what follows from it.

    The separation score of a feature is the difference of the two shares ("Do I Know This Entity?", Ferrando
    et al. 2024, arXiv 2411.14257). Texts are strings or token ids, read at `tokens`; of several tokens
    the mean activation counts, and it is active above `threshold`. In place of two sets give several kinds
    of them, `{kind: (positives, negatives)}`: scores are then the least over the kinds, which leaves the
    features that separate in all of them. With `density_text`, a text or several of no particular kind,
    features that are active on more than `max_density` of its tokens are left out of what is listed.

    >>> from interventions.dictionaries import SparseCoder
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=32)
    >>> model = Model.load(GPT2LMHeadModel(config))
    >>> dictionaries = {"resid.0": SparseCoder.random(32, 64)}
    >>> separation(model, dictionaries, [(3, 1), (4, 1)], [(3, 2), (5, 2)], progress=False)
    Separation(1 site, 2 positives and 2 negatives)

    Raises:
        ValueError: an empty set, a text of which no token is chosen, no dictionaries.
        LookupError: a site that the model does not have.
        TypeError: text without a tokenizer, one string instead of several.
    """
    kinds = _kinds(positives, negatives)
    bound = splices(model, dictionaries)
    if not bound:
        raise ValueError("There are no dictionaries, so there are no features to compare.")
    texts = [
        reading
        for k, (name, sides) in enumerate(kinds.items())
        for side, (which, side_texts) in enumerate(zip(("positive", "negative"), sides, strict=True))
        for reading in readings(
            model, side_texts, tokens, label=2 * k + side, name=f"{name} {which} text".strip()
        )
    ]
    tallies = {site.name: _Tally(2 * len(kinds), splice.n_features) for site, splice in bound.items()}

    def consume(splice: Splice, features: Tensor, labels: Tensor) -> None:
        tallies[splice.site.name].add(features, labels, threshold)

    each_text(model, bound, texts, consume, batch_size=batch_size, progress=progress)
    density = None
    if density_text is not None:
        density = densities(
            model, dictionaries, density_text, threshold=threshold, batch_size=batch_size, progress=progress
        )
    return Separation(
        kinds=tuple(kinds),
        counts=torch.tensor([sum(r.label == i for r in texts) for i in range(2 * len(kinds))]).view(-1, 2),
        active={site: tally.active.unflatten(0, (-1, 2)) for site, tally in tallies.items()},
        mean={site: tally.mean.unflatten(0, (-1, 2)) for site, tally in tallies.items()},
        variance={site: tally.variance.unflatten(0, (-1, 2)) for site, tally in tallies.items()},
        density=density,
        max_density=max_density,
        fingerprint=model.fingerprint,
        how={"tokens": label(tokens), "threshold": threshold},
    )


@torch.no_grad()
def densities(
    model: Model,
    dictionaries: Dictionaries,
    text: str | Sequence[Any],
    *,
    threshold: float = 1e-6,
    batch_size: int = 16,
    progress: bool | None = None,
) -> dict[str, Float[Tensor, " feature"]]:
    """The share of the tokens of a text, or of several, on which each feature is active.

    Tokens that open a text do not count; long texts are read in windows of 128 tokens.
    """
    bound = splices(model, dictionaries)
    whole = [prompt_ids(model, one) for one in ([text] if isinstance(text, str) else text)]
    windows = [window for ids in whole for window in _windows(ids)]
    texts = readings(model, windows, every, name="density_text window")
    count = {site.name: torch.zeros(splice.n_features) for site, splice in bound.items()}

    def consume(splice: Splice, features: Tensor, _labels: Tensor) -> None:
        count[splice.site.name] += (features > threshold).sum(0)

    each_token(model, bound, texts, consume, batch_size=batch_size, progress=progress)
    total = sum(len(reading.at) for reading in texts)
    return {site: found / total for site, found in count.items()}


def _windows(ids: Ids) -> list[Ids]:
    """Parts of a text; all but the first without the token that opens it."""
    return [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]


def _kinds(
    positives: Texts | Mapping[str, tuple[Texts, Texts]], negatives: Texts | None
) -> dict[str, tuple[Texts, Texts]]:
    if not isinstance(positives, Mapping):
        if negatives is None:
            raise TypeError("Give positives and negatives, or {kind: (positives, negatives)}.")
        return {"": (positives, negatives)}
    if negatives is not None:
        raise TypeError("positives has both sets of every kind already: leave negatives out.")
    if not positives:
        raise ValueError("There are no kinds of texts to compare.")
    for name, sides in positives.items():
        if isinstance(sides, str) or len(sides) != 2:
            raise TypeError(f"{name!r} is not (positives, negatives).")
    return {str(name): (sides[0], sides[1]) for name, sides in positives.items()}


class _Tally:
    """Numbers, means and squares about them of rows that come in parts, by label."""

    def __init__(self, n_labels: int, n_features: int):
        self.count = torch.zeros(n_labels, 1, dtype=torch.float64)
        self._active, self.mean, self._squares = torch.zeros(3, n_labels, n_features, dtype=torch.float64)

    def add(self, rows: Float[Tensor, "row feature"], labels: Int[Tensor, " row"], threshold: float) -> None:
        for i in labels.unique().tolist():
            part = rows[labels == i]
            n, mean = len(part), part.mean(0)
            total, step = self.count[i] + n, mean - self.mean[i]
            self._active[i] += (part > threshold).sum(0)
            # Chan, Golub and LeVeque (1979): as exact as if all rows were held
            self._squares[i] += ((part - mean) ** 2).sum(0) + step**2 * (self.count[i] * n / total)
            self.mean[i] += step * (n / total)
            self.count[i] = total

    @property
    def active(self) -> Float[Tensor, "label feature"]:
        return self._active / self.count

    @property
    def variance(self) -> Float[Tensor, "label feature"]:
        return self._squares / (self.count - 1).clamp(min=1)
