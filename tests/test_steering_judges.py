from __future__ import annotations

import re
from itertools import product

import pytest
import torch

from circuits import embedded
from interventions import Add, applied
from interventions.steering.fluency import Each, distinct, perplexity, surprise
from interventions.steering.generated import Generated
from interventions.steering.judges import Judge, Judged, KeywordJudge, LikelihoodJudge, Marks, harmonic_mean
from interventions.steering.likelihood import prompt_ids, text_ids
from interventions.steering.refusal import REFUSALS, UNKNOWN, opens_with_refusal, refuses
from interventions.steering.words import occurrences, words


@pytest.fixture(scope="module")
def model():
    return embedded.model()


def plural(model, scale):
    direction = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    return Add({"resid.1": direction}, scale=scale)


# Marks


def test_the_overall_mark_is_that_of_axbench_in_all_27_cases():
    for c, i, f in product(range(3), repeat=3):
        expected = 0.0 if 0 in (c, i, f) else 3 / (1 / c + 1 / i + 1 / f)
        assert harmonic_mean(c, i, f) == Marks(c, i, f).overall == pytest.approx(expected, abs=1e-15)


def test_a_function_is_a_judge_and_may_return_three_numbers():
    def judge(instruction, text):
        return 2, 0.5, float(text.startswith(instruction[:1]))

    assert isinstance(judge, Judge)
    found = Judged(judge)(None, ["ab", "b"], ["a", "a"])
    assert found["concept"].tolist() == [2, 2] and found["instruction"].tolist() == [0.5, 0.5]
    assert found["overall"].tolist() == pytest.approx([3 / (1 / 2 + 1 / 0.5 + 1), 0])


def test_a_judge_of_many_is_asked_once():
    class Many:
        asked = 0

        def __call__(self, instruction, text):
            raise AssertionError

        def many(self, instructions, texts):
            self.asked += 1
            return [Marks(1, 1, 1)] * len(texts)

    judge = Many()
    assert Judged(judge)(None, ["a"] * 5, ["b"] * 5)["overall"].tolist() == [1] * 5
    assert judge.asked == 1


@pytest.mark.parametrize(
    "text, marks",
    [
        ("", (0, 0, 0)),
        ("...", (0, 0, 0)),
        ("The holiday was long and warm", (0, 2, 2)),
        ("Seaside towns are seasonal for holidays", (0, 0, 2)),
        ("On holiday by the SEA, with ships.", (1, 2, 2)),
        ("Sea and waves and wavelets on this day off", (2, 0, 2)),
        ("holiday sea sea sea sea sea sea sea", (2, 2, 0)),
        ("sea holiday", (1, 2, 0)),
    ],
)
def test_the_keyword_judge_counts_whole_words(text, marks):
    judge = KeywordJudge(["sea", "wave*"])
    found = judge("How was the holiday?", text)
    assert (found.concept, found.instruction, found.fluency) == marks


def test_an_instruction_without_content_words_is_done():
    assert KeywordJudge(["sea"])("Go on", "the sea is big").instruction == 2


def test_the_likelihood_judge_finds_a_text_likelier_after_its_own_words(model):
    judge = LikelihoodJudge(model, about="The boys near the cars", neutral="The boy near the car")
    (gain, asked, nats), (against, *_) = judge.gains(["The boys"] * 2, [" are", " is"])
    assert gain > 3 and against < -3
    slow = []
    for before in ("The boy near the car", "The boys near the cars", "The boys"):
        ids = torch.tensor([[*prompt_ids(model, before), *text_ids(model, " are")]])
        slow.append(model.logits(ids)[0, -2].log_softmax(-1)[ids[0, -1]].item())
    assert (gain, asked, nats) == pytest.approx((slow[1] - slow[0], slow[2] - slow[0], -slow[2]), abs=1e-4)
    marks = judge("The boys", " are")
    assert marks.concept == 2 and judge("The boys", " is").concept == 0


def test_the_likelihood_judge_is_not_steered_by_what_is_applied(model):
    judge = LikelihoodJudge(model, about="The boys", neutral="The boy")
    plain = judge.gains(["The boy"], [" near the cars"])
    with applied(model, plural(model, 9.0)):
        assert judge.gains(["The boy"], [" near the cars"]) == plain


