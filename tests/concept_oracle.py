"""SCR and TPP the slow way, as SAEBench works them out: for every number of features everything is encoded,
set to zero, decoded and pooled again.

Its defects are mended: padding is masked where features are taken away too, what a probe is tested on is
drawn once, and nothing is chosen on the test texts. Golden numbers of SAEBench itself would take its models
and data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.concepts import perturbation, removal
from interventions.model import Model


@dataclass(frozen=True, eq=False)
class Padded:
    """What a site holds at all tokens of texts, zeros where a text is over."""

    x: Tensor  # (text pos d_model)
    mask: Tensor  # (text pos)

    def means(self, x: Tensor) -> Tensor:
        weight = self.mask.double() / self.mask.double().sum(1, keepdim=True)
        return torch.einsum("tp,tpd->td", weight, x.double())

    def batches(self, size: int = 64) -> Iterator[Padded]:
        for x, mask in zip(self.x.split(size), self.mask.split(size), strict=True):
            yield Padded(x, mask)


def padded(model: Model, site: str, texts: Sequence[Sequence[int]]) -> Padded:
    """Every text read by itself."""
    longest = max(map(len, texts))
    x = torch.zeros(len(texts), longest, model.site(site).width, dtype=model.dtype)
    mask = torch.zeros(len(texts), longest)
    for i, ids in enumerate(texts):
        x[i, : len(ids)] = model.read(torch.tensor([list(ids)]), [site])[model.site(site)][0]
        mask[i, : len(ids)] = 1
    return Padded(x, mask)


@torch.no_grad()
def encoded_means(dictionary: Any, at: Padded) -> Tensor:
    return torch.cat([part.means(dictionary.encode(part.x)) for part in at.batches()])


@torch.no_grad()
def ablated(dictionary: Any, at: Padded, features: Tensor) -> Tensor:
    """The mean over the tokens of each text with features at zero at all of them, the error kept."""
    found = []
    for part in at.batches():
        acts = dictionary.encode(part.x)
        error = part.x - dictionary.decode(acts)
        acts = acts.clone()
        acts[..., features] = 0
        found.append(part.means(dictionary.decode(acts) + error))
    return torch.cat(found)


def best(effects: Tensor, n: int) -> Tensor:
    order = sorted(range(len(effects)), key=lambda i: (-effects[i].item(), i))
    return torch.tensor([i for i in order[:n] if effects[i] > 0], dtype=torch.long)


def rows(dictionary: Any, n: int) -> Tensor:
    one = torch.eye(n)
    return (dictionary.decode(one) - dictionary.decode(torch.zeros_like(one))).double()


def accuracy(probe: Any, means: Tensor, labels: Tensor) -> float:
    return ((probe.logits(means) > 0) == labels).double().mean().item()


def differences(means: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    return means[texts[labels]].mean(0) - means[texts[~labels]].mean(0)


def tpp(
    dictionary: Any, train: Padded, train_labels: Sequence[str], test: Padded, test_labels: Sequence[str], *,
    sizes: Sequence[int], recipe: Any, seed: int, logits: dict[Any, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The clean accuracies (class), and those after ablations (size ablated class)."""
    names = list(dict.fromkeys(train_labels))
    n, generator = len(names), torch.Generator().manual_seed(seed)
    members = [
        [torch.tensor([i for i, x in enumerate(labels) if x == name]) for name in names]
        for labels in (train_labels, test_labels)
    ]
    seen, unseen = ([perturbation._against(side, c, generator) for c in range(n)] for side in members)
    acts, means = train.means(train.x), encoded_means(dictionary, train)
    probes = [recipe.fit(acts[texts], labels) for texts, labels in seen]
    written = rows(dictionary, means.shape[1])
    chosen = []
    for probe, (texts, labels) in zip(probes, seen, strict=True):
        apart = differences(means, texts, labels).clamp(min=0)
        chosen.append(best(apart * (written @ probe.direction.double()), max(sizes)))
    whole = test.means(test.x)
    clean = torch.tensor([accuracy(p, whole[t], y) for p, (t, y) in zip(probes, unseen, strict=True)])
    after = torch.zeros(len(sizes), n, n)
    for i, size in enumerate(sizes):
        for a, features in enumerate(chosen):
            for c, (probe, (texts, labels)) in enumerate(zip(probes, unseen, strict=True)):
                some = Padded(test.x[texts], test.mask[texts])
                gone = ablated(dictionary, some, features[:size])
                after[i, a, c] = accuracy(probe, gone, labels)
                if logits is not None:
                    logits[i, a, c] = probe.logits(gone)
    return clean, after


def scr(
    dictionary: Any, train: Padded, train_labels: Sequence[tuple[str, str]], test: Padded,
    test_labels: Sequence[tuple[str, str]], *, pairs: Any, sizes: Sequence[int], recipe: Any, seed: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The bases and ceilings (direction), and the accuracies after ablations (direction size)."""
    generator = torch.Generator().manual_seed(seed)
    here, there = (
        [[torch.tensor([i for i, p in enumerate(y) if p == (a, b)]) for _, b in pairs] for a, _ in pairs]
        for y in (train_labels, test_labels)
    )
    here, there = removal._shuffled(here, generator), removal._shuffled(there, generator)
    seen, unseen = removal._quadrants(here), removal._quadrants(there)
    acts, means = train.means(train.x), encoded_means(dictionary, train)
    written, whole = rows(dictionary, means.shape[1]), test.means(test.x)

    def fitted(texts: Tensor, labels: Tensor) -> Any:
        return recipe.fit(acts[texts], labels)

    spurious = fitted(*removal._spurious(here, 2 * seen.shape[-1]))
    own = [fitted(*removal._balanced(seen, side)) for side in range(2)]
    base, ceiling, after = torch.zeros(2), torch.zeros(2), torch.zeros(2, len(sizes))
    for side in range(2):
        texts, labels = removal._balanced(unseen, side)
        base[side] = accuracy(spurious, whole[texts], labels)
        ceiling[side] = accuracy(own[side], whole[texts], labels)
        apart = differences(means, *removal._balanced(seen, 1 - side))
        features = best((apart * (written @ own[1 - side].direction.double())).abs(), max(sizes))
        for i, size in enumerate(sizes):
            gone = ablated(dictionary, Padded(test.x[texts], test.mask[texts]), features[:size])
            after[side, i] = accuracy(spurious, gone, labels)
    return base, ceiling, after
