"""What SHIFT is held against: the baselines of the paper and of its critics.

Each is a function of a trial that gives `Scores`, whose `needs` say what the method has to know. Those that
know the spurious label are fitted on `trial.known`, texts of every pair of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.acts import Acts, Identity
from interventions.binding import Dictionaries
from interventions.concepts.ablation import Features, active_features
from interventions.edits import Ablate
from interventions.probing import Eraser, probe_activations
from interventions.steering.token_choice import every
from tasks import LabelledSet

from .ranking import ranking
from .scores import Scores
from .trial import Trial

# The words of Marks et al. 2024 for their two professions.
CONCEPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "professor": (
            " professor", " academia", " research", " university", " tenure", " faculty", " dissertation",
            " sabbatical", " publication", " grant",
        ),
        "nurse": (
            " nurse", " healthcare", " hospital", " patient", " medical", " clinic", " triage",
            " medication", " emergency", " surgery",
        ),
    }
)  # fmt: skip
BALANCED = "texts of every pair"
SPURIOUS = "spurious labels, texts of every pair"


def biased(trial: Trial) -> Scores:
    """The probe of ambiguous texts, as it is."""
    return trial.scores("biased probe", trial.probe.logits(trial.acts(trial.test)))


def oracle(trial: Trial) -> Scores:
    """A probe of the labels of texts in which the spurious one says nothing of them.

    Raises:
        ValueError: a trial without `known`.
    """
    probe = trial.fit(trial.required("The oracle"))
    return trial.scores("oracle", probe.logits(trial.acts(trial.test)), needs=BALANCED)


def feature_skyline(
    trial: Trial, dictionaries: Dictionaries, n: int, *, texts: int | None = 100, method: str = ""
) -> Scores:
    """The biased probe without the `n` features that do most for its telling the spurious label.

    As in the paper: effects on the biased probe, the spurious label taken for the label, on at most so many
    texts of `known`. Those that do nothing for it are left in, so that there may be fewer.

    Raises:
        ValueError: a trial without `known`.
    """
    features = spurious_features(trial, dictionaries, n, texts=texts)
    logits = trial.probe.logits(trial.ablated(trial.test, dictionaries, features))
    return trial.scores(method or "feature skyline", logits, needs=SPURIOUS, ablated=counted(features))


def neuron_skyline(
    trial: Trial, sites: Sequence[str], n: int, *, texts: int | None = 100, method: str = ""
) -> Scores:
    """The biased probe with the `n` neurons at their means that do most for its telling the spurious label.

    Neurons are the coordinates of what the sites hold. Chosen as features are by `feature_skyline`; the means
    are over texts of `known`, each text counting once. (The paper's are over the tokens of a batch, padding
    among them.)

    Raises:
        ValueError: a trial without `known`.
    """
    neurons = {site: Identity() for site in sites}
    chosen = spurious_features(trial, neurons, n, texts=texts)
    edits = [mean_ablation(trial, chosen)] if chosen else []
    logits = trial.probe.logits(trial.changed(trial.test, edits))
    return trial.scores(method or "neuron skyline", logits, needs=SPURIOUS, ablated=counted(chosen))


def concept_bottleneck(trial: Trial, words: Sequence[str]) -> Scores:
    """A probe that reads only how alike a text's activations are to those of words that matter.

    As in the paper: the words' activations at their last token, centred, and the cosines with them (Yan et
    al. 2023, arXiv 2310.03182), on ambiguous texts. The words carry a leading space where they would in text.

    Raises:
        ValueError: fewer than two different words.
    """
    if len(set(words)) < 2:
        raise ValueError(f"A concept bottleneck takes at least two different words, not {list(words)!r}.")
    vectors = probe_activations(trial.reader, list(words), [trial.at], progress=False)[trial.at].double()
    vectors = vectors - vectors.mean(0)
    train, test = (_cosines(trial.acts(texts), vectors) for texts in (trial.train, trial.test))
    probe = trial.fit(trial.train, train)
    return trial.scores("concept bottleneck", probe.logits(test), needs=f"{len(words)} words of the labels")


def random_features(
    trial: Trial, dictionaries: Dictionaries, features: Features, *, draws: int = 5
) -> Scores:
    """The biased probe without as many features of the same sites, drawn from those active on the training
    texts: the mean over draws."""
    logits = [
        trial.probe.logits(trial.ablated(trial.test, dictionaries, drawn))
        for drawn in _draws(trial, dictionaries, features, draws)
    ]
    return trial.scores("random features", logits, ablated=counted(features))


def random_features_retrained(
    trial: Trial, dictionaries: Dictionaries, features: Features, *, draws: int = 5
) -> Scores:
    """The same draws with a probe fitted again to ambiguous texts without them."""
    logits = []
    for drawn in _draws(trial, dictionaries, features, draws):
        train, test = (trial.ablated(texts, dictionaries, drawn) for texts in (trial.train, trial.test))
        logits.append(trial.fit(trial.train, train).logits(test))
    return trial.scores("random features, retrained", logits, ablated=counted(features))


def words_deleted(trial: Trial, delete: Callable[[Sequence[str]], Sequence[str]]) -> Scores:
    """A probe of ambiguous texts from which words were deleted, tested on such texts: what critics of the
    task found to do as well (Hua 2025). For instance `tasks.biographies.without_gendered_words`.

    Raises:
        ValueError: a text of which nothing is left.
    """
    train, test = (_deleted(trial, texts, delete) for texts in (trial.train, trial.test))
    probe = trial.fit(train)
    return trial.scores("words deleted", probe.logits(trial.acts(test)), needs="words of the spurious labels")


def erased(trial: Trial) -> Scores:
    """The biased probe where LEACE (Belrose et al. 2023) has erased the spurious label from what it reads.

    The eraser is fitted on `known`: on ambiguous texts it would erase the label with it.

    Raises:
        ValueError: a trial without `known`.
    """
    return trial.scores("LEACE", trial.probe.logits(_eraser(trial)(trial.acts(trial.test))), needs=SPURIOUS)


def erased_retrained(trial: Trial) -> Scores:
    """A probe fitted again to ambiguous texts after the same erasure.

    Raises:
        ValueError: a trial without `known`.
    """
    erase = _eraser(trial)
    probe = trial.fit(trial.train, erase(trial.acts(trial.train)))
    logits = probe.logits(erase(trial.acts(trial.test)))
    return trial.scores("LEACE, retrained", logits, needs=SPURIOUS)


# --- parts --------------------------------------------------------------------------------------------------


def spurious_features(
    trial: Trial, dictionaries: Dictionaries, n: int, *, texts: int | None = 100
) -> dict[str, list[int]]:
    """The `n` features that do most for the biased probe's telling the spurious label; by site.

    Raises:
        ValueError: a trial without `known`.
    """
    known = trial.required("A skyline")
    if n < 1:
        return {}
    some = known if texts is None else _some(known, texts)
    found = ranking(
        trial.probed, trial.by_spurious(some), dictionaries, classes=trial.classes, most=10**9,
        batch_size=trial.batch_size, progress=trial.progress,
    )  # fmt: skip
    helpful = [one for one in found if one.effect > 0][:n]
    return {
        site: sorted(one.feature for one in helpful if one.site == site)
        for site in dict.fromkeys(one.site for one in helpful)
    }


def mean_ablation(trial: Trial, neurons: Features) -> Ablate:
    """Holds neurons at their mean over `known`."""
    known = trial.required("A mean ablation")
    texts = [one.text for one in known]
    found = probe_activations(
        trial.reader, texts, list(neurons), tokens=every, batch_size=trial.batch_size, progress=trial.progress
    )
    means = {}
    for site in neurons:
        mean = found[site].double().mean(0).to(trial.model.dtype)[None, None]
        means[site] = Acts(mean, torch.zeros_like(mean))
    return Ablate({site: list(some) for site, some in neurons.items()}, to=means)


def counted(features: Features) -> dict[str, int]:
    """How many features there are at each site that has some."""
    return {site: len(set(some)) for site, some in features.items() if len(some)}


def _some(texts: LabelledSet, most: int) -> LabelledSet:
    """At most so many, as many of every pair of labels."""
    each = max(1, most // len(texts.groups))
    return texts if min(texts.groups.values()) <= each else texts.balanced(each)


def _cosines(
    acts: Float[Tensor, "text d_model"], vectors: Float[Tensor, "word d_model"]
) -> Float[Tensor, "text word"]:
    return torch.nn.functional.cosine_similarity(acts[:, None], vectors, dim=-1)


def _draws(
    trial: Trial, dictionaries: Dictionaries, features: Features, draws: int
) -> list[dict[str, list[int]]]:
    if draws < 1:
        raise ValueError(f"draws={draws}: at least one.")
    wanted = counted(features)
    if not wanted:
        return [{}] * draws
    key = ("active", tuple(wanted), tuple(id(d) for d in dictionaries.values()))
    if key not in trial._held:
        some = {str(site): d for site, d in dictionaries.items() if str(site) in wanted}
        trial._held[key] = dictionaries, active_features(
            trial.reader, some, [one.text for one in trial.train],
            batch_size=trial.batch_size, progress=trial.progress,
        )  # fmt: skip
    active = trial._held[key][1]
    generator = torch.Generator().manual_seed(trial.seed)
    return [
        {
            site: active[site][torch.randperm(len(active[site]), generator=generator)[:n]].tolist()
            for site, n in wanted.items()
        }
        for _ in range(draws)
    ]


def _deleted(
    trial: Trial, texts: LabelledSet, delete: Callable[[Sequence[str]], Sequence[str]]
) -> LabelledSet:
    left = list(delete([one.text for one in texts]))
    if len(left) != len(texts):
        raise ValueError(f"Of {len(texts)} texts, deleting words left {len(left)}.")
    for one, text in zip(texts, left, strict=True):
        if not text.strip():
            raise ValueError(f"Nothing is left of {one.text[:60]!r} when words are deleted.")
    return trial.with_texts(texts, left)


def _eraser(trial: Trial) -> Eraser:
    known = trial.required("LEACE")
    concept = torch.tensor([known.attributes.index(one.spurious) for one in known])
    return Eraser.fit(trial.acts(known), concept)
