"""What SHIFT is held against: the baselines of the paper and of its critics.

Each is a function of a trial that gives `Scores`, whose `needs` say what the method has to know. Those that
know the spurious label are fitted on `trial.known`, texts of every pair of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.binding import Dictionaries
from interventions.concepts.ablation import Features, active_features
from interventions.probing import Eraser, probe_activations
from interventions.steering.likelihood import prompt_ids
from interventions.steering.token_choice import every
from tasks import LabelledSet

from .scores import Scores
from .skylines import SPURIOUS, counted, key
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


def concept_bottleneck(trial: Trial, words: Sequence[str]) -> Scores:
    """A probe that reads only how alike a text's activations are to those of words that matter.

    As in the paper: the words' activations at their last token, centred, and the cosines with them (Yan et
    al. 2023, arXiv 2310.03182), on ambiguous texts. The words carry a leading space where they would in text.

    Raises:
        ValueError: fewer than two different words.
    """
    check_words(trial, words)
    vectors = probe_activations(trial.reader, list(words), [trial.at], progress=False)[trial.at].double()
    vectors = vectors - vectors.mean(0)
    train, test = (_cosines(trial.acts(texts), vectors) for texts in (trial.train, trial.test))
    probe = trial.fit(trial.train, train)
    return trial.scores("concept bottleneck", probe.logits(test), needs=f"{len(words)} words of the labels")


def random_features(
    trial: Trial, dictionaries: Dictionaries, features: Features, *, draws: int = 5
) -> Scores:
    """The biased probe without as many features of the same sites, drawn from those active on the training
    texts, or without all of these where there are fewer: the mean over draws."""
    every_draw = _draws(trial, dictionaries, features, draws)
    logits = [trial.probe.logits(trial.ablated(trial.test, dictionaries, drawn)) for drawn in every_draw]
    return trial.scores("random features", logits, ablated=counted(every_draw[0]))


def random_features_retrained(
    trial: Trial, dictionaries: Dictionaries, features: Features, *, draws: int = 5
) -> Scores:
    """The same draws with a probe fitted again to ambiguous texts without them."""
    every_draw = _draws(trial, dictionaries, features, draws)
    logits = [trial.refitted(dictionaries, drawn) for drawn in every_draw]
    return trial.scores("random features, retrained", logits, ablated=counted(every_draw[0]))


def words_deleted(trial: Trial, delete: Callable[[Sequence[str]], Sequence[str]]) -> Scores:
    """A probe of ambiguous texts from which words were deleted, tested on such texts: what critics of the
    task found to do as well (Hua 2025). For instance `tasks.biographies.without_gendered_words`.

    Raises:
        ValueError: a text of which nothing is left.
    """
    train, test = deleted(trial, delete)
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


def check_words(trial: Trial, words: Sequence[str]) -> None:
    """Raises ValueError for words that no concept bottleneck can be made of."""
    if len(set(words)) < 2:
        raise ValueError(f"A concept bottleneck takes at least two different words, not {list(words)!r}.")
    if unknown := [word for word in words if not is_read(trial, word)]:
        raise ValueError(f"To the model {unknown[0]!r} has no token that counts: give words that it knows.")


def deleted(
    trial: Trial, delete: Callable[[Sequence[str]], Sequence[str]]
) -> tuple[LabelledSet, LabelledSet]:
    """The texts to train and to test on without words. Raises ValueError where of one nothing is left."""
    return _deleted(trial, trial.train, delete), _deleted(trial, trial.test, delete)


def is_read(trial: Trial, word: str) -> bool:
    """Whether a word has tokens that count."""
    return bool(every(prompt_ids(trial.model, word), trial.model.tokenizer))


# --- parts --------------------------------------------------------------------------------------------------


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
    some = {str(site): d for site, d in dictionaries.items() if str(site) in wanted}

    def made() -> dict[str, Int[Tensor, " n"]]:
        return active_features(
            trial.reader, some, [one.text for one in trial.train],
            batch_size=trial.batch_size, progress=trial.progress,
        )  # fmt: skip

    active = trial.kept("active", key(some), made, some)
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
