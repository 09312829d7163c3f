"""The models of docs/shift.md, with dictionaries trained on biographies of which nothing is told."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from knowledge import Recurrent
from recorded import recorded
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from circuits.shift.baselines import CONCEPTS
from interventions import Model
from interventions.acts import Dictionary
from interventions.dictionaries import load, recipes, save, train
from tasks.biographies import biographies, without_gendered_words
from tasks.labelled import LabelledSet

SPECIALS = ("<pad>", "<bos>", "<unk>")
PRONOUN = {"male": "He", "female": "She"}
# For a model that knows no word of the paper's: words of the hints to train on.
WORDS = ("professor", "books", "desk", "papers", "ideas", "board", "times",
         "nurse", "kind", "bed", "help", "shoes", "hurts", "late")  # fmt: skip


@dataclass(frozen=True)
class Pools:
    """The texts that seeds draw theirs from; `unlabelled` ones are for dictionaries alone."""

    train: LabelledSet
    known: LabelledSet
    test: LabelledSet
    unlabelled: Sequence[str]

    def drawn(self, seed: int, share: float = 0.75) -> tuple[LabelledSet, LabelledSet, LabelledSet]:
        """That share of each, in the same proportions."""
        train, known, test = (pool.split(share, seed)[0] for pool in (self.train, self.known, self.test))
        return train, known, test


def pools(
    n: int = 400, *, unlabelled: int = 1200, hints: int = 2, gendered: int = 1, seed: int = 100
) -> Pools:
    """Ambiguous texts to train on, others of every pair with a known gender, and those of unseen wording."""
    draw = partial(biographies, hints=hints, gendered=gendered)
    halves = [draw(unlabelled // 2, unseen=unseen, seed=seed + 3) for unseen in (False, True)]
    of_either = [one.text for half in halves for one in half]
    return Pools(
        draw(n, correlation=1.0, seed=seed),
        draw(n * 3 // 4, seed=seed + 1),
        draw(n, unseen=True, seed=seed + 2),
        random.Random(seed + 3).sample(of_either, len(of_either)),
    )


@dataclass(frozen=True)
class Subject:
    """A model, the site that its probes read, dictionaries there and before, words for a bottleneck."""

    model: Model
    at: str
    dictionaries: Mapping[str, Dictionary]
    words: Sequence[str]


def smollm2(
    source: str | Path, texts: Pools, out: Path, *, at: str, features: int, k: int, steps: int
) -> Subject:
    """SmolLM2 as far as a site, read once: every seed takes its texts from there.

    Texts stand behind its first special token. The first token of a text has a residual stream two hundred
    times as long as others whatever it is, and would count as one of the text.
    """
    whole = Model.load(source, dtype=torch.float32)
    labelled = [one.text for pool in (texts.train, texts.known, texts.test) for one in pool]
    words = [word for of_label in CONCEPTS.values() for word in of_label]
    every = [*labelled, *without_gendered_words(labelled), *texts.unlabelled, *words]
    model = recorded(whole, every, at, opening=whole.tokenizer.bos_token, path=out / "smollm2.safetensors")
    places = [model.tokenizer.encode(text, add_special_tokens=False) for text in texts.unlabelled]
    rows = torch.tensor([place for text in places for place in text])
    rows = rows[: len(rows) // 64 * 64].view(-1, 64)
    found = learned(model, rows, ["embed"], out / "smollm2-dictionaries", features=features, k=k, steps=steps)
    return Subject(model, "embed", found, words)


def recurrent(texts: Pools, out: Path, *, features: int, k: int, steps: int, writing: int = 500) -> Subject:
    """A stack of gated recurrent units that has learnt to write biographies, with all its dictionaries."""
    model = taught(out / "recurrent.safetensors", steps=writing)
    rows = model.tokenizer(list(texts.unlabelled), padding=True, return_tensors="pt")["input_ids"]
    found = learned(
        model, rows, list(model.sites), out / "recurrent-dictionaries", features=features, k=k, steps=steps
    )
    return Subject(model, list(model.sites)[-1], found, WORDS)


def learned(
    model: Model, rows: Any, sites: Sequence[str], folder: Path, *, features: int, k: int, steps: int
) -> dict[str, Dictionary]:
    """A dictionary at each site, kept in a folder."""
    if not folder.exists():
        found = train(
            model, rows, sites, n_features=features, recipe=recipes.BatchTopK(k), steps=steps, batch_size=256,
            lr=1e-3, ignore=model.tokenizer.all_special_ids,
        )  # fmt: skip
        save(found, folder)
    return dict(load(folder))


def taught(
    path: Path | None = None, *, width: int = 64, layers: int = 2, steps: int = 500, texts: int = 8000
) -> Model:
    """A recurrent model trained to write biographies that mostly say the profession. Kept in a file."""
    written = stating(texts)
    tokenizer = tokenizer_of(written)
    torch.manual_seed(0)
    module = Recurrent(len(tokenizer), width, layers)
    if path is not None and path.exists():
        module.load_state_dict(load_file(path))
        return Model.load(module.eval(), tokenizer=tokenizer)
    rows = tokenizer(written, padding=True, return_tensors="pt")["input_ids"]
    write_biographies(module, rows, steps=steps, padding=tokenizer.pad_token_id)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(module.state_dict(), path)
    return Model.load(module.eval(), tokenizer=tokenizer)


def write_biographies(module: Recurrent, rows: Tensor, *, steps: int, padding: int) -> None:
    """Trains a language model in place on rows of tokens."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    bar = tqdm(range(steps), desc="recurrent model", unit="step", disable=None)
    for _ in bar:
        tokens = rows[torch.randint(len(rows), (64,))]
        logits = module(tokens)[:, :-1].flatten(0, 1)
        loss = cross_entropy(logits, tokens[:, 1:].flatten(), ignore_index=padding)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def stating(n: int, *, share: float = 0.8, seed: int = 0) -> list[str]:
    """Biographies of either wording, most of which say the profession somewhere: from these a language model
    learns which hints go together, and nothing of genders that go with them."""
    rng, found = random.Random(seed), []
    for unseen in (False, True):
        for one in biographies(n // 2, unseen=unseen, seed=seed):
            sentences = re.findall(r"[^.]+\.", one.text)
            if rng.random() < share:
                said = f" {PRONOUN[one.spurious]} is a {one.label}."
                sentences.insert(rng.randrange(2, len(sentences) + 1), said)
            found.append("".join(sentences))
    return rng.sample(found, len(found))


def tokenizer_of(texts: Sequence[str]) -> Any:
    """A token for each word of some texts, and one in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, bos, unknown = SPECIALS
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    ids = {word: i for i, word in enumerate((*SPECIALS, *words))}
    fast = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    fast.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token=pad, bos_token=bos, unk_token=unknown, padding_side="right"
    )
