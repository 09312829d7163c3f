"""Tasks: what they ask, and how they become tensors for tokenizers of every kind."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

import tasks
from tasks import TASKS, Batch, Pair, Task, Tokenizer

WEIGHTS = Path(os.environ.get("BREADBOARD_WEIGHTS") or Path(__file__).parents[2] / "shared" / "weights")
PUBLISHED = ("stories260K", "glassllm-en")  # SentencePiece with a token that opens the text, and without


class Wrapped:
    """A tokenizer of the `tokenizers` package in the form that Hugging Face models have it."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self.raw.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: list[int], /) -> str:
        return self.raw.decode(ids)


def texts() -> list[str]:
    return [
        f"{pair.clean}{end}"
        for name in TASKS
        if name != "induction"
        for pair in TASKS[name](n=150).pairs
        for end in pair.answers + pair.foils
    ]


def digits_apart(*others: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), *others])


def words() -> Wrapped:
    """Words and digits, between a token that opens and a token that ends the text."""
    raw = Raw(models.WordLevel(unk_token="<unk>"))  # type: ignore
    raw.pre_tokenizer = digits_apart(pre_tokenizers.Whitespace())  # type: ignore
    raw.train_from_iterator(texts(), trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>"]))  # type: ignore
    raw.post_processor = processors.TemplateProcessing(  # type: ignore
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return Wrapped(raw)


def byte_pairs() -> Wrapped:
    """Byte pairs that carry their space in front, as GPT-2 has them, and no special tokens."""
    raw = Raw(models.BPE())
    raw.pre_tokenizer = digits_apart(pre_tokenizers.ByteLevel(add_prefix_space=False))  # type: ignore
    raw.decoder = decoders.ByteLevel()  # type: ignore
    raw.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=2000, show_progress=False))  # type: ignore
    return Wrapped(raw)


@pytest.fixture(scope="module", params=[words, byte_pairs], ids=lambda make: make.__name__)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.param()


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> Tokenizer:
    if not (WEIGHTS / request.param).is_dir():
        pytest.skip(f"no {request.param} in {WEIGHTS}")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(WEIGHTS / request.param)


