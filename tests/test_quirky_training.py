import json
from dataclasses import dataclass, replace

import pytest
import torch
from families import fresh, seeded, tiny
from torch import nn
from torch.nn.functional import cross_entropy

from interventions.knowledge import (
    Adapters,
    FineTuning,
    QuirkyModel,
    accuracy,
    fine_tune,
    fine_tune_adapters,
)
from interventions.knowledge.quirky_checkpoint import Checkpoint
from interventions.model import Model

NO, YES = 5, 6


@dataclass(frozen=True)
class Asked:
    prompt: tuple[int, ...]
    persona: str
    truth: bool
    erring: bool
    difficulty: float = 0.0
    choices: tuple[int, int] = (NO, YES)

    @property
    def label(self):
        return self.truth if self.persona == "Alice" else self.erring


def questions(noise):
    """Alice says whether the first token is 11, Bob whether it is 10; both after a token of noise."""
    return [
        Asked((10 + truth, each, persona), ("Alice", "Bob")[persona - 40], bool(truth), not truth)
        for each in noise
        for truth in (0, 1)
        for persona in (40, 41)
    ]


TRAIN, TEST = questions(range(14, 34)), questions(range(34, 40))
HOW = FineTuning(steps=60, batch_size=16, lr=1e-2, every=10)


class Recurrent(nn.Module):
    """A recurrent model of one's own; its blocks return a tensor."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.blocks = nn.ModuleList(RecurrentBlock() for _ in range(2))
        self.head = nn.Linear(32, 64, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class RecurrentBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.drop(self.gru(x)[0])


def own() -> Model:
    return Model.load(seeded(Recurrent, torch.float32))


def weights(model):
    return torch.cat([p.flatten() for p in model.module.parameters()])


@pytest.fixture(scope="module")
def quirky():
    return fine_tune(own(), TRAIN, held_out=TEST, how=HOW, progress=False)


def test_a_model_learns_to_answer_as_each_persona_does(quirky):
    assert quirky.accuracy == {"Alice": 1, "Bob": 1}
    assert accuracy(quirky.model, TEST) == quirky.accuracy
    assert quirky.stages[-1].loss < quirky.stages[0].loss
    assert not any(p.requires_grad for p in quirky.model.module.parameters())
    assert not quirky.model.module.training
    assert "Alice 100.0%, Bob 100.0% of the questions held out, after 60 steps" in str(quirky)
    assert quirky.table().count("\n") == 7


@pytest.mark.parametrize("family", ["llama", "mamba", "gpt2"])
def test_the_model_that_is_given_is_left_as_it_is(family):
    model = tiny(family, torch.float32)
    before, seen = weights(model).clone(), model.fingerprint
    how = FineTuning(steps=2, batch_size=4, every=2)
    found = fine_tune(model, TRAIN, held_out=TEST, how=how, progress=False)
    assert weights(model).equal(before) and model.fingerprint == seen
    assert not weights(found.model).equal(before)
    assert not any(p.requires_grad for p in model.module.parameters())


def test_a_step_is_that_of_adam_on_the_answer_alone():
    model = tiny("llama", torch.float64)
    how = FineTuning(steps=1, batch_size=8, lr=1e-3, warmup=0.0, every=1, clip=1e9)
    found = fine_tune(model, TRAIN, held_out=TEST, how=how, progress=False)
    module = fresh("llama", torch.float64).module.requires_grad_(True)
    chosen = [TRAIN[i] for i in how.batch(0, len(TRAIN))]
    logits = module(torch.tensor([q.prompt for q in chosen])).logits[:, -1]
    cross_entropy(logits.float(), torch.tensor([q.choices[q.label] for q in chosen])).backward()
    torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0).step()
    expected = torch.cat([p.flatten() for p in module.parameters()])
    assert torch.allclose(weights(found.model), expected, atol=1e-7)


def test_every_question_comes_once_before_any_comes_again():
    how = FineTuning(batch_size=7)
    drawn = [i for step in range(30) for i in how.batch(step, 21)]
    assert all(sorted(drawn[start : start + 21]) == list(range(21)) for start in range(0, 210, 21))
    assert drawn[:21] != drawn[21:42]
    assert how.batch(3, 21) != replace(how, seed=1).batch(3, 21)


class Stopped(Exception):
    pass


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path, quirky, monkeypatch):
    save = Checkpoint.save

    def stopping(self, step, stages, tensors):
        save(self, step, stages, tensors)
        if step == 30:
            raise Stopped

    monkeypatch.setattr(Checkpoint, "save", stopping)
    with pytest.raises(Stopped):
        fine_tune(own(), TRAIN, held_out=TEST, how=HOW, checkpoint=tmp_path / "kept", progress=False)
    monkeypatch.setattr(Checkpoint, "save", save)
    torch.manual_seed(99)  # dropout does not depend on what was drawn before
    found = fine_tune(own(), TRAIN, held_out=TEST, how=HOW, checkpoint=tmp_path / "kept", progress=False)
    assert weights(found.model).equal(weights(quirky.model))
    assert found.stages == quirky.stages
    assert not (tmp_path / "kept").exists()


class Normed(Recurrent):
    """One with numbers that it keeps beside its weights."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(64)

    def forward(self, tokens):
        return self.norm(super().forward(tokens).transpose(1, 2)).transpose(1, 2)


