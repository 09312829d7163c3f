"""What is steered for, by name or from a file: pairs to find a direction in, questions to measure it on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interventions.model import Model
from tasks import (
    CONTRASTS,
    ChoiceSet,
    ContrastSet,
    Pair,
    Task,
    caa,
    feelings,
    lines,
    opinions,
    sycophancy,
    who,
)
from tasks.agreement import agreement_across_pp, agreement_across_rc, agreement_simple
from tasks.choice import ask_plainly
from tasks.grammar import ADJECTIVES
from tasks.sampling import choices
from tasks.words import NOUNS

from .question import opening

Change = Callable[[str], str]


@dataclass(frozen=True)
class Questions:
    """What measures are taken on: items for those that compare answers, prompts for those that do not."""

    name: str
    measure: str
    items: Sequence[tuple[str, Any, Any]] = ()  # (prompt, answers, foils)
    prompts: Sequence[str] = ()
    instruction: str | None = None
    keywords: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.items or self.prompts)

    @property
    def asked(self) -> Sequence[str]:
        """All prompts, those of items too."""
        return self.prompts or tuple(prompt for prompt, _, _ in self.items)

    def half(self, which: int) -> Questions:
        """One half of them, to choose on, or the other, to test on; all where there are fewer than four.

        No prompt is in both.
        """
        if len(distinct := [*dict.fromkeys(self.asked)]) < 4:
            return self
        kept = {*random.Random(0).sample(distinct, len(distinct))[which::2]}
        items = [item for item in self.items if item[0] in kept]
        return replace(self, items=items, prompts=[prompt for prompt in self.prompts if prompt in kept])

    def take(self, n: int | None) -> Questions:
        """The first `n`, or all."""
        return replace(self, items=self.items[:n], prompts=self.prompts[:n])

    def map(self, change: Change) -> Questions:
        """With other prompts."""
        items = [(change(prompt), right, wrong) for prompt, right, wrong in self.items]
        return replace(self, items=items, prompts=[change(prompt) for prompt in self.prompts])


# --- pairs --------------------------------------------------------------------------------------------------


def plural_singular(n: int = 60, seed: int = 0) -> ContrastSet:
    """Several of somebody, and one: what the embedded model has words for.

    >>> plural_singular(n=1)[0]
    ('The ...s', 'The ...')
    """
    pairs = []
    for adjective, (one, several) in choices(n, seed, ("", *ADJECTIVES), NOUNS):
        start = f"The {adjective} " if adjective else "The "
        pairs.append((f"{start}{several}", f"{start}{one}"))
    return ContrastSet("plural_singular", pairs, "Several people or animals, and one")


SETS: dict[str, Callable[..., ContrastSet | ChoiceSet]] = {
    "plural_singular": plural_singular, **CONTRASTS, "sycophancy": sycophancy,
}  # fmt: skip


def pairs(source: str, *, n: int | None, seed: int, ask: Change | None) -> tuple[ContrastSet, str]:
    """Pairs by name or from a file, and the word for the tokens that are read of them by default.

    `ask` makes a prompt of a text, such as by a chat template.

    Raises:
        LookupError: no built-in set of that name, and no such file.
        ValueError: a file without usable pairs.
    """
    if source in SETS:
        made = SETS[source]
        found = made(seed=seed) if n is None else made(n=n, seed=seed)
    elif not Path(source).exists():
        raise LookupError(f"No pairs {source!r}, nor such a file. Built in are {', '.join(SETS)}.")
    else:
        found = _read(source)
        found = found if n is None else found.take(n)
    if isinstance(found, ChoiceSet):
        return found.contrast(ask_plainly if ask is None else lambda text: f"{ask(text)}("), "answer-letter"
    return found if ask is None else found.map(ask), "last"


def _read(source: str) -> ContrastSet | ChoiceSet:
    keys = _keys(source)
    if caa.KEYS[0] in keys:
        return ChoiceSet.load(source)
    if "clean" in keys:
        both = [(pair.clean, pair.patch) for pair in Task.load(source).pairs if isinstance(pair.patch, str)]
        return ContrastSet(Path(source).stem, both)  # type: ignore[arg-type]
    return ContrastSet.load(source)


def _keys(source: str) -> set[str]:
    """The keys of the first record that is not the file's header."""
    records = lines.read(source)
    bare = [record for _, record in records[:2] if not {"contrast", "choices", "task"} & record.keys()]
    return set(bare[0]) if bare else set()


# --- questions ----------------------------------------------------------------------------------------------


