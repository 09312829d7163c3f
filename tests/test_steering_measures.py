from __future__ import annotations

import re

import pytest
import torch
from families import module, tiny
from oracles import headless

from interventions import Add, Model, applied
from interventions.recurrence import AddState, read_state
from interventions.steering.choices import Matching, letter_tokens
from interventions.steering.confidence import bootstrap
from interventions.steering.digest import digest
from interventions.steering.divergence import Divergence
from interventions.steering.likelihood import continuation_ids, log_probabilities, prompt_ids
from interventions.steering.preference import Preference

FAMILIES = ["gpt2", "llama", "gemma2", "mamba", "rwkv", "recurrent_gemma"]
SIGNS = " abcdefghijklmnopqrstuvwxyzABCDEF()[].,?!"


class Signs:
    """A token for each character, and for each capital letter with a space before it."""

    unk_token_id = 2

    def __init__(self, *, opening: bool = True, spaced: bool = True, bare: bool = True):
        self.opening = [1] if opening else []
        self.pieces = ["", "", "", *SIGNS, *([f" {c}" for c in "ABC"] if spaced else [])]
        if not bare:
            self.pieces = [p for p in self.pieces if p not in "ABC" or not p]

    def encode(self, text, add_special_tokens=True):
        ids, longest = [], sorted((p for p in self.pieces if p), key=len, reverse=True)
        while text:
            piece = next((p for p in longest if text.startswith(p)), text[0])
            ids.append(self.pieces.index(piece) if piece in self.pieces else 2)
            text = text[len(piece) :]
        return [*(self.opening if add_special_tokens else []), *ids]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(self.pieces[i] if i < len(self.pieces) else "?" for i in ids)


def model_of(family="gpt2", **kinds) -> Model:
    return Model.load(module(family), tokenizer=Signs(**kinds))


def pushed(model, seed=0, scale=3.0):
    """An intervention that changes what the model says."""
    direction = torch.randn(model.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Add({"resid.1": direction}, scale=scale)


def softmax(model, prompt):
    return model.logits(torch.tensor([list(prompt_ids(model, prompt))]))[0].detach().double().softmax(-1)


ITEMS = [("is it (", "A", "B"), ("is it so? (", "(B)", "(A)"), ("do you say (", "A", "B")]


@pytest.mark.parametrize("family", FAMILIES)
def test_matching_and_nonsense_are_softmax_arithmetic(family):
    model = model_of(family)
    with applied(model, pushed(model)):
        found = Matching(ITEMS, batch_size=2)(model)
        for i, (prompt, match, other) in enumerate(ITEMS):
            p = softmax(model, prompt)[-1]
            pieces = model.tokenizer.pieces
            of = [sum(p[pieces.index(form + a.strip("()"))] for form in ("", " ")) for a in (match, other)]
            assert found["matching"][i].item() == pytest.approx((of[0] / (of[0] + of[1])).item(), rel=1e-4)
            assert found["nonsense"][i].item() == pytest.approx((1 - of[0] - of[1]).item(), rel=1e-4)


def test_letters_are_resolved_with_and_without_a_space():
    names = lambda model, found: {model.tokenizer.pieces[i] for i in found}  # noqa: E731
    both, plain, spaced = model_of(), model_of(spaced=False), model_of(bare=False)
    assert names(both, letter_tokens(both, "is it (", "(A)")) == {"A", " A"}
    assert names(plain, letter_tokens(plain, "is it (", "A")) == {"A"}
    assert names(spaced, letter_tokens(spaced, "is it", "A")) == {" A"}
    assert letter_tokens(both, (1, 5), 7) == {7}


def test_matching_takes_one_pass_for_a_batch():
    model, passes = model_of(), []
    handle = model.module.register_forward_hook(lambda *_: passes.append(1))
    _ = model.pads
    passes.clear()
    Matching([(f"{c} (", "A", "B") for c in "abcdefghijkl"], batch_size=6)(model)
    handle.remove()
    assert len(passes) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_preference_is_the_sum_of_single_tokens_one_by_one(family):
    model = model_of(family)
    items = [
        ("he is", " good", [" bad", " so bad"]),
        ("she was", [" A", " very A"], "."),
        ("so", 7, [8, " no"]),
    ]
    with applied(model, pushed(model)):
        found = Preference(items, batch_size=3)(model)
        for i, (prompt, *sides) in enumerate(items):
            sums = []
            for texts in sides:
                logs = []
                for text in texts if isinstance(texts, list) else [texts]:
                    ids, log = list(prompt_ids(model, prompt)), 0.0
                    for token in continuation_ids(model, prompt, text):
                        log += model.logits(torch.tensor([ids]))[0, -1].detach().log_softmax(-1)[token].item()
                        ids.append(token)
                    logs.append(log)
                sums.append(torch.tensor(logs, dtype=torch.float64).logsumexp(0).item())
            assert found[i].item() == pytest.approx(sums[0] - sums[1], rel=1e-4, abs=1e-5)


def test_single_tokens_after_one_prompt_share_a_row():
    model, rows = model_of(), []
    handle = model.module.register_forward_pre_hook(
        lambda _m, args, kwargs: rows.append(len(kwargs.get("input_ids", args[0] if args else None))),
        with_kwargs=True,
    )
    log_probabilities(model, [((1, 5, 6), (t,)) for t in range(3, 20)])
    handle.remove()
    assert rows == [1]


def test_pairs_of_a_task_are_items():
    from tasks import Pair

    item = Preference([Pair("he is", None, (" A",), (" B", "."))]).items[0]
    assert item == ("he is", (" A",), (" B", "."))


@pytest.mark.parametrize("family", FAMILIES)
def test_divergence_is_the_formula_in_float64(family):
    model = model_of(family)
    prompts = ["is it", "he was so good", "no"]
    before = [softmax(model, prompt) for prompt in prompts]
    with applied(model, pushed(model)):
        found = Divergence(prompts, batch_size=2)(model)
        after = [softmax(model, prompt) for prompt in prompts]
    slow = [(p * (p / q).log()).sum(-1).mean().item() for p, q in zip(before, after, strict=True)]
    assert found.tolist() == pytest.approx(slow, rel=1e-3, abs=1e-6)
    assert min(slow) > 0


def test_divergence_of_the_unsteered_model_is_nought():
    model = model_of()
    assert Divergence(["is it", "no"])(model).abs().max() < 1e-12


def test_divergence_of_a_prompted_model_is_over_the_common_end():
    model = model_of()
    found = Divergence(["is it"]).prompted(lambda p: f"say no, {p}")(model)
    p, q = softmax(model, "is it")[1:], softmax(model, "say no, is it")[-5:]
    assert found.item() == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-6)
    with pytest.raises(ValueError, match="do not end with the same token"):
        Divergence(["is it"]).prompted(lambda p: f"{p} no.")(model)


