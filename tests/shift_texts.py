"""Texts of a few words with two labels, and tiny classifiers of them, shared by the tests of SHIFT."""

from __future__ import annotations

import random

import torch
from families import VOCAB, WIDTH, tiny

from circuits.shift.dossier import Dossier
from circuits.shift.evidence import evidence
from circuits.shift.ranking import ranking
from interventions import SparseCoder
from interventions.probed import ProbedModel
from interventions.probing import Probe
from tasks import LabelledSet, LabelledText

LABELS, ATTRIBUTES = ("nurse", "professor"), ("female", "male")


def tokenizer():
    """One token for each of the words w3 to w63, and one that opens every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<unk>", *(f"w{i}" for i in range(3, VOCAB))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>"
    )


def texts(n: int = 24, *, seed: int = 0, confounded: bool = False, attributes=ATTRIBUTES) -> LabelledSet:
    """Texts of several lengths; the label is in which words they hold, and so is the attribute."""
    rng, found = random.Random(seed), []
    for i in range(n):
        label, attribute = i % 2, (i % 2 if confounded else i // 2 % 2)
        words = rng.choices(range(3 + 15 * label, 18 + 15 * label), k=rng.randint(2, 4))
        words += rng.choices(range(33 + 15 * attribute, 48 + 15 * attribute), k=rng.randint(1, 3))
        rng.shuffle(words)
        line = " ".join(f"w{word}" for word in words)
        found.append(LabelledText(line, LABELS[label], attributes[attribute % len(attributes)]))
    return LabelledSet("people", found)


def probe(seed: int = 5, classes: int = 2) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    shape = (WIDTH,) if classes == 2 else (classes, WIDTH)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Probe(weights, torch.randn(shape[:-1], generator=generator, dtype=torch.float64))


def classifier(family: str = "llama", *, at: str = "resid.1", seed: int = 5, classes: int = 2) -> ProbedModel:
    model = tiny(family)
    model.tokenizer = tokenizer()
    return model.probed(probe(seed, classes), at=at)


def coders(*sites: str, n: int = 48) -> dict[str, SparseCoder]:
    return {site: SparseCoder.random(WIDTH, n, seed=i).double() for i, site in enumerate(sites)}


def dossier(n: int = 6, **how) -> Dossier:
    """The evidence on the first features of a ranking."""
    model, held, given = classifier(), coders("resid.1"), texts()
    found = ranking(model, given, held, classes=LABELS, most=n, progress=False)
    return evidence(model, found, given, held, progress=False, **how)