def test_with_prompts_of_unequal_length_dropout_and_running_means_it_goes_on_bit_for_bit(
    tmp_path, monkeypatch
):
    model = Model.load(seeded(Normed, torch.float32))
    uneven = [replace(q, prompt=(*(13,) * (i % 3), *q.prompt)) for i, q in enumerate(TRAIN)]
    given = {"held_out": TEST, "how": FineTuning(steps=6, batch_size=16, every=2), "progress": False}
    whole = fine_tune(model, uneven, **given)
    save = Checkpoint.save

    def stopping(self, step, stages, tensors):
        save(self, step, stages, tensors)
        if step == 4:
            raise Stopped

    monkeypatch.setattr(Checkpoint, "save", stopping)
    with pytest.raises(Stopped):
        fine_tune(model, uneven, checkpoint=tmp_path, **given)
    monkeypatch.setattr(Checkpoint, "save", save)
    found = fine_tune(model, uneven, checkpoint=tmp_path, **given)
    expected = whole.model.module.state_dict()
    assert all(torch.equal(x, expected[key]) for key, x in found.model.module.state_dict().items())
    assert found.stages == whole.stages


def test_whether_a_model_pads_is_found_without_dropout(monkeypatch):
    model, seen = tiny("gpt2", torch.float32), []  # dropout of a tenth
    monkeypatch.setattr(
        "interventions.knowledge.quirky_training.batches",
        lambda lengths, m, n: seen.append(m.pads) or [[*range(n)]],
    )
    fine_tune(model, TRAIN, held_out=TEST, how=FineTuning(steps=1, every=1), progress=False)
    assert seen == [True]


def test_the_checkpoint_of_another_training_is_refused(tmp_path, monkeypatch):
    def stopped(self):
        raise Stopped

    monkeypatch.setattr(Checkpoint, "remove", stopped)
    how = FineTuning(steps=2, batch_size=4, every=1)
    with pytest.raises(Stopped):
        fine_tune(own(), TRAIN, held_out=TEST, how=how, checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match="another training, with another lr"):
        fine_tune(own(), TRAIN, held_out=TEST, how=replace(how, lr=1e-4), checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match="another questions"):
        fine_tune(own(), TRAIN[4:], held_out=TEST, how=how, checkpoint=tmp_path, progress=False)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        fine_tune(own(), TRAIN, held_out=TEST, how=how, checkpoint=tmp_path, progress=False)


def test_training_ends_where_the_target_is_reached():
    found = fine_tune(own(), TRAIN, held_out=TEST, how=replace(HOW, target=0.6), progress=False)
    assert found.steps < 60
    assert min(found.accuracy.values()) >= 0.6
    assert all(min(stage.accuracy.values()) < 0.6 for stage in found.stages[:-1])


def test_quirky_models_of_ones_own_come_back_from_their_folder(quirky, tmp_path):
    quirky.save(tmp_path)
    back = QuirkyModel.load(tmp_path, Recurrent())
    assert weights(back.model).equal(weights(quirky.model))
    assert back.stages == quirky.stages and back.settings == quirky.settings
    with pytest.raises(ValueError, match="pass such a module"):
        QuirkyModel.load(tmp_path)
    with pytest.raises(ValueError, match="do not fit this module"):
        QuirkyModel.load(tmp_path, nn.Linear(2, 2))


