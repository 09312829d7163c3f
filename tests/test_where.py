import functools

import pytest
import torch
from families import EVERY_FAMILY
from oracles import fresh, tiny, tolerance

from interventions import (
    Ablate,
    Add,
    Condition,
    Linear,
    PerRow,
    Where,
    after,
    applied,
    end_of,
    matching,
    span,
    within,
)
from interventions.passage import Passage

PROMPT = torch.tensor([[5, 9, 11, 7, 20]])
BATCH = torch.tensor([[5, 9, 11, 7, 20], [30, 31, 9, 33, 34], [8, 8, 15, 16, 9]])
NEW = 4


def direction(seed: int = 3, size: float = 2.0) -> torch.Tensor:
    return size * torch.randn(32, generator=torch.Generator().manual_seed(seed)).double()


def add(site: str = "resid.1", seed: int = 3, size: float = 2.0) -> Add:
    return Add({site: direction(seed, size)})


PLACES = {
    "everywhere": Where(),
    "the prompt": Where(generation=None),
    "what is generated": Where(prompt=None),
    "writing": Where.writing(),
    "single tokens": Where(prompt=[0, 3], generation=[1, 2]),
    "slices": Where(prompt=slice(1, -1), generation=slice(1, None)),
    "tokens": Where(prompt=~matching(9, 11), generation=~matching(1, 2, 3)),
    "a condition": Where(when=Condition({"resid.0": direction(5)}, above=0.0)),
    "a condition on the prompt": Where(when=Condition({"embed": direction(6)}, above=0.0, over="prompt")),
}


def generated(model, prompt, **options):
    asked = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    return model.generate(prompt, return_dict_in_generate=True, output_logits=True, **asked, **options)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("place", PLACES)
def test_generation_with_a_cache_without_one_and_a_single_pass_agree(family, place):
    model = tiny(family)
    edit = add().at(PLACES[place], schedule=Linear(1.0, 0.2, tokens=3)) | Ablate({"resid.0": [1, 2]})
    close = tolerance(family) if "next" in family else {"rtol": 1e-4, "atol": 1e-4}
    with applied(model, edit, prompt=PROMPT.shape[1]):
        out = generated(model, PROMPT)
        cached = torch.stack(out.logits, 1).double()
        again = model.logits(out.sequences[:, :-1])[:, PROMPT.shape[1] - 1 :]
        steps = [
            model.logits(out.sequences[:, :n])[:, -1] for n in range(PROMPT.shape[1], out.sequences.shape[1])
        ]
    torch.testing.assert_close(torch.stack(steps, 1), again, **close)
    torch.testing.assert_close(cached, again.double(), **close)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_rows_of_a_padded_batch_are_written_as_they_are_alone(family):
    model = tiny(family)
    mask = torch.ones_like(BATCH)
    mask[1, :2] = mask[2, :3] = 0
    edit = add().at(Where(prompt=-1, generation=[0, 2])) | add("resid.0", 4).at(Where(rows=[1]))
    with applied(model, edit):
        together = model.generate(BATCH, mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    for row in range(3):
        alone = add().at(Where(prompt=-1, generation=[0, 2]))
        with applied(model, *([alone, add("resid.0", 4)] if row == 1 else [alone])):
            prompt = BATCH[row : row + 1, 5 - int(mask[row].sum()) :]
            out = model.generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
        assert torch.equal(together[row, 5:], out[0, prompt.shape[1] :])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_are_steered_as_passes_over_what_they_wrote(options):
    model = tiny("llama")
    edit = PerRow([add(), None, add(seed=9)]).at(Where(prompt=-1, generation=[0, 1]))
    with applied(model, edit):
        cached = model.generate(BATCH, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options)
        uncached = model.generate(
            BATCH, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=False, **options
        )
    assert torch.equal(cached, uncached)
    with applied(model, add(seed=9).at(Where(prompt=-1, generation=[0, 1]))):
        last = model.generate(BATCH[2:], max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options)
    copies = options.get("num_return_sequences", 1)
    assert torch.equal(cached[2 * copies :], last)


def test_samples_under_an_intervention_are_the_same_with_and_without_a_cache():
    model, outs = tiny("gpt2"), []
    for cache in (True, False):
        torch.manual_seed(0)
        with applied(model, add().at(Where.writing())):
            outs.append(model.generate(BATCH, max_new_tokens=6, do_sample=True, top_k=0, use_cache=cache))
    assert torch.equal(*outs)


def test_each_row_has_its_own_intervention():
    model = tiny("llama")
    with applied(model, PerRow([add(), None, add(seed=9) | add("resid.0", 2)])):
        together = model.logits(BATCH)
    torch.testing.assert_close(together[1:2], model.logits(BATCH[1:2]))
    with applied(model, add(seed=9), add("resid.0", 2)):
        torch.testing.assert_close(together[2:], model.logits(BATCH[2:]))
    with (
        pytest.raises(ValueError, match="PerRow has 3 rows, but the batch has 1"),
        applied(model, PerRow([add()] * 3)),
    ):
        model.logits(PROMPT)


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids, **_):
        return "".join(chr(97 + i) for i in ids)

    def encode(self, text, add_special_tokens=True):
        return [ord(c) - 97 for c in text]


