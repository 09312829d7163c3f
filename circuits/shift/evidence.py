"""What is to be seen of the features that a classifier uses, gathered in one pass over texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from interventions.binding import Dictionaries, Splice, splices
from interventions.dictionaries.measures import Context, contexts
from interventions.dictionaries.measures.text import pieces
from interventions.dictionaries.measures.unembedding import effects
from interventions.dictionaries.texts import TextLike
from interventions.features.passes import Reading, batches, padded, readings
from interventions.model import Model
from interventions.probed import Classifier, ProbedModel
from interventions.sites import Site
from interventions.steering.token_choice import every
from tasks import LabelledSet

from ..attribution import Method, attribution_patching
from ..portrait import writes_to_stream
from .attributions import attributions
from .dossier import Change, Correlation, Dossier, Evidence
from .peaks import Peaks, correlations
from .ranking import Ranking

_NONE: tuple[Change | None, Change | None] = (None, None)


def evidence(
    model: Model,
    ranking: Ranking,
    texts: LabelledSet,
    dictionaries: Dictionaries,
    *,
    attribute: Classifier | Model | None = None,
    attributes: Sequence[str] | None = None,
    method: Method = attribution_patching,
    other: TextLike | None = None,
    n: int = 12,
    before: int = 24,
    after: int = 8,
    k: int = 10,
    batch_size: int = 16,
    progress: bool | None = None,
) -> Dossier:
    """What a judge sees of each feature of a ranking, on some texts: those that were ranked on, or others.

    One forward pass for all features and sites, and with `attribute` one more, forward and back. Where labels
    of the texts go together, as in those that a biased classifier is trained on, correlations cannot tell
    them apart: give others, if there are any, whose spurious label is known.

    Args:
        model: the classifier of the ranking.
        attribute: a probe of the spurious label, at the site and with the pooling of the classifier, or a
            classifier of its own (`inner.probed(probe, at=site)`).
        attributes: the spurious labels in the order of its classes, by default as `classes` of `ranking`.
        method: how effects on it are worked out; the first order is exact at the site of a linear probe.
        other: more text to show contexts of, whatever dictionaries can be trained on.
        n: as many contexts of each feature, `before` and `after` so many tokens about the peak.
        k: as many tokens whose logits rise and fall most.

    Raises:
        ValueError: a ranking of another model or of other dictionaries; no spurious labels for `attribute`.
        TypeError: a model without a tokenizer.
    """
    ranking.check(model, dictionaries)
    if n < 1 or before < 0 or after < 0 or k < 0:
        raise ValueError(f"n={n}, before={before}, after={after}, k={k}: n is at least 1, the others 0.")
    inner = model.inner if isinstance(model, ProbedModel) else model
    bound, chosen = splices(model, dictionaries), ranking.features
    found = [
        replace(reading, label=i)
        for i, reading in enumerate(readings(model, [one.text for one in texts], every))
    ]
    peaks = {
        site: Peaks(splice, chosen[site.name], len(texts), n, before, after)
        for site, splice in bound.items()
        if site.name in chosen
    }
    _pass(model, peaks, found, batch_size, progress)
    elsewhere = {} if other is None else _elsewhere(inner, dictionaries, other, chosen, n, before, after)
    given = None
    if attribute is not None:
        of_attribute = attribute if isinstance(attribute, Model) else _probed(model, attribute)
        given = attributions(
            of_attribute, texts, dictionaries, chosen,
            method=method, classes=attributes, batch_size=batch_size, progress=progress,
        )  # fmt: skip
    ids = [reading.ids for reading in found]
    seen: dict[tuple[str, int], Evidence] = {}
    candidates = {(c.site, c.feature): c for c in ranking}
    for site, held in peaks.items():
        of_label, of_spurious = _correlations(held.means, texts)
        promoted = _promoted(inner, bound[site], chosen[site.name], k)
        for i, feature in enumerate(chosen[site.name]):
            at = (site.name, feature)
            shown = held.contexts(i, model.tokenizer, ids)
            by = None if given is None else given.effects[at]
            seen[at] = Evidence(
                candidates[at],
                density=held.count[i].item() / held.positions,
                mean=held.sum[i].item() / max(1, int(held.count[i])),
                largest=shown[0].value if shown else 0.0,
                label=of_label[i],
                spurious=None if of_spurious is None else of_spurious[i],
                contexts=shown,
                elsewhere=elsewhere.get(at, ()),
                raised=promoted[i][0],
                lowered=promoted[i][1],
                share=_over(candidates[at].effect, ranking.clean) or 0.0,
                attribution=by,
                attribution_share=None if given is None else _over(by, given.clean),
            )
    return Dossier(tuple(seen[c.site, c.feature] for c in ranking), ranking.about)


@torch.no_grad()
def _pass(
    model: Model,
    peaks: Mapping[Site, Peaks],
    texts: Sequence[Reading],
    batch_size: int,
    progress: bool | None,
) -> None:
    from tqdm import tqdm

    readers: dict[Site, list[Peaks]] = {}
    for held in peaks.values():
        readers.setdefault(held.splice.read, []).append(held)
    off = None if progress is None else not progress
    with tqdm(total=len(texts), desc="evidence", unit="text", disable=off) as bar:
        for batch in batches(texts, batch_size, padded=model.pads and not model.follower.parted):

            def visit(site: Site, x: Tensor, batch: Sequence[Reading] = batch) -> Tensor:
                for held in readers[site]:
                    held.add(batch, x)
                return x

            tokens, mask = padded(batch)
            with model.visiting(readers, visit):
                model.logits(tokens, mask, last=1)
            bar.update(len(batch))


def _probed(model: Model, probe: Classifier) -> Model:
    if not isinstance(model, ProbedModel):
        raise TypeError(
            f"The classifier is no probed model, so it does not say where {probe!r} reads: give "
            "`attribute=model.probed(probe, at=site)`."
        )
    return model.inner.probed(probe, at=model.reads.name, pool=model.pool)


def _correlations(means: Tensor, texts: LabelledSet) -> tuple[list[Correlation], list[Correlation] | None]:
    labels, others = texts.labels, texts.spurious
    of_label = [Correlation(*pair) for pair in zip(*correlations(means, labels, others), strict=True)]
    if len(texts.attributes) < 2:
        return [replace(one, apart={}) for one in of_label], None
    return of_label, [Correlation(*pair) for pair in zip(*correlations(means, others, labels), strict=True)]


def _elsewhere(
    model: Model, dictionaries: Dictionaries, other: TextLike, chosen: Mapping[str, Sequence[int]],
    n: int, before: int, after: int,
) -> dict[tuple[str, int], tuple[Context, ...]]:  # fmt: skip
    held = {str(site): dictionary for site, dictionary in dictionaries.items()}
    found = contexts(model, held, other, chosen, n=n, before=before, after=after)
    return {at: profile.contexts for at, profile in found.items()}


@torch.no_grad()
def _promoted(
    model: Model, splice: Splice, features: Sequence[int], k: int
) -> Sequence[tuple[Change | None, Change | None]]:
    """The tokens that each feature raises and lowers most, where it writes to the stream."""
    if not k or model.classes is not None or not writes_to_stream(model, splice.site.name):
        return [_NONE] * len(features)
    rows = splice.decoder_rows(torch.tensor(features, device=splice.device)).to(model.dtype)
    try:
        change = effects(model, rows).float().cpu()
    except ValueError:  # a model without an unembedding of its own
        return [_NONE] * len(features)
    k = min(k, change.shape[-1])
    return [(_named(model, row.topk(k)), _named(model, row.topk(k, largest=False))) for row in change]


def _named(model: Model, found: tuple[Tensor, Tensor]) -> Change:
    values, tokens = found
    return tuple(
        (pieces(model.tokenizer, [token])[0], value)
        for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
    )


def _over(value: float | None, whole: float) -> float | None:
    return None if value is None or not whole else value / whole