def test_repetition_is_not_fluent_however_probable(model):
    judge = LikelihoodJudge(model, about="a", neutral="The boy", fluent=(99, 99))
    assert judge("The", "boy the boy the boy the boy the boy the").fluency == 0
    assert judge("The", "boy near the old cars").fluency == 2
    assert LikelihoodJudge(model, about="a", neutral="The", fluent=(0, 0))("The", "boy near").fluency == 0
    assert judge("The", "") == Marks(0, 0, 0)


# Fluency


def test_surprise_is_that_of_the_unsteered_model_token_by_token(model):
    prompts, texts = ["The boy", "The old men that", ""], [" near the cars is", " likes", ""]
    prompts[2] = "The"
    with applied(model, plural(model, 5.0)):
        found = surprise(model, prompts, texts, batch_size=2)
    for value, prompt, text in zip(found[:2].tolist(), prompts, texts, strict=False):
        before = list(prompt_ids(model, prompt))
        more = list(prompt_ids(model, prompt + text))[len(before) :]
        logs = []
        for token in more:
            logs.append(-model.logits(torch.tensor([before]))[0, -1].log_softmax(-1)[token].item())
            before.append(token)
        assert value == pytest.approx(sum(logs) / len(logs), rel=1e-4)
    assert found[2].isnan()
    assert perplexity(model, prompts[:1], texts[:1]).item() == pytest.approx(found[0].exp().item())


def test_distinct_counts_different_runs_of_words():
    assert distinct("a b c d") == 1 and distinct("a a a a a") == 0.25
    assert distinct("a b a b", 1) == 0.5 and distinct("One one ONE", 1) == pytest.approx(1 / 3)
    assert distinct("word") != distinct("word")


# Texts


def test_texts_are_written_steered_and_scored_unsteered(model):
    prompts = ["The boy", "The old men that", "The"]
    measure = Generated(
        prompts, {"surprise": surprise, "is": Each(lambda t: "is" in words(t))}, max_new_tokens=6
    )
    plain = measure(model)
    with applied(model, plural(model, 6.0)):
        found = measure(model)
        texts = model.complete(prompts, max_new_tokens=6, do_sample=False)
    assert found["texts"] == texts != plain["texts"]
    assert torch.equal(found["surprise"], surprise(model, prompts, texts))
    assert found["surprise"].nanmean() > plain["surprise"].nanmean()
    assert found["is"].tolist() == [float("is" in text.split()) for text in texts]


def test_sampled_texts_are_the_same_at_every_call_and_leave_the_generator_alone(model):
    measure = Generated(["The boy"] * 3, {}, max_new_tokens=6, options={"do_sample": True}, seed=3)
    before = torch.random.get_rng_state()
    assert measure.texts(model) == measure.texts(model)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(set(measure.texts(model))) > 1


def test_a_prompted_generation_is_scored_with_the_plain_prompt(model):
    seen = []

    def score(model, prompts, texts):
        seen.append(tuple(prompts))
        return torch.zeros(len(texts))

    measure = Generated(["The boy"], {"score": score}, max_new_tokens=3).prompted("The men near {}".format)
    assert measure.texts(model) == model.complete(["The men near The boy"], max_new_tokens=3, do_sample=False)
    measure(model)
    assert seen == [("The boy",)]


# Words


def test_words_are_whole_and_folded():
    assert words("L\u2019été, it\u2019s the CAT-food!") == ["l'été", "it's", "the", "cat", "food"]
    decomposed = "e\u0301te\u0301"
    assert occurrences(f"category cats {decomposed} ÉTÉ", ["cat", "cat*", "été"]) == {
        "cat": 0,
        "cat*": 2,
        "été": 2,
    }
    assert occurrences("ice cream, ice. Cream", ["ice cream", "ice cr*"]) == {"ice cream": 2, "ice cr*": 2}


# Refusals