def touched(where, text, prompt, start=0):
    ids = torch.tensor([[ord(c) - 97 for c in text]])
    letters = Letters()
    passage = Passage(ids, None, start, ids.shape[1], torch.tensor([prompt]))
    found = where.touched(
        passage, torch.zeros(1, ids.shape[1] - start, 2), {}, lambda i: letters.decode(i.tolist())
    )
    if found is None:
        return text[start:]
    return "".join(c for c, on in zip(text[start:], found[0].tolist(), strict=True) if on)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Where(), "abcabcdefg"),
        (Where(prompt=None), "defg"),
        (Where(generation=None), "abcabc"),
        (Where(prompt=-1, generation=0), "cd"),
        (Where(prompt=[0, -2], generation=range(1, 3)), "abef"),
        (Where(prompt=slice(None, None, 2), generation=slice(2, None)), "acbfg"),
        (Where(prompt=after("b"), generation=None), "cabc"),
        (Where(prompt=after("bc"), generation=after("e")), "abcfg"),
        (Where(prompt=within("ab"), generation=end_of("de")), "ababe"),
        (Where(prompt=end_of("ab") | matching("c"), generation=None), "bcbc"),
        (Where(prompt=~matching("a", "c"), generation=None), "bb"),
        (Where(prompt=after("a") & matching(lambda text: text in "ab"), generation=None), "bab"),
        (Where(prompt=~span(1, 3), generation=None), "aabc"),
        (Where(prompt=after("nowhere")), "defg"),
    ],
)
def test_a_clause_means_these_tokens(where, expected):
    assert touched(where, "abcabcdefg", 6) == expected


def test_a_cached_step_sees_what_stands_before_it():
    assert touched(Where(prompt=None, generation=after("de")), "abcabcdefg", 6, start=9) == "g"
    assert touched(Where(prompt=None, generation=[2]), "abcabcdefg", 6, start=8) == "f"


def test_positions_do_not_count_padding():
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    passage = Passage(ids, mask, 0, 5)
    found = Where(prompt=[0, -2]).touched(passage, torch.zeros(2, 5, 2), {})
    assert found.int().tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Where(generation=-1), "generation=last: of a generated token it is not known"),
        (lambda: Where(generation=within("x")), "generation=within 'x': of a generated token"),
        (lambda: Where(prompt="last"), "prompt='last' is no clause: give 'all', None, a position"),
        (lambda: Where(rows=[-1]), "rows are counted from 0"),
        (lambda: Condition({"a": direction()}), "needs one threshold"),
        (lambda: Condition({"a": direction(), "b": direction()}, above=0.1), "reads one site, not"),
        (lambda: touched(Where(prompt=7), "abc", 3), "Position 7 is out of range: there is a prompt of 3"),
        (lambda: touched(Where(prompt=-4), "abc", 3), "Position -4 is out of range: there is a prompt of 3"),
        (lambda: touched(Where(rows=[4]), "abc", 3), "Row 4 is out of range: the batch has 1 rows"),
        (lambda: touched(Where(prompt=after("")), "abc", 3), "An empty text stands everywhere"),
    ],
)
def test_a_place_that_cannot_be_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_clause_about_text_needs_a_tokenizer():
    model = tiny("gpt2")
    with (
        pytest.raises(ValueError, match="needs a tokenizer; this model has none"),
        applied(model, add().at(Where(after("a")))),
    ):
        model.logits(PROMPT)