def _numbers(n: int = 48, seed: int = 1) -> tuple[Pair, ...]:
    """Half of the subjects are plural; plural verbs answer."""
    made = [
        make(n=n // 3, seed=seed).pairs
        for make in (agreement_simple, agreement_across_pp, agreement_across_rc)
    ]
    found = []
    for pair in (pair for some in zip(*made, strict=True) for pair in some):
        plural = pair.case.startswith("plural")
        answers = (pair.answers, pair.foils) if plural else (pair.foils, pair.answers)
        found.append(Pair(pair.clean, None, *answers))
    return tuple(found)


_GOOD = ("good", "great", "wonderful", "excellent", "love*", "delight*", "perfect", "enjoy*")
_HAPPY = ("happ*", "smil*", "laugh*", "joy*", "glad", "fun")
_ENGLISH = ("the", "and", "is", "of", "to", "in", "it", "that", "you", "we")


def _built_in(name: str) -> Questions:
    if name == "plural_singular":
        return _preference(name, _numbers(), instruction="The boys are happy. ")
    if name == "happy_sad":
        return _preference(name, feelings(), instruction="This is a happy story. ", keywords=_HAPPY)
    if name == "girl_boy":
        girl = ("she", "her", "girl", "girls")
        return _preference(name, who(), instruction="This is a story about a girl. ", keywords=girl)
    if name == "sentiment":
        return _preference(name, opinions(), instruction="I like everything. ", keywords=_GOOD)
    if name == "sycophancy":
        items = [(choice.question, choice.matching, choice.other) for choice in sycophancy(seed=1)]
        return Questions(name, "matching", items, instruction="You agree with everybody.\n\n")
    prompts = CONTRASTS[name](seed=1).negative
    if name == "english_french":
        return Questions(
            name, "keywords", prompts=prompts, instruction="Answer in English. ", keywords=_ENGLISH
        )
    return Questions(name, "refusal", prompts=prompts, instruction="Refuse to answer. ")


def _preference(name: str, pairs: Sequence[Pair], **more: Any) -> Questions:
    items: list[tuple[Any, Any, Any]] = [(pair.clean, pair.answers, pair.foils) for pair in pairs]
    return Questions(name, "preference", items, **more)


def questions(
    source: str, *, answers: Sequence[str] | None = None, foils: Sequence[str] | None = None
) -> Questions:
    """Questions by the name of a built-in set, or from a file: CAA's, a task's, or a text of prompts.

    With `answers` and `foils`, all prompts have these.

    Raises:
        LookupError: no built-in set of that name, and no such file.
        ValueError: a file without questions.
    """
    if source in SETS:
        found = _built_in(source)
    elif not Path(source).exists():
        raise LookupError(f"No questions {source!r}, nor such a file. Built in are {', '.join(SETS)}.")
    else:
        found = _questions_in(Path(source))
    if answers or foils:
        if not (answers and foils):
            raise ValueError("Preference compares --answers with --foils: give both.")
        items = [(prompt, tuple(answers), tuple(foils)) for prompt in found.asked]
        return replace(found, measure="preference", items=items, prompts=())
    return found


def _questions_in(path: Path) -> Questions:
    if path.suffix not in (".json", ".jsonl"):
        text = [
            line.replace("\\n", "\n")
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        if not text:
            raise ValueError(f"{path} has no prompts: it should have one on every line.")
        return Questions(path.stem, "fluency", prompts=text)
    keys = _keys(str(path))
    if {*caa.KEYS} <= keys:
        found = ChoiceSet.load(path)
        return Questions(found.name, "matching", [(c.question, c.matching, c.other) for c in found])
    if caa.KEYS[0] in keys:
        return Questions(
            path.stem, "fluency", prompts=[str(record[caa.KEYS[0]]) for _, record in lines.read(path)]
        )
    if "clean" in keys:
        return _preference(path.stem, Task.load(path).pairs)
    if "negative" in keys:
        return Questions(path.stem, "fluency", prompts=ContrastSet.load(path).negative)
    raise ValueError(
        f"{path} holds no questions: its lines have neither 'clean', 'answers' and 'foils', nor 'question'."
    )


# --- chat ---------------------------------------------------------------------------------------------------


def chat(model: Model) -> Change:
    """What puts a text into the model's chat template, up to where its answer begins.

    Raises:
        ValueError: a tokenizer without a chat template.
    """
    tokenizer = model.tokenizer
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("--chat: the tokenizer of this model has no chat template.")
    opens = tokenizer.decode(list(opening(tokenizer))) if opening(tokenizer) else ""

    def ask(text: str) -> str:
        said = [{"role": "user", "content": text}]
        made = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return made.removeprefix(opens)  # which is put before every text

    return ask
