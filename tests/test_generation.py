import threading
import warnings

import pytest
import torch
from families import EVERY_FAMILY, VOCAB
from oracles import fresh, tiny
from torch import nn

from interventions import Add, Model, Where, applied

BATCH = torch.tensor([[5, 9, 11, 7, 20], [30, 31, 9, 33, 34], [8, 8, 15, 16, 9]])
GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "eos_token_id": None}


def by_hand(model, prompt, n=5):
    for _ in range(n):
        prompt = torch.cat([prompt, model.logits(prompt)[:, -1:].argmax(-1)], dim=1)
    return prompt


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_what_is_generated_follows_the_logits(family):
    model = tiny(family)
    for rows in (BATCH[:1], BATCH):
        written = torch.cat([by_hand(model, row[None]) for row in rows])
        assert torch.equal(model.generate(rows, **GREEDY), written)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(family, side):
    model, lengths = tiny(family), [5, 3, 2]
    mask = torch.tensor(
        [[0] * (5 - n) + [1] * n if side == "left" else [1] * n + [0] * (5 - n) for n in lengths]
    )
    out = model.generate(BATCH, mask, **GREEDY)
    for row, n in enumerate(lengths):
        prompt = BATCH[row][mask[row].bool()][None]
        assert torch.equal(out[row, 5:], by_hand(model, prompt)[0, n:])
        assert torch.equal(out[row, 5 - n : 5], prompt[0])


def test_ways_of_writing_are_found_by_trying():
    ways = {family: tiny(family).writes for family in ("llama", "rwkv", "recurrent_gemma", "mamba")}
    assert ways["llama"] == ways["mamba"] == "padded"
    assert ways["rwkv"] == "single"
    assert ways["recurrent_gemma"] in ("equal", "single")


def test_a_module_that_keeps_its_last_text_starts_anew():
    model = tiny("recurrent_gemma")
    assert model.lingers and not tiny("mamba").lingers
    first = model.generate(BATCH[:1], **GREEDY)
    model.generate(BATCH[1:2], **GREEDY)
    assert torch.equal(model.generate(BATCH[:1], **GREEDY), first)