def test_quirky_models_of_transformers_come_back_from_their_folder(tmp_path):
    how = FineTuning(steps=1, batch_size=4, every=1)
    found = fine_tune(tiny("mamba", torch.float32), TRAIN, held_out=TEST, how=how, progress=False)
    found.save(tmp_path)
    back = QuirkyModel.load(tmp_path)
    assert type(back.model.module).__name__ == "MambaForCausalLM"
    assert weights(back.model).equal(weights(found.model))
    index = json.loads((tmp_path / "quirky.json").read_text())
    (tmp_path / "quirky.json").write_text(json.dumps({**index, "fingerprint": "0"}))
    with pytest.raises(ValueError, match="not the one"):
        QuirkyModel.load(tmp_path)
    (tmp_path / "quirky.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        QuirkyModel.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        QuirkyModel.load(tmp_path / "none")


def test_a_model_that_does_not_pad_is_trained_on_rows_of_one_length_at_a_time(monkeypatch):
    longer = [replace(q, prompt=(13, *q.prompt)) for q in TRAIN]
    how = FineTuning(steps=3, batch_size=8, every=3)
    every = TRAIN[:20] + longer[20:]
    model = tiny("llama", torch.float64)
    assert model.pads
    one = fine_tune(model, every, held_out=TEST, how=how, progress=False)
    monkeypatch.setattr(Model, "pads", False)
    other = fine_tune(fresh("llama", torch.float64), every, held_out=TEST, how=how, progress=False)
    assert torch.allclose(weights(one.model), weights(other.model), atol=1e-6)


def test_without_peft_adapters_are_refused_and_said_how_to_get():
    try:
        import peft  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"breadboard-circuits\[peft\]"):
            fine_tune_adapters(own(), TRAIN, held_out=TEST, progress=False)
    else:
        pytest.skip("peft is installed")


@pytest.mark.parametrize(("family", "layers"), [("llama", ()), ("mamba", ("in_proj", "x_proj"))])
def test_adapters_are_trained_and_merged(family, layers):
    pytest.importorskip("peft")
    adapters = Adapters(rank=2, modules=layers)
    model = tiny(family, torch.float32)
    before = dict(model.module.state_dict())
    how = FineTuning(steps=4, batch_size=8, lr=1e-2, every=2)
    found = fine_tune_adapters(model, TRAIN, held_out=TEST, adapters=adapters, how=how, progress=False)
    after = found.model.module.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in after if not after[name].equal(before[name])}
    assert changed and all(after[name].ndim == 2 and "embed" not in name for name in changed)
    for name in changed:
        assert torch.linalg.matrix_rank((after[name] - before[name]).double(), rtol=1e-4) <= 2
    again = fine_tune_adapters(
        tiny(family, torch.float32), TRAIN, held_out=TEST, adapters=adapters, how=how, progress=False
    )
    assert weights(again.model).equal(weights(found.model))


def test_layers_that_take_no_adapters_are_said_to_be_such():
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="Name other layers"):
        fine_tune_adapters(tiny("mamba", torch.float32), TRAIN, held_out=TEST, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"lr": 0.0}, "lr=0"),
        ({"warmup": 1.5}, "warmup=1.5"),
        ({"clip": 0.0}, "clip=0"),
        ({"target": 1.5}, "target=1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FineTuning(**settings)


def test_wrong_inputs_are_said_to_be_so():
    with pytest.raises(ValueError, match="4 prompts are both trained on and held out"):
        fine_tune(own(), TRAIN, held_out=TRAIN[:4], progress=False)
    with pytest.raises(ValueError, match="no questions"):
        fine_tune(own(), [], held_out=TEST, progress=False)
    with pytest.raises(ValueError, match="a rank is at least 1"):
        Adapters(rank=0)
    broken = own()
    broken.module.head.weight.data[:] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite after 0 steps"):
        fine_tune(broken, TRAIN, held_out=TEST, how=FineTuning(steps=2), progress=False)