@pytest.mark.parametrize(
    "text",
    [
        "I cannot help with that.", "I can't help you with this.", "I can\u2019t assist with that request.",
        "i cant provide that information", "Sorry, I CANNOT\ncomply.", "I'm sorry, but that is private.",
        "I\u2019m sorry but I can't.", "Im sorry, but no.", "I am unable to provide this.",
        "I won't write that.",
        "I will not assist with this.", "I must decline to answer.", "I have to decline.",
        "As an AI language model, I",
        "Unfortunately, I can't help.", "That is against my programming.",
        "I'm not comfortable discussing this.",
        "It's not appropriate for me to say.", "I would rather not!", "I can not fulfill your request",
    ],
)  # fmt: skip
def test_refusals_are_found(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here is how.", "I cannot wait to help you!", "I can't believe how good this is.",
        "I cannot help but smile.", "I cannot help smiling.", "He was sorry.",
        "I'm sorry to hear that you are ill.",
        "The unknown soldier lies here.", "Please note that the shop closes at six.",
        "It is not aware of us.",
        "You cannot help with that.", "Hi can't help you", "A note: unable to fly, the bird ran.",
        "I will not be long.", "I canned helpings.", "", "Illwill cannot assist",
        "My AI cannot assisted living",
    ],
)  # fmt: skip
def test_what_is_no_refusal_is_not_found(text):
    assert not refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I am not aware of any such person.", "I'M NOT FAMILIAR WITH him.",
        "Could you provide me with more context?",
        "There doesn\u2019t seem to be a city of that name.", "I don't have any information on this player.",
        "i dont know who that is", "There is no record of such a film.",
    ],
)  # fmt: skip
def test_professed_ignorance_is_found_where_fused_patterns_would_not_match(text):
    assert refuses(text, UNKNOWN)
    fused = ("not awarenot familiar", "provide me with morethere doesn't", "Not Aware")
    assert not any(pattern in text.lower() for pattern in fused)


def test_broad_words_are_no_ignorance():
    for text in (
        "An unknown painter made it.",
        "Please note the date.",
        "I know that I don't knowingly lie.",
    ):
        assert not refuses(text, UNKNOWN)


def test_no_phrase_is_two_that_were_fused():
    for phrase in (*REFUSALS, *UNKNOWN):
        assert re.fullmatch(r"[A-Za-z', ]+\.?", phrase) and len(phrase) < 45
        assert refuses(phrase.upper(), [phrase]) and refuses(phrase.replace("'", "\u2019"), [phrase])


def test_a_refusal_opens_a_text_or_stands_in_it():
    late = "Sure! Here it is. But I can't help with the rest."
    assert refuses(late) and not opens_with_refusal(late)
    assert not opens_with_refusal(late, sentences=2) and opens_with_refusal(late, sentences=3)
    assert opens_with_refusal("  As you know, I can't help with that. Sure.")
    assert opens_with_refusal("I can't help with that") and not opens_with_refusal("")
    assert not opens_with_refusal('"Go," said Tom.\n\nI can\'t help you.')


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda m: Marks(3, 0, 0), ValueError, "concept=3: a mark lies between 0 and 2."),
        (lambda m: harmonic_mean(), ValueError, "at least one"),
        (lambda m: harmonic_mean(-1, 2), ValueError, "at least 0"),
        (lambda m: Judged(lambda i, t: 1)(m, ["a"], ["b"]), TypeError, "Marks, or three numbers, not 1"),
        (lambda m: Judged(lambda i, t: (1, 1, 9))(m, ["a"], ["b"]), ValueError, "fluency=9"),
        (lambda m: Judged(lambda i, t: (1, 1, 1), ["a"])(m, ["a", "b"], ["b", "c"]), ValueError,
         "1 instructions for 2 texts"),
        (lambda m: KeywordJudge("sea"), ValueError, "sequence of keywords"),
        (lambda m: KeywordJudge([]), ValueError, "at least one"),
        (lambda m: occurrences("a", ["..."]), ValueError, "'...' has no word in it"),
        (lambda m: distinct("a", 0), ValueError, "n=0"),
        (lambda m: Generated("a", {}), TypeError, "not one text"),
        (lambda m: Generated([], {}), ValueError, "no prompts"),
        (lambda m: Generated(["a"], [surprise]), TypeError, "scores by name"),
        (lambda m: refuses("a", []), ValueError, "at least one phrase"),
        (lambda m: refuses("a", [" ."]), ValueError, "none of them empty"),
        (lambda m: opens_with_refusal("a", sentences=0), ValueError, "sentences=0"),
    ],
)  # fmt: skip
def test_every_error_says_what_was_given(model, make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make(model)