class Recurrent(nn.Module):
    """A module of one's own, without `generate`."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 32)
        self.layers = nn.ModuleList([nn.GRU(32, 32, batch_first=True) for _ in range(2)])
        self.head = nn.Linear(32, VOCAB)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)[0]
        return self.head(x)


def own() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model.load(Recurrent().double())


def test_a_module_without_generate_writes_too():
    model = own()
    asked = {"max_new_tokens": 5, "do_sample": False}
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0]])
    out = model.generate(BATCH, mask, **asked)
    for row in range(3):
        prompt = BATCH[row][mask[row].bool()][None]
        assert torch.equal(out[row, 5:], by_hand(model, prompt)[0, prompt.shape[1] :])
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0)).double() * 3
    edit = Add({"resid.0": direction}).at(Where(prompt=None, generation=[1]))
    with applied(model, edit):
        out = model.generate(BATCH, **asked)
    with applied(model, edit, prompt=5):
        again = model.logits(out[:, :-1])[:, 4:].argmax(-1)
    assert torch.equal(out[:, 5:], again)
    assert not torch.equal(out, model.generate(BATCH, **asked))


def test_a_module_without_generate_samples_and_stops():
    model = own()
    torch.manual_seed(0)
    out = model.generate(BATCH, max_new_tokens=200, do_sample=True, temperature=2.0, top_k=10, eos_token_id=7)
    for row in out[:, 5:].tolist():
        if 7 in row:
            assert set(row[row.index(7) :]) == {7}
    greedy = model.generate(BATCH, max_new_tokens=5)
    assert torch.equal(model.generate(BATCH, max_new_tokens=5, do_sample=True, top_k=1), greedy)


class Words:
    """A tokenizer of numbers; token 1 opens a text."""

    eos_token_id = pad_token_id = 2
    all_special_ids = (1, 2)

    def encode(self, text, add_special_tokens=True):
        return [1] * add_special_tokens + [int(word) for word in text.split()]

    def decode(self, ids):
        return "".join(f" {int(i)}" for i in ids)


TEXTS = ["5 9 11", "30 31 9 33 34", "8"]


@pytest.mark.parametrize("family", ["gpt2", "rwkv", "recurrent_gemma"])
def test_texts_are_completed_as_each_is_alone(family):
    model = fresh(family)
    model.tokenizer = Words()
    together = model.complete(TEXTS, **GREEDY, batch_size=2, progress=False)
    assert together == [model.complete(text, **GREEDY) for text in TEXTS]
    expected = by_hand(model, torch.tensor([[1, 5, 9, 11]]))[0, 4:].tolist()
    assert together[0].split() == [str(i) for i in expected if i > 2]


@pytest.mark.parametrize("family", ["gpt2", "rwkv", "recurrent_gemma"])
@pytest.mark.parametrize("batch_size", [2, 8])
def test_rows_of_an_intervention_are_the_texts_in_their_order(family, batch_size):
    model = fresh(family)
    model.tokenizer = Words()
    edit = Add({"resid.1": 3 * torch.randn(32, generator=torch.Generator().manual_seed(1)).double()})
    with applied(model, edit.at(Where(rows=[2]))):
        some = model.complete(TEXTS, **GREEDY, batch_size=batch_size)
    with applied(model, edit):
        every = model.complete(TEXTS, **GREEDY)
    assert some[:2] == model.complete(TEXTS[:2], **GREEDY)
    assert some[2] == every[2] != model.complete(TEXTS[2], **GREEDY)


@pytest.mark.parametrize(
    "model", [lambda: fresh("gpt2"), lambda: fresh("rwkv"), own], ids=["gpt2", "rwkv", "own"]
)
def test_a_stream_adds_up_to_the_whole(model):
    model = model()
    model.tokenizer = Words()
    asked = {"max_new_tokens": 6, "do_sample": False}
    with applied(model, Add({"resid.0": torch.ones(32).double()})):
        pieces = list(model.stream("5 9", **asked))
        assert "".join(pieces) == model.complete("5 9", **asked)
    assert len(pieces) > 3


def test_a_stream_that_is_left_ends_its_thread_and_one_that_fails_says_why():
    model = fresh("gpt2")
    model.tokenizer = Words()
    before = threading.active_count()
    for _ in model.stream("5 9", max_new_tokens=50, do_sample=False):
        break
    with pytest.raises(ValueError, match="temperature"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(model.stream("5 9", max_new_tokens=5, do_sample=True, temperature=-1.0))
    assert threading.active_count() == before


def test_bad_prompts_say_what_is_wrong():
    model = fresh("gpt2")
    with pytest.raises(ValueError, match="no tokenizer: pass tokens to `generate`"):
        model.complete("x")
    with pytest.raises(ValueError, match=r"at least one to go on from; got \(1, 0\)"):
        model.generate(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="a number for each token, and a 1 in every row"):
        model.generate(BATCH, torch.zeros_like(BATCH))
    model.tokenizer = Words()
    model.tokenizer.encode = lambda text, add_special_tokens=True: []
    with pytest.raises(ValueError, match="the text is empty, and the tokenizer opens none"):
        model.complete("")


@pytest.mark.parametrize("place", [Where(prompt=-1, generation=None), Where(prompt=[1], generation=[0, 2])])
def test_a_prompt_of_embeddings_is_told_from_what_is_generated(place):
    model = tiny("llama")
    edit = Add({"resid.1": 3 * torch.ones(32).double()}).at(place)
    embeds = model.module.get_input_embeddings()(BATCH)
    mask = torch.ones_like(BATCH)
    with applied(model, edit):
        wanted = model.generate(BATCH, **GREEDY)
        for cached in (True, False):
            out = model.module.generate(
                inputs_embeds=embeds, attention_mask=mask, use_cache=cached, pad_token_id=0, **GREEDY
            )
            assert torch.equal(out[:, -5:], wanted[:, -5:])


def test_a_prompt_of_fewer_than_no_tokens_is_refused():
    model = tiny("gpt2")
    with pytest.raises(ValueError, match="no fewer than 0 tokens"), model.following(-1):
        pass


@pytest.mark.parametrize("family", ["llama", "rwkv"])
def test_what_is_written_begins_after_the_prompts_columns_wherever_the_padding_is(family):
    model = tiny(family)
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]])
    out = model.generate(BATCH[:2], mask, **GREEDY)
    for row in range(2):
        prompt = BATCH[row][mask[row].bool()][None]
        assert torch.equal(out[row, 5:], by_hand(model, prompt)[0, prompt.shape[1] :])
