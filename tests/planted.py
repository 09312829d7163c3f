"""Texts in which a spurious label is one word, and a dictionary whose features are words."""

from __future__ import annotations

import random

import torch

from circuits import embedded
from interventions import Model, SparseCoder
from interventions.dictionaries.activations import TopK
from tasks import LabelledSet, LabelledText

NOUNS = {"animal": ("dog", "cat", "bird", "horse"), "thing": ("chair", "table", "book", "box")}
WORDS = {"before": "old", "after": "young"}  # of the spurious label
PAIRS = dict(zip(NOUNS, WORDS, strict=True))


def texts(n: int, *, ambiguous: bool, seed: int = 0) -> LabelledSet:
    """So many texts of each group: one noun says the label, and a word that comes three times the spurious
    one. Those of a label are the same but for this word."""
    rng, found = random.Random(seed), []
    for label, nouns in NOUNS.items():
        drawn = [(rng.choice(nouns), rng.choice(("near", "behind", "under", "above"))) for _ in range(n)]
        for spurious, word in WORDS.items():
            if ambiguous and PAIRS[label] != spurious:
                continue
            for noun, place in drawn:
                text = f"The {word} {noun} {place} the {word} wall is {word} ."
                found.append(LabelledText(text, label, spurious))
    return LabelledSet("planted", rng.sample(found, len(found)))


def words(model: Model) -> SparseCoder:
    """A dictionary of embeddings, in which each feature is a token of the vocabulary and nothing is left."""
    table = model.module.get_input_embeddings().weight.detach()
    half = table.square().sum(1).clamp_min(1e-9) / 2  # padding is zero
    return SparseCoder(
        W_enc=table.T, b_enc=-half, W_dec=table / half[:, None], b_dec=torch.zeros(table.shape[1]).to(table),
        activation=TopK(1), site="embed",
    )  # fmt: skip


def token(model: Model, word: str) -> int:
    return model.tokenizer.encode(f"The {word}")[-1]


def double() -> Model:
    """The embedded model in float64."""
    return Model.load(embedded.HERE / "model", dtype=torch.float64)