def test_a_condition_decides_for_each_text_by_its_prompt():
    model = tiny("llama")
    embed = model.read(BATCH, ["embed"])[model.site("embed")].mean(1)
    with applied(model, add().at(Where(when=Condition({"embed": embed[1]}, above=0.95, over="prompt")))):
        one = model.logits(BATCH)
        out = model.generate(BATCH, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    plain = model.logits(BATCH)
    torch.testing.assert_close(one[[0, 2]], plain[[0, 2]])
    with applied(model, add()):
        torch.testing.assert_close(one[1:2], model.logits(BATCH[1:2]))
        steered = model.generate(BATCH[1:2], max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    assert torch.equal(out[1:2], steered)
    assert torch.equal(
        out[:1], model.generate(BATCH[:1], max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    )


def test_a_condition_may_not_hang_on_what_comes_later():
    model = tiny("gpt2")
    later = add("resid.0").at(Where(when=Condition({"resid.2": direction()}, above=0.0)))
    late = pytest.raises(ValueError, match=r"hangs on resid\.2, which the model computes only after resid\.0")
    with late, applied(model, later):
        pass


def test_a_condition_may_hang_on_what_comes_after_another_part():
    model = tiny("gpt2")
    met = add("resid.2", 4).at(Where(when=Condition({"resid.1": direction(5)}, above=-1.0)))
    with applied(model, add("resid.0"), add("resid.2", 4)):
        wanted = model.logits(PROMPT)
    for edit in (add("resid.0") | met, PerRow([add("resid.0") | met]), (add("resid.0") | met).at(Where())):
        with applied(model, edit):
            torch.testing.assert_close(model.logits(PROMPT), wanted)


def test_explaining_shows_what_is_touched():
    model = fresh("llama")
    model.tokenizer = Letters()
    edit = add().at(Where(prompt=end_of("bc"), generation=[0, 2])) | add("resid.0").at(
        Where(prompt=0, generation=None)
    )
    shown = edit.explain(model, "abcd", max_new_tokens=4)
    assert shown.touched["resid.1"].tolist() == [False, False, True, False, True, False, True, False]
    assert "resid.0: 1 of 8 tokens\n  [a]bcd → " in str(shown)
    assert "resid.0" in str(add("resid.0").explain(model, "abcd"))
    assert str(add("resid.2").explain(model, "abcd")).endswith("[a][b][c][d]")


class Bytes:
    """A tokenizer of one byte a token, as byte fallback is."""

    all_special_ids = ()
    eos_token_id = None

    def encode(self, text, add_special_tokens=True):
        return list(text.encode())

    def decode(self, ids):
        """Every byte that is part of no character is a stand-in of its own."""
        out, at = "", 0
        while at < len(ids):
            for n in (1, 2, 3, 4):
                try:
                    out, at = out + bytes(ids[at : at + n]).decode(), at + n
                    break
                except UnicodeDecodeError:
                    continue
            else:
                out, at = out + "\ufffd", at + 1
        return out


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (within("é"), [1, 2]),
        (end_of("é"), [2]),
        (end_of("😀"), [7]),
        (within("x"), [3]),
        (end_of("x"), [3]),
        (after("😀"), [8, 9]),
        (within("yz"), [8, 9]),
    ],
)
def test_characters_of_several_tokens_are_found_whole(tokens, expected):
    ids = torch.tensor([Bytes().encode("aéx😀yz")])
    found = Where(tokens).touched(
        Passage(ids, None, 0, 10), torch.zeros(1, 10, 2), {}, lambda i: Bytes().decode(i.tolist())
    )
    assert found[0].nonzero()[:, 0].tolist() == expected


def test_a_character_of_several_tokens_is_shown_once():
    model = fresh("gpt2")
    model.tokenizer = Bytes()
    model.logits = lambda ids: type(model).logits(model, ids % 64)
    shown = add().explain(model, "aéx")
    assert shown.tokens == ("a", "", "é", "x")


def test_a_condition_may_be_any_callable():
    condition = functools.partial(lambda least, x, _: x[..., 0] > least, 0.0)
    assert "when functools.partial(" in repr(Where(when=condition))


def test_following_leaves_the_module_as_it_was():
    model = tiny("gpt2")
    before = set(vars(model.module)), len(model.module._forward_pre_hooks)
    with pytest.raises(ZeroDivisionError), applied(model, add().at(Where(prompt=0))):
        assert "generate" in vars(model.module)
        1 / 0  # noqa: B018
    assert (set(vars(model.module)), len(model.module._forward_pre_hooks)) == before
    assert model.passage is None


def test_a_pass_that_goes_on_from_a_state_by_hand_must_say_how_much_was_read():
    model = tiny("mamba")
    cache = model.module(PROMPT, use_cache=True).cache_params
    late = pytest.raises(
        ValueError, match="nothing says how much was read before: give it an `attention_mask`"
    )
    with late, applied(model, add().at(Where(prompt=6))):
        model.module(PROMPT[:, :1], cache_params=cache, use_cache=True)
