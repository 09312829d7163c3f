"""The model that ships with the library: small, trained on `tasks.grammar`, with dictionaries for its sites.

Its subjects and verbs agree in every construction that the grammar has, also for combinations of words
that it never saw. docs/embedded.md says how it was made and how good it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interventions.dictionaries import SparseCoder
    from interventions.model import Model
    from tasks.task import Task

HERE = Path(__file__).parent
CONSTRUCTIONS = ("simple", "across_pp", "across_rc", "within_rc")


def model() -> Model:
    """The embedded language model: a Llama of 3 layers and width 64, with its tokenizer.

    >>> import torch
    >>> ours = model()
    >>> tokens = torch.tensor([ours.tokenizer.encode("The boy near the cars")])
    >>> is_, are = (ours.tokenizer.encode(f" {verb}")[-1] for verb in ("is", "are"))
    >>> logits = ours.logits(tokens)[0, -1]
    >>> bool(logits[is_] > logits[are] + 5)
    True
    """
    from interventions.model import Model

    return Model.load(HERE / "model")


def dictionaries() -> dict[str, SparseCoder]:
    """A sparse autoencoder for each of the model's sites: `embed`, `attn.i`, `mlp.i` and `resid.i`.

    >>> dictionaries()["resid.1"]
    SparseCoder(SAE 64 -> 256 features, BatchTopK(k=4, ...), at resid.1)
    """
    from interventions.dictionaries import load

    return dict(load(HERE / "dictionaries"))


def task(construction: str = "across_rc", n: int = 100, seed: int = 0) -> Task:
    """Agreement in one of `CONSTRUCTIONS`, which the model masters.

    >>> task("across_pp", n=20)
    Task('agreement_across_pp', 20 pairs, LogitDifference())
    """
    from tasks import TASKS

    if construction not in CONSTRUCTIONS:
        raise ValueError(f"No construction {construction!r}; there are {', '.join(CONSTRUCTIONS)}.")
    return TASKS[f"agreement_{construction}"](n=n, seed=seed)
