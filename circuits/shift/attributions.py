"""What features do for a classifier of the spurious attribute."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interventions.binding import Dictionaries
from interventions.model import Model
from tasks import LabelledSet

from ..attribution import Method
from ..discovery import prompts
from .asking import asked
from .ranking import of_text


@dataclass(frozen=True)
class Attributions:
    """The effect of each (site, feature), and what the classifier gives a text's attribute less the others,
    both in the mean over groups of texts, which count alike."""

    effects: Mapping[tuple[str, int], float]
    clean: float


def attributions(
    model: Model,
    texts: LabelledSet,
    dictionaries: Dictionaries,
    features: Mapping[str, Sequence[int]],
    *,
    method: Method,
    classes: Sequence[str] | None = None,
    batch_size: int = 16,
    progress: bool | None = None,
) -> Attributions:
    """The effects of features on a classifier of the spurious label, as `ranking` gives those on one of the
    label, but every group of texts (label, spurious label) counts alike, whatever their numbers.

    At the site of a linear probe of pooled means and two attributes this is half the difference between the
    feature's means over both, times what it adds to the logit: up to that half, the attribution of SCR and
    TPP (Karvonen et al. 2024).

    Raises:
        ValueError: texts without a spurious label, or with one only.
    """
    from tqdm import tqdm

    if "" in texts.attributes or len(texts.attributes) < 2:
        raise ValueError(
            "A probe of the spurious attribute is asked about texts with spurious labels of two values or "
            f"more; these have {', '.join(map(repr, texts.attributes))}."
        )
    turned = replace(texts, texts=[replace(one, label=one.spurious, spurious=one.label) for one in texts])
    task = asked(model, turned, classes)
    counted: Counter[str] = Counter()
    clean: dict[str, float] = defaultdict(float)
    sums: dict[tuple[str, str], Tensor] = {}
    off = None if progress is None else not progress
    for batch in tqdm(prompts(model, task, batch_size), desc="attribute", unit="batch", disable=off):
        found = of_text(method(model, batch, task.metric, dictionaries), model, batch).to("cpu")
        rows = {case: torch.tensor([one == case for one in batch.cases]) for case in set(batch.cases)}
        for case, mask in rows.items():
            counted[case] += int(mask.sum())
            clean[case] += found.clean[mask].double().sum().item()
        for site, chosen in features.items():
            nodes, index = found[site], torch.tensor(chosen)
            n_pos = nodes.error_effect.shape[1]
            for case, mask in rows.items():
                effect = torch.zeros(nodes.n_features, dtype=torch.float64)
                here = mask[nodes.token // n_pos]
                effect.index_add_(0, nodes.feature[here], -nodes.effect[here].double())
                sums[case, site] = sums.get((case, site), 0) + effect[index]
    n = len(counted)
    effects = {}
    for site, chosen in features.items():
        mean = torch.stack([sums[case, site] / counted[case] for case in counted]).mean(0)
        effects |= {(site, feature): mean[i].item() for i, feature in enumerate(chosen)}
    return Attributions(effects, sum(clean[case] / counted[case] for case in counted) / n)
