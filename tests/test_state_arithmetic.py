"""States are added, scaled, averaged, selected and saved as the numbers that they stand for. In float64."""

from __future__ import annotations

import json

import pytest
import torch
from recurrent_families import tiny, tokens

from interventions.recurrence import State, read_state, resume
from interventions.recurrence.couples import Couple

TOKENS = tokens(3, 7)
COUPLE = Couple("max.0", ("num.0", "den.0"), "den.0")


def _numbers(state: State) -> dict[str, torch.Tensor]:
    """What the tensors stand for: `part * exp(scale)`, multiplied out."""
    scaled = {part: couple.scale for couple in state.couples for part in couple.parts}
    scales = set(scaled.values())
    return {
        name: x * state[scaled[name]].exp().reshape(*state[scaled[name]].shape, *[1] * (x.ndim - y.ndim))
        if name in scaled
        else x
        for name, x in state.items()
        for y in [state[scaled.get(name, name)]]
        if name not in scales
    }


def _equal(state: State, numbers: dict[str, torch.Tensor]) -> None:
    mine = _numbers(state)
    assert mine.keys() == numbers.keys()
    for name, x in mine.items():
        torch.testing.assert_close(x, numbers[name], rtol=1e-9, atol=1e-12)


def _rwkv(num: float, den: float, scale: float) -> State:
    each = {"num.0": num, "den.0": den, "max.0": scale}
    tensors = {name: torch.full((1, 2), x, dtype=torch.float64) for name, x in each.items()}
    return State(tensors, "a model", (4,), (COUPLE,))


@pytest.mark.parametrize("family", ["rwkv", "xlstm", "mamba", "lstm"])
def test_arithmetic_is_that_of_the_numbers(family):
    model = tiny(family)
    a, b = (read_state(model, tokens(3, 6, seed)).map(torch.Tensor.double) for seed in (1, 2))
    x, y = _numbers(a), _numbers(b)
    _equal(a - b, {name: x[name] - y[name] for name in x})
    _equal(0.5 * (a - b) / 2 + -b * 0.25, {n: 0.25 * (x[n] - y[n]) - 0.25 * y[n] for n in x})
    _equal(a.mean(), {name: x[name].mean(0, keepdim=True) for name in x})
    both = State.joined([a, b])
    _equal(both.mean(), {name: torch.cat([x[name], y[name]]).mean(0, keepdim=True) for name in x})
    _equal(a.moved(b - b.mean(), 0.01), {n: x[n] + 0.01 * (y[n] - y[n].mean(0, keepdim=True)) for n in x})
    assert (a - b).lengths == () and a.mean().lengths == (6,)


@pytest.mark.parametrize("family", ["rwkv", "xlstm"])
def test_a_state_written_at_another_scale_is_the_same_state(family):
    model = tiny(family)
    state = read_state(model, TOKENS[:, :5])
    assert state.couples
    other = state + 0.0 * state.replaced({c.scale: state[c.scale] + 1.5 for c in state.couples})
    assert all((other[couple.scale] > state[couple.scale] + 1).all() for couple in state.couples)
    with torch.no_grad():
        torch.testing.assert_close(
            resume(model, other, TOKENS[:, 5:]), resume(model, state, TOKENS[:, 5:]), rtol=0, atol=1e-5
        )


def test_the_numbers_may_be_far_apart_and_the_state_empty():
    empty, far, near = _rwkv(0.0, 0.0, -1e38), _rwkv(3.0, 2.0, 300.0), _rwkv(3.0, 2.0, -2.0)
    for state in (far, near):
        moved = empty + (state - empty)
        _equal(moved, _numbers(state))
        for x in (moved, state - empty, State.joined([empty, state]).mean()):
            assert all(bool(v.isfinite().all()) for v in x.values())
    assert torch.equal((far - near)["max.0"], far["max.0"])
    assert torch.equal((empty + 0.0 * far)["den.0"], torch.zeros(1, 2, dtype=torch.float64))


def test_sums_of_weights_stay_positive():
    base, delta = _rwkv(1.0, 2.0, 0.0), _rwkv(0.5, 1.0, 0.0) - _rwkv(0.0, 0.0, 0.0)
    with pytest.warns(UserWarning, match=r"2 sums of weights .den. .* take a smaller scale than -4"):
        moved = base.moved(delta, -4.0)
    assert moved["den.0"][0].tolist() == pytest.approx([0.2, 0.2])  # a tenth of it
    assert moved["num.0"][0].tolist() == pytest.approx([0.1, 0.1])  # and as much less of the step in num
    with pytest.warns(UserWarning, match="sums of weights"):
        assert (base + -4 * delta)["den.0"][0].tolist() == pytest.approx([0.2, 0.2])
    with pytest.warns(UserWarning, match="sums of weights"):
        gone = _rwkv(0.0, 0.0, -1e38).moved(delta, -1.0)
    assert gone["num.0"].abs().max() == 0 and gone["den.0"].abs().max() == 0


def test_differences_of_parts_are_added_up():
    a, b = (read_state(tiny("rwkv"), tokens(2, 5, seed)) for seed in (1, 2))
    delta = a - b
    parts = delta.only("num.*", "den.*") + delta.only("*_shift.*")
    _equal(parts, _numbers(delta))
    _equal(b.moved(delta.only("num.1")), {**_numbers(b), "num.1": _numbers(a)["num.1"]})
    assert list(delta.only("num.1")) == ["num.1", "max.1"]  # which is meaningless without its scale
    with pytest.raises(LookupError, match=r"No 'else'"):
        b + State({"else": torch.zeros(1, 3)}, b.fingerprint)


def test_a_state_says_what_it_is_in_one_line():
    state = read_state(tiny("mamba"), [TOKENS[0, :3], TOKENS[1, :5]])
    assert repr(state) == (
        "State(batch 2, after 3 to 5 tokens: conv.0 to conv.2 (64 4), recurrent.0 to recurrent.2 (64 8))"
    )
    assert repr(state.rows([0]) - state.rows([1])).startswith("State(batch 1, a difference: conv.0 to conv.2")


@pytest.mark.parametrize("family", ["mamba", "rwkv", "recurrent_gemma", "falcon_h1", "xlstm", "lstm"])
def test_a_saved_state_is_resumed(family, tmp_path):
    model = tiny(family)
    state = read_state(model, TOKENS[:, :5])
    state.save(tmp_path / "state")
    loaded = State.load(tmp_path / "state")
    assert repr(loaded) == repr(state) and loaded.couples == state.couples
    for name, x in state.items():
        assert torch.equal(loaded[name], x)
    with torch.no_grad():
        wanted = resume(model, state, TOKENS[:, 5:])
        torch.testing.assert_close(resume(model, loaded, TOKENS[:, 5:]), wanted)
        torch.testing.assert_close(resume(model, loaded.rows([2, 2]), TOKENS[[2, 2], 5:]), wanted[[2, 2]])


def test_broken_files_are_said_to_be_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no state\.json"):
        State.load(tmp_path)
    read_state(tiny("lstm"), TOKENS).save(tmp_path)
    said = json.loads((tmp_path / "state.json").read_text())
    for broken, why in (({**said, "format": 9}, "its format is 9"), ({**said, "names": ["x"]}, "state/x")):
        (tmp_path / "state.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=f"cannot be read: .*{why}"):
            State.load(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps(said))
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        State.load(tmp_path)