def test_prompts_of_other_measures_change_too():
    change = "so, {}".format
    assert Matching(ITEMS).prompted(change).items[0] == ("so, is it (", "A", "B")
    assert Preference([("is", "a", "b")]).prompted(change).items == (("so, is", ("a",), ("b",)),)


def test_a_direction_of_the_unembedding_moves_preference_by_its_square_times_the_multiplier():
    model = headless()
    head = model.module.get_output_embeddings().weight.detach()
    direction = head[7] - head[9]
    items = [((1, 5, 6), 7, 9), ((1, 8, 4, 3), 7, 9)]
    base = Preference(items)(model)
    for scale in (-2.0, 0.5, 3.0):
        with applied(model, Add({"resid.2": direction}, scale=scale)):
            moved = Preference(items)(model) - base
        assert moved.tolist() == pytest.approx([scale * direction.square().sum().item()] * 2, rel=1e-6)


def test_padding_beyond_a_sliding_window_spoils_nothing():
    model = tiny("gemma2")
    rows = [((3, 4), (5,)), (tuple(range(3, 20)), (7,))]
    together, alone = log_probabilities(model, rows), [log_probabilities(model, [row])[0] for row in rows]
    assert torch.cat(together).tolist() == pytest.approx(torch.cat(alone).tolist(), rel=1e-6)


def test_opening_tokens_are_put_before_a_prompt_once():
    model = model_of()
    assert prompt_ids(model, "no")[0] == 1
    model.tokenizer.encode = lambda text, add_special_tokens=True: (
        [1, 5] if text != "a" else ([1, 4] if add_special_tokens else [4])
    )
    assert prompt_ids(model, "<s>x") == (1, 5)


def test_what_follows_the_prompt_counts_as_generated():
    from interventions.where import Where

    model = tiny("gpt2")
    rows = [((1, 5, 6), (7, 8, 9))]
    plain = log_probabilities(model, rows)[0]
    edit = pushed(model, scale=10.0)
    with applied(model, edit.at(Where(prompt=None))):
        late = log_probabilities(model, rows)[0]
    with applied(model, edit.at(Where(generation=None))):
        early = log_probabilities(model, rows)[0]
    assert late[0].item() == pytest.approx(plain[0].item()) and (late[1:] != plain[1:]).all()
    assert early[0].item() != pytest.approx(plain[0].item())


# Confidence


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    draws = 2 + torch.randn(400, 40, generator=generator, dtype=torch.float64)
    found = [bootstrap(row, resamples=400, seed=i) for i, row in enumerate(draws)]
    share = sum(e.low <= 2 <= e.high for e in found) / len(found)
    assert 0.91 <= share <= 0.97