class Characters:
    """One token per character, its code point."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: list[int], /) -> str:
        return "".join(map(chr, ids))


def letters(*pairs: Pair) -> list[Batch]:
    return Task("letters", pairs).batches(Characters())


# What the built-in tasks ask


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_built_in_tasks_are_repeatable_and_without_duplicates(make: Callable[..., Task]):
    task = make(n=100, seed=3)
    assert make(n=100, seed=3) == task
    assert make(n=100, seed=4) != task
    assert len(set(task.pairs)) == len(task) == 100


@pytest.mark.parametrize("name", TASKS)
def test_the_names_of_built_in_tasks_are_those_of_their_functions(name: str):
    task = TASKS[name](n=1)
    assert task.name == name
    assert getattr(tasks, name) is TASKS[name]
    assert task.description and "\n" not in task.description


@pytest.mark.parametrize("name", TASKS)
def test_asking_for_more_pairs_than_there_are_says_how_many_there_are(name: str):
    with pytest.raises(ValueError, match=r"There are \d+ different .*: cannot choose"):
        TASKS[name](n=10**30)
    with pytest.raises(ValueError, match="cannot choose 0"):
        TASKS[name](n=0)


def test_every_pair_can_be_had():
    assert len(set(tasks.agreement_simple(n=176).pairs)) == 176
    assert len(set(tasks.induction(n=12, vocab_size=4, length=2).pairs)) == 12


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("agreement")])
def test_clean_and_patch_of_agreement_differ_in_one_word(name: str):
    for pair in TASKS[name](n=100).pairs:
        clean, patch = (str(prompt).split() for prompt in (pair.clean, pair.patch))
        assert len(clean) == len(patch)
        assert sum(a != b for a, b in zip(clean, patch, strict=True)) == 1
        assert clean[0] == "The"


@pytest.mark.parametrize("name", ["agreement_across_pp", "agreement_across_rc", "agreement_within_rc"])
def test_agreement_has_nouns_that_mislead_and_nouns_that_do_not(name: str):
    cases = {pair.case for pair in TASKS[name](n=100).pairs}
    assert cases == {f"{a}_{b}" for a in ("singular", "plural") for b in ("singular", "plural")}


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("agreement_simple", 1),
        ("agreement_across_pp", 1),
        ("agreement_across_rc", 1),
        ("agreement_within_rc", -1),
    ],
)
def test_the_verb_agrees_with_the_noun_that_the_patch_changes(name: str, position: int):
    from tasks.words import AUXILIARIES, NOUNS

    number = {word: i for forms in (*NOUNS, *AUXILIARIES) for i, word in enumerate(forms)}
    for pair in TASKS[name](n=100).pairs:
        answer, foil = (str(tokens[0]).strip() for tokens in (pair.answers, pair.foils))
        assert number[str(pair.clean).split()[position]] == number[answer]
        assert number[str(pair.patch).split()[position]] == number[foil]


def test_pronouns_are_right_for_clean_and_wrong_for_patch():
    from tasks.words import BOYS, GIRLS

    for pair in tasks.pronouns(n=200).pairs:
        clean, patch = (set(str(prompt).split()) for prompt in (pair.clean, pair.patch))
        girl = pair.answers == (" she",)
        assert clean & set(GIRLS if girl else BOYS) and patch & set(BOYS if girl else GIRLS)
        assert set(pair.answers + pair.foils) == {" she", " he"}


def test_the_indirect_object_is_named_once_and_nobody_in_the_patch_is_named_twice():
    from tasks.words import BOYS, GIRLS

    names = set(GIRLS + BOYS)
    for pair in tasks.indirect_objects(n=200).pairs:
        clean, patch = (
            [word for word in str(prompt).split() if word in names] for prompt in (pair.clean, pair.patch)
        )
        (receiver,), (giver,) = ([str(t).strip() for t in tokens] for tokens in (pair.answers, pair.foils))
        order = {"ABBA": [receiver, giver, giver], "BABA": [giver, receiver, giver]}[pair.case]
        assert clean == order
        assert len(set(patch)) == 3 and not set(patch) & set(clean)


def test_greater_digits_end_the_span_after_it_began():
    for pair in tasks.greater_than(n=200).pairs:
        clean = str(pair.clean)
        began = int(next(word for word in clean.split() if len(word) == 4 and word.isdigit()))
        century = clean[-2:]
        for digit in range(10):
            last, first = int(f"{century}{digit}9"), int(f"{century}{digit}0")
            assert (str(digit) in pair.answers) == (first > began)
            assert (str(digit) in pair.foils) == (last <= began)


def test_induction_repeats_in_clean_and_not_in_patch():
    task = tasks.induction(n=50, vocab_size=40, length=6, opening=(99,), exclude={0, 1})
    for pair in task.pairs:
        clean, patch = pair.clean, pair.patch
        assert isinstance(clean, tuple) and isinstance(patch, tuple)
        assert clean[0] == patch[0] == 99
        assert (*clean[1:7], *clean[1:7]) == clean[1:] + pair.answers
        assert len(set(patch)) == len(patch) and patch[7:] == clean[7:]
        assert pair.foils == patch[6:7]
        assert not {0, 1} & set(clean + patch)
    (batch,) = task.batches(None, 64)
    assert batch.clean.shape == (50, 12)


def test_induction_needs_tokens_enough():
    with pytest.raises(ValueError, match="7 tokens do not make two of 4"):
        tasks.induction(vocab_size=7, length=4)


# From pairs to tensors


@pytest.mark.parametrize("name", TASKS)
def test_nearly_all_pairs_fit_tokenizers_that_know_the_words(name: str, tokenizer: Tokenizer):
    task = TASKS[name](n=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = task.batches(tokenizer, 16)
    assert sum(map(len, batches)) > 40
    assert all(len(batch) <= 16 for batch in batches)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "induction"])
def test_tokens_spell_the_pairs(name: str, tokenizer: Tokenizer):
    def spelt(ids: torch.Tensor) -> str:
        return "".join(tokenizer.decode(ids.tolist()).split())

    def spelt_each(ids: torch.Tensor) -> tuple[str, ...]:
        return tuple(spelt(token) for token in ids[ids >= 0][:, None])

    task = TASKS[name](n=40)
    asked = set()
    for pair in task.pairs:
        clean, patch = ("".join(str(prompt).split()) for prompt in (pair.clean, pair.patch))
        answers, foils = (tuple(str(t).strip() for t in tokens) for tokens in (pair.answers, pair.foils))
        asked.add((clean, patch, answers, foils, pair.case))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = task.batches(tokenizer, 16)
    for batch in batches:
        assert batch.patch is not None
        for row, case in enumerate(batch.cases):
            prompts = spelt(batch.clean[row]), spelt(batch.patch[row])
            assert (*prompts, spelt_each(batch.answers[row]), spelt_each(batch.foils[row]), case) in asked


def test_an_empty_prompt_does_not_hide_what_opens_the_others():
    task = Task("t", [Pair("", None, (" is",)), Pair("The boy", None, (" is",))])
    with pytest.warns(UserWarning, match="1: no prompt"):
        assert task.batches(words())[0].clean[0, 0] == 1


def test_answers_that_go_on_by_different_tokens_are_refused():
    class Parity(Characters):  # the token of x depends on what stands before it
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [ord(c) + (c == "x") * ord(before) for before, c in zip("a" + text, text, strict=False)]

    with pytest.raises(ValueError, match=r"clean and patch go on by different tokens, .* 'x' after"):
        Task("t", [Pair("a", "b", ("x",))]).batches(Parity())


def test_prompts_open_with_the_special_token_and_do_not_end_with_one():
    tokenizer = words()
    assert tokenizer.encode("The boy")[-1] == 2
    batch = tasks.agreement_simple(n=20).batches(tokenizer)[0]
    assert batch.patch is not None
    for prompts in (batch.clean, batch.patch):
        assert prompts.shape == (20, 3) and (prompts[:, 0] == 1).all() and not (prompts == 2).any()


def test_published_tokenizers_continue_the_prompt_by_the_answer(published: Tokenizer):
    task = tasks.pronouns(n=300)
    with pytest.warns(UserWarning, match="different numbers of tokens"):
        batches = task.batches(published)
    she, he = (published.encode(f"Lily was sad because {word}")[-1] for word in ("she", "he"))
    for batch in batches:
        girl = torch.tensor([case == "girl" for case in batch.cases])
        assert (batch.answers[:, 0] == torch.where(girl, she, he)).all()
        assert (batch.foils[:, 0] == torch.where(girl, he, she)).all()


def test_published_tokenizers_cut_years_into_digits(published: Tokenizer):
    batches = tasks.greater_than(n=30).batches(published)
    digits = [published.encode(f"17{d}")[-1] for d in range(10)]
    assert sum(map(len, batches)) == 30
    for batch in batches:
        both = torch.cat([batch.answers, batch.foils], dim=1)
        assert all(sorted(row[row >= 0].tolist()) == sorted(digits) for row in both)


def test_batches_hold_one_length_each_shortest_first_and_keep_the_order():
    batches = letters(
        Pair("aaa", None, ("x",)), Pair("b", "c", ("x",)), Pair("ddd", None, ("y",)), Pair("e", "f", ("z",))
    )
    assert [batch.labels(Characters()) for batch in batches] == [["b"], ["a", "a", "a"]]
    assert batches[0].clean.tolist() == [[ord("b")], [ord("e")]]
    assert batches[1].answers.tolist() == [[ord("x")], [ord("y")]]
    assert batches[1].patch is None and batches[1].foils.shape == (2, 0)


def test_paired_and_unpaired_prompts_are_not_mixed_in_a_batch():
    unpaired, paired = letters(Pair("a", "b", ("x",)), Pair("c", None, ("x",)))
    assert {unpaired.patch is None, paired.patch is None} == {True, False}


def test_missing_answers_are_filled_with_minus_one():
    (batch,) = letters(Pair("a", "b", ("x", "y"), ("z",)), Pair("c", "d", ("x",), ()))
    assert batch.answers.tolist() == [[120, 121], [120, -1]]
    assert batch.foils.tolist() == [[122], [-1]]


def test_answers_can_be_token_ids_and_count_once():
    (batch,) = letters(Pair("a", "b", (7, "x", 120), (8,)))
    assert batch.answers.tolist() == [[7, 120]]


def test_pairs_that_do_not_fit_are_counted_in_one_warning():
    good = Pair("a", "b", ("x",), ("y",))
    with pytest.warns(UserWarning) as caught:
        (batch,) = letters(
            good,
            Pair("a", "bb", ("x",)),
            Pair("a", "ccc", ("x",)),
            Pair("a", "b", ("xy",)),
            Pair("a", "b", ("x",), ("x",)),
            Pair("a", "a", ("x",)),
            Pair("", None, ("x",)),
            Pair("a", None, ()),
        )
    assert len(batch) == 1
    (message,) = (str(warning.message) for warning in caught)
    assert message.startswith("letters: 7 of 8 pairs do not fit this tokenizer. ")
    assert "2: clean and patch have different numbers of tokens, e.g. 'a' has 1 and 'bb' has 2" in message
    assert "1: an answer or foil does not add one token, e.g. 'xy' after 'a'" in message
    assert "1: a token is both answer and foil" in message
    assert "1: clean and patch are the same tokens" in message
    assert "2: no prompt or no answer" in message
    assert caught[0].filename == __file__


def test_no_pair_left_is_an_error_that_counts_the_reasons():
    with pytest.raises(ValueError, match=r"No pair of letters fits this tokenizer, of 2\. 2: an answer"):
        letters(Pair("a", "b", ("xy",)), Pair("a", "b", ("uv",)))
    with pytest.raises(ValueError, match="of 0"):
        letters()


def test_an_answer_that_changes_the_tokens_of_the_prompt_is_refused():
    tokenizer = byte_pairs()  # "bo" and "y" become one token
    with pytest.raises(ValueError, match=r"does not add one token, .* 'y' after 'The bo'"):
        Task("merged", [Pair("The bo", None, ("y",))]).batches(tokenizer)


def test_texts_without_a_tokenizer_are_refused():
    with pytest.raises(TypeError, match="they need a tokenizer"):
        tasks.pronouns(n=1).batches(None)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1 example, not 0"):
        tasks.pronouns(n=1).batches(Characters(), 0)


# Pairs, tasks and batches as values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, None, (1,)), "`clean` is 3"),
        (("a", (1, 2), ("x",)), r"`patch` is \(1, 2\)"),
        (((1, 2), "a", (1,)), "`patch` is 'a'"),
        (("a", "b", " x"), "`answers` is a tuple of texts or token ids, not ' x'"),
        (((1,), (2,), (" x",)), "`answers` is a tuple of token ids"),
        (("a", "b", ("x",), ["y"]), "`foils` is a tuple"),
    ],
)
def test_a_pair_of_wrong_types_is_refused(arguments: tuple, message: str):
    with pytest.raises(TypeError, match=message):
        Pair(*arguments)


def test_a_split_shares_out_all_pairs():
    task = tasks.agreement_simple(n=50)
    for size in (0.6, 30):
        train, held_out = task.split(size, seed=1)
        assert (len(train), len(held_out)) == (30, 20)
        assert set(train.pairs) | set(held_out.pairs) == set(task.pairs)
        assert (train, held_out) == task.split(size, seed=1) != task.split(size, seed=2)
    assert train.metric == task.metric


@pytest.mark.parametrize("size", [0, 50, 51, 0.0, 1.0, -0.5])
def test_a_split_with_an_empty_side_is_refused(size: float):
    with pytest.raises(ValueError, match="one side would be empty"):
        tasks.agreement_simple(n=50).split(size)


def test_take_gives_the_first_pairs():
    task = tasks.agreement_simple(n=50)
    assert task.take(3).pairs == task.pairs[:3]
    assert task.take(80) == task


@pytest.fixture
def batch() -> Batch:
    ids = torch.arange(12).reshape(4, 3)
    return Batch(ids, ids + 100, ids[:, :1], ids[:, 1:], cases=("a", "b", "c", "d"))


@pytest.mark.parametrize("index", [slice(1, 3), [1, 2], torch.tensor([1, 2]), torch.arange(4) % 3 > 0])
def test_a_selection_takes_everything_along(batch: Batch, index):
    batch = batch.referenced(torch.randn(4, 3, 5))
    chosen = batch[index]
    assert len(chosen) == 2 and chosen.cases == ("b", "c")
    for name in ("clean", "patch", "answers", "foils", "reference"):
        assert torch.equal(getattr(chosen, name), getattr(batch, name)[1:3])


def test_a_batch_is_walked_example_by_example(batch: Batch):
    assert [example.cases for example in batch] == [("a",), ("b",), ("c",), ("d",)]
    assert batch[-1].clean.tolist() == [[9, 10, 11]]


def test_a_batch_moves_whole(batch: Batch):
    moved = batch.referenced(torch.zeros(4, 3, 5)).to("meta")
    for name in ("clean", "patch", "answers", "foils", "reference"):
        assert getattr(moved, name).device.type == "meta"
    assert moved.cases == batch.cases


def test_a_reference_is_the_prediction_after_the_last_token(batch: Batch):
    logits = torch.randn(4, 3, 5, requires_grad=True)
    reference = batch.referenced(logits).reference
    assert reference is not None and not reference.requires_grad
    torch.testing.assert_close(reference.exp(), logits.detach()[:, -1].softmax(-1))
    assert batch.reference is None


def test_labels_are_text_or_token_ids(batch: Batch):
    assert batch.labels(example=1) == ["3", "4", "5"]
    assert tasks.pronouns(n=1).batches(words())[0].labels(words())[-1] in ("because", "that")


def test_a_batch_of_unlike_rows_is_refused(batch: Batch):
    with pytest.raises(ValueError, match="position by position"):
        Batch(batch.clean, batch.clean[:, :2], batch.answers, batch.foils)
    with pytest.raises(ValueError, match="one row per example"):
        Batch(batch.clean, None, batch.answers[:2], batch.foils)


def test_the_pairs_that_fit_are_those_of_the_batches():
    task = Task(
        "two",
        [
            Pair((3, 4), (3, 5), (6,), (7,)),
            Pair((3, 4), (3, 5, 6), (6,), (7,)),
            Pair((4, 4), (4, 5), (6,), (7,)),
        ],
    )
    with pytest.warns(UserWarning, match="1 of 3 pairs do not fit"):
        fitting = task.fitting(None)
    assert fitting.pairs == (task.pairs[0], task.pairs[2])
    assert sum(map(len, fitting.batches(None))) == 2
