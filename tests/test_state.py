"""What recurrent models carry: read, resumed, and left where it was. In float64."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict

import families
import pytest
import torch
from recurrent_families import EVERY_RECURRENT, RECURRENT, Recurrent, float64_throughout, fresh, tiny, tokens
from torch import nn

from interventions import Layout, Model
from interventions.recurrence import State, advance, read_state, resume, states
from interventions.recurrence.finding import carrier

# What is left to rounding: some models make float32 tensors of their own accord, whatever their weights are;
# Zamba2 bounds its time steps only where it reads several tokens at once.
EXACT = {"jamba": 1e-6, "qwen3_next": 1e-5, "qwen3_5_text": 1e-5, "olmo_hybrid": 1e-5, "zamba2": 1e-4}
TOKENS = tokens(3, 9)


def _same(x, y, family):
    torch.testing.assert_close(x.double(), y.double(), rtol=0, atol=EXACT.get(family, 1e-6))


@pytest.mark.parametrize("family", EVERY_RECURRENT)
def test_every_resume_is_the_unbroken_pass(family):
    model = tiny(family)
    with float64_throughout(), torch.no_grad():
        whole = model.logits(TOKENS)
        for cut in (1, 2, 5, 8):
            logits = resume(model, read_state(model, TOKENS[:, :cut]), TOKENS[:, cut:])
            _same(logits, whole[:, cut:], family)


@pytest.mark.parametrize("family", RECURRENT)
def test_a_resumed_state_is_resumed_again(family):
    model = tiny(family)
    with float64_throughout(), torch.no_grad():
        whole, state, logits = model.logits(TOKENS), read_state(model, TOKENS[:, :2]), []
        for piece in TOKENS[:, 2:].split([3, 1, 1, 2], dim=1):
            out, state = advance(model, state, piece)
            logits.append(out)
        _same(torch.cat(logits, dim=1), whole[:, 2:], family)
        assert state.length == 9
        for name, x in read_state(model, TOKENS).items():
            _same(state[name], x, family)


@pytest.mark.parametrize("family", RECURRENT)
def test_the_state_of_a_batch_is_that_of_its_rows(family):
    model = tiny(family)
    state = read_state(model, TOKENS)
    rows = [read_state(model, row[None]) for row in TOKENS]
    for name, x in state.items():
        _same(x, torch.cat([row[name] for row in rows]), family)
    logits = resume(model, State.joined(reversed(rows)), TOKENS.flip(0)[:, :2])
    _same(logits, resume(model, state, TOKENS[:, :2]).flip(0), family)
    _same(resume(model, state.rows([2, 0]), TOKENS[[2, 0], :2]), logits[[0, 2]], family)


@pytest.mark.parametrize("family", RECURRENT)
def test_reading_and_resuming_leave_the_model_as_it_was(family):
    model = tiny(family)

    def held():
        return {
            (path, name): value if not isinstance(value, torch.Tensor) else value.clone()
            for path, m in model.module.named_modules()
            for name, value in vars(m).items()
            if value is None or isinstance(value, torch.Tensor | bool | int)
        } | {(path, "hooks"): len(m._forward_hooks) + len(m._forward_pre_hooks)
             for path, m in model.module.named_modules()}  # fmt: skip

    carrier(model)
    before = held()
    resume(model, read_state(model, TOKENS[:, :4]), TOKENS[:, 4:])
    list(states(model, TOKENS[:1, :3]))
    after = held()
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key]
        assert same, key


@pytest.mark.parametrize("family", ["mamba", "rwkv", "recurrent_gemma", "zamba2", "lstm"])
def test_the_state_after_every_token_is_that_of_the_prefix(family):
    model = tiny(family)
    for n, state in enumerate(states(model, TOKENS[:, :4]), start=1):
        assert state.length == n
        for name, x in read_state(model, TOKENS[:, :n]).items():
            # Zamba2, again: a time step that is bounded in a chunk and not in a step.
            torch.testing.assert_close(state[name], x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["mamba", "rwkv", "recurrent_gemma", "xlstm", "gru"])
def test_rows_of_any_length_are_read_without_their_padding(family):
    model, rows = tiny(family), [TOKENS[0, :4], TOKENS[1, :2], TOKENS[2, :4], TOKENS[0, :1]]
    state = read_state(model, rows)
    assert state.lengths == (4, 2, 4, 1) and state.length is None
    padded, mask = torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long)
    padded[0], mask[0] = rows[0], 1
    padded[1, 2:], mask[1, 2:] = rows[1], 1
    left = read_state(model, padded, mask)
    right = read_state(model, [padded[0], padded[1].roll(2)], None)
    for name, x in state.items():
        for i, row in enumerate(rows):
            _same(x[i], read_state(model, row[None])[name][0], family)
        _same(left[name], x[:2], family)
    assert right.lengths == (4, 4)
    with pytest.raises(ValueError, match="different numbers of tokens"):
        resume(model, state, TOKENS[[0, 1, 2, 0], :1])


def test_many_rows_are_read_in_batches_in_their_order():
    model, rows = tiny("mamba"), tokens(7, 5)
    state, parts = read_state(model, rows), read_state(model, rows, batch_size=3)
    assert parts.batch == 7
    for name, x in state.items():
        _same(parts[name], x, "mamba")
    _same(resume(model, parts, rows[:, :2]), resume(model, state, rows[:, :2]), "mamba")


def test_one_state_goes_with_many_continuations():
    model, prefix = tiny("falcon_h1"), TOKENS[:1, :5]
    logits = resume(model, read_state(model, prefix), TOKENS[:, 5:])
    whole = model.logits(torch.cat([prefix.expand(3, -1), TOKENS[:, 5:]], dim=1))
    _same(logits, whole[:, 5:], "falcon_h1")


def test_what_models_do_wrong_of_themselves_is_found_out():
    ways = {family: carrier(tiny(family)) for family in ("mamba", "falcon_mamba", "jamba", "recurrent_gemma")}
    assert not any(way.chunks for way in ways.values())  # several tokens at once would forget the state
    assert carrier(tiny("mamba2")).chunks and carrier(tiny("rwkv")).chunks
    assert not carrier(tiny("rwkv")).rows and carrier(tiny("mamba")).rows
    mamba = tiny("mamba").module
    cache = mamba(TOKENS[:, :5], use_cache=True).cache_params
    wrong = mamba(TOKENS[:, 5:], cache_params=cache, use_cache=True).logits
    assert (wrong - tiny("mamba").logits(TOKENS)[:, 5:]).abs().max() > 0.01


def test_state_that_lies_on_the_modules_of_a_model_is_not_mixed_up():
    model = tiny("recurrent_gemma")
    model.module(TOKENS, use_cache=True)  # somebody else's text
    block = model.module.model.layers[0].temporal_block
    left = block.conv1d_state
    assert left is not None
    state = read_state(model, TOKENS[:, :1])
    _same(resume(model, state, TOKENS[:, 1:]), model.logits(TOKENS)[:, 1:], "recurrent_gemma")
    block.conv1d_state = left
    read_state(model, TOKENS[:, :3])
    assert block.conv1d_state is left


def test_modules_of_torch_keep_their_own_ways():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 8, num_layers=2, proj_size=5)  # (pos batch width)
            self.out = nn.Linear(5, 8)

        def forward(self, x):
            return self.out(self.lstm(x.transpose(0, 1))[0].transpose(0, 1))

    torch.manual_seed(0)
    module = nn.Sequential(
        OrderedDict(embed=nn.Embedding(16, 8), blocks=nn.Sequential(Turned()), head=nn.Linear(8, 16))
    )
    model = Model.load(module, layout=Layout(blocks="blocks", embed="embed"))
    state = read_state(model, TOKENS[:, :5] % 16)
    assert {name: tuple(x.shape) for name, x in state.items()} == {
        "h.0": (3, 5), "h.1": (3, 5), "c.0": (3, 8), "c.1": (3, 8),
    }  # fmt: skip
    whole = model.logits(TOKENS % 16)
    torch.testing.assert_close(resume(model, state, TOKENS[:, 5:] % 16), whole[:, 5:])


def test_a_state_that_is_handed_about_in_the_open_is_found_in_the_modules():
    class Open(Recurrent):
        def forward(self, tokens, state=None):
            x, ends = 10 * self.embed(tokens), []
            for layer, begin in zip(self.layers, state or [None, None], strict=True):
                x, end = layer(x, begin)
                ends.append(end)
            return self.head(x), ends

    torch.manual_seed(0)
    model = Model.load(Open(nn.GRU))
    logits = resume(model, read_state(model, TOKENS[:, :4]), TOKENS[:, 4:])
    torch.testing.assert_close(logits, model.logits(TOKENS)[:, 4:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["mamba", "mamba2", "rwkv", "recurrent_gemma"])
def test_the_ways_of_going_on_are_the_same_in_coarse_numbers(family, dtype):
    fine, coarse = carrier(tiny(family)), carrier(families.tiny(family, dtype))
    assert (coarse.chunks, coarse.rows, coarse.names) == (fine.chunks, fine.rows, fine.names)
    assert [c.scale for c in coarse.couples] == [c.scale for c in fine.couples]


@pytest.mark.parametrize("family", ["mamba", "rwkv", "xlstm", "jamba", "lstm"])
def test_what_is_known_of_a_model_does_not_keep_it_alive(family):
    model = fresh(family)
    carrier(model)
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("family", ["mamba", "jamba", "rwkv"])
@pytest.mark.filterwarnings("ignore:.*sums of weights")
def test_one_state_goes_with_many_differences(family):
    model = tiny(family)
    state = read_state(model, TOKENS[:1, :4])
    delta = read_state(model, TOKENS[:, :3]) - read_state(model, TOKENS[:, 3:6])
    moved = state + delta
    assert moved.lengths == (4, 4, 4)
    for i in range(3):
        alone = resume(model, state + delta.rows([i]), TOKENS[i : i + 1, 4:])
        _same(resume(model, moved, TOKENS[:, 4:])[i], alone[0], family)


@pytest.mark.parametrize("family", ["jamba", "xlstm"])
def test_rows_of_a_state_from_a_file_are_joined_with_others_and_resumed(family, tmp_path):
    model = tiny(family)
    state, whole = read_state(model, TOKENS[:, :4]), model.logits(TOKENS)
    state.save(tmp_path)
    loaded = State.load(tmp_path)
    mixed = State.joined([loaded.rows([2, 0]), state.rows([1])])
    _same(resume(model, mixed, TOKENS[[2, 0, 1], 4:]), whole[[2, 0, 1], 4:], family)


# What cannot be done, said early


def test_a_transformer_is_told_what_has_a_state():
    with pytest.raises(ValueError, match=r"Llama.* has no recurrent state: what it carries grows.*Mamba"):
        read_state(tiny("llama"), TOKENS)


def test_a_model_that_cannot_be_resumed_is_refused():
    class Twice(Recurrent):
        """Reads its text again from the end of it: no state after a prefix says what comes."""

        def forward(self, tokens):
            x = 10 * self.embed(tokens)
            x = self.layers[0](x + x.mean(1, keepdim=True))[0]
            return self.head(self.layers[1](x)[0])

    torch.manual_seed(0)
    with pytest.raises(ValueError, match="goes on from its own state otherwise than in an unbroken pass"):
        read_state(Model.load(Twice(nn.GRU)), TOKENS)

    class Both(Recurrent):
        def __init__(self):
            super().__init__(nn.GRU)
            self.layers = nn.ModuleList([nn.GRU(32, 16, batch_first=True, bidirectional=True)])

    with pytest.raises(ValueError, match=r"cannot be stopped and resumed .it reads its text from both ends"):
        read_state(Model.load(Both()), TOKENS)


def test_states_of_other_models_and_parts_of_states_are_refused():
    model, state = tiny("mamba"), read_state(tiny("mamba"), TOKENS)
    other = read_state(tiny("mamba2"), TOKENS)
    with pytest.raises(ValueError, match="of another model"):
        resume(model, other, TOKENS)
    with pytest.raises(ValueError, match="different models"):
        state - other
    with pytest.raises(ValueError, match="cannot be joined"):
        State.joined([state, other])
    with pytest.raises(ValueError, match=r"cannot be joined to .*: one is a difference"):
        State.joined([state, state - state])
    with pytest.raises(ValueError, match="No row is named"):
        state.rows([])
    with pytest.raises(ValueError, match=r"lacks conv\.0"):
        resume(model, state.only("recurrent.*"), TOKENS)
    with pytest.raises(ValueError, match="add it to a state"):
        resume(model, state - state, TOKENS)
    with pytest.raises(ValueError, match="3 rows and the tokens 2"):
        resume(model, state, TOKENS[:2])
    with pytest.raises(LookupError, match=r"No 'recurrent\.7'.*conv\.0 to conv\.2, recurrent\.0"):
        state["recurrent.7"]
    with pytest.raises(LookupError, match=r"No 'ssm\.\*'"):
        state.only("ssm.*")
    with pytest.raises(ValueError, match="Row 3 is out of range: the state has 3 rows"):
        state.rows([3])
    with pytest.raises(ValueError, match="state of 2 rows does not fit one of 3"):
        state - state.rows([0, 1])
    with pytest.raises(ValueError, match=r"conv\.0 has shape \(3, 64, 4\)"):
        state.replaced({"conv.0": torch.zeros(1)})
    with pytest.raises(ValueError, match="Row 1 has no tokens"):
        read_state(model, [[1, 2], []])
    with pytest.raises(TypeError, match="not text"):
        read_state(model, ["once upon a time"])
    with pytest.raises(TypeError, match="not float"):
        state + 1.0


def test_the_mean_of_a_hybrid_s_states_is_patched_in_not_resumed():
    state = read_state(tiny("jamba"), TOKENS)
    with pytest.raises(
        ValueError, match=r"has no cache/layers/1/.*a mean of states can be patched in, but not resumed"
    ):
        resume(tiny("jamba"), state.mean(), TOKENS[:1])