def test_intervals_of_several_runs_hold_the_truth_over_runs():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for i in range(200):
        runs = torch.randn(8, 1, generator=generator) + 0.2 * torch.randn(8, 30, generator=generator)
        e = bootstrap(runs, resamples=300, seed=i)
        hits += e.low <= 0 <= e.high
    assert 0.85 <= hits / 200 <= 0.97
    alone = bootstrap(runs[0])
    assert e.high - e.low > 2 * (alone.high - alone.low)


def test_an_interval_is_that_of_the_normal_approximation_for_many_items():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    e = bootstrap(values, resamples=4000)
    half = 1.96 * values.std().item() / 2000**0.5
    assert e.low == pytest.approx(values.mean().item() - half, abs=0.1 * half)
    assert e.high == pytest.approx(values.mean().item() + half, abs=0.1 * half)


def test_intervals_are_the_same_each_time_and_leave_out_what_is_missing():
    values = torch.tensor([1.0, 2.0, float("nan"), 4.0])
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values).n == 3 and bootstrap(values).mean == pytest.approx(7 / 3)
    assert bootstrap(torch.tensor([float("nan")])).n == 0
    one = bootstrap(torch.tensor([3.0]))
    assert one.mean == 3 and one.low != one.low and not one.clear
    assert bootstrap(torch.tensor([3.0, 3.1, 2.9])).clear


# Digests


def test_digests_tell_contents_apart():
    def score(k):
        return lambda text: len(text) > k

    values = [
        1, 1.0, "1", None, (1,), [1, 2], {"a": 1}, torch.ones(2), torch.ones(2, 1), torch.ones(2).double(),
        torch.ones(2).bfloat16(), Preference([("a", "b", "c")]), Preference([("a", "b", "d")]), score(1),
        score(2), max, Signs, Matching(ITEMS),
    ]  # fmt: skip
    found = [digest(value) for value in values]
    assert len(set(found)) == len(values)
    assert digest(score(1)) == digest(score(1)) and digest(torch.ones(2)) == digest(torch.ones(2))
    loop = Signs()
    loop.me = loop
    assert digest(loop) == digest(loop)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda m: Matching([]), ValueError, "no items"),
        (lambda m: Matching([("a", "b")]), TypeError, "An item is (prompt, match, other), not ('a', 'b')"),
        (lambda m: Matching([("is it (", "yes", "no")])(m), ValueError, "'yes' is not one token after"),
        (lambda m: Matching([("is it (", "A", "(A)")])(m), ValueError, "are the same token"),
        (lambda m: Matching([("is it (", "()", "A")])(m), ValueError, "'()' is no answer"),
        (lambda m: Preference([]), ValueError, "no items"),
        (lambda m: Preference(["a"]), TypeError, "An item is (prompt, answers, foils), not 'a'"),
        (lambda m: Preference([("is", [], "b")]), ValueError, "at least one answer and one foil"),
        (lambda m: Preference([("is", "", "b")]), ValueError, "none of them empty"),
        (
            lambda m: Preference([("is ", "A", "B")])(m),
            ValueError,
            "'A' does not continue 'is ' by whole known tokens",
        ),
        (lambda m: Preference([("is", "A", "B")], batch_size=0)(m), ValueError, "at least 1 row"),
        (lambda m: Divergence([]), ValueError, "no prompts"),
        (lambda m: Divergence("is it"), TypeError, "not one text"),
        (lambda m: prompt_ids(m, ()), ValueError, "at least one token"),
        (lambda m: prompt_ids(tiny("gpt2"), "no"), TypeError, "no tokenizer for texts such as 'no'"),
        (lambda m: log_probabilities(m, [((1,), ())]), ValueError, "at least one token of prompt"),
        (lambda m: Preference([("is", "Z", "B")])(m), ValueError, "'Z' does not continue 'is'"),
        (lambda m: bootstrap(torch.zeros(0)), ValueError, "at least one item, not (0,)"),
        (lambda m: bootstrap(torch.zeros(3), confidence=95), ValueError, "between 0 and 1"),
    ],
)
def test_every_error_says_what_was_given(make, error, words):
    with pytest.raises(error, match=re.escape(words)):
        make(model_of())


@pytest.mark.parametrize("family", ["mamba", "falcon_h1"])
def test_prompts_of_unequal_length_are_measured_under_a_change_of_state_as_alone(family):
    model = tiny(family)
    delta = read_state(model, torch.tensor([[5, 6, 7]])) - read_state(model, torch.tensor([[8, 9, 10]]))
    items = [((5, 9, 11, 7), 20, 21), ((30, 31), 20, 21), ((8, 8, 15), 20, 21)]
    with applied(model, AddState(delta, 2.0)):
        together = Preference(items)(model)
        alone = torch.cat([Preference([item])(model) for item in items])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together, Preference(items)(model))
