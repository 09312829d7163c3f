import json

import pytest
import torch
from oracles import autoencoders, batch, tiny

from interventions import (
    Ablate,
    Acts,
    Add,
    Affine,
    Clamp,
    Condition,
    Decay,
    Intervention,
    Linear,
    Patch,
    PerRow,
    Project,
    Scale,
    Where,
    acts_of,
    after,
    applied,
    end_of,
    matching,
    mean_acts,
    rotation,
    run,
    within,
)
from interventions.features import MadeWith
from interventions.intervention import Here
from interventions.passage import Passage
from interventions.recurrence import AblateState, AddState, PatchState, State
from interventions.recurrence.couples import Couple
from interventions.steering import Direction

TOKENS = batch().clean
SITE = "resid.1"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


V, W = random(32, seed=1), random(32, seed=2)
TURN = Affine({SITE: rotation(V, W, 0.7)}, {SITE: W})
EDITS = {
    "add": Add({SITE: V}, 2.0),
    "scale": Scale({SITE: 1.5}),
    "project": Project({SITE: V}),
    "subspace": Project({SITE: torch.stack([V, W])}),
    "project to": Project({SITE: V}, to={SITE: 0.5}),
    "affine": TURN,
    "keeping norm": Add({SITE: V}, 2.0).keeping_norm(),
    "clipped": Add({SITE: V}, 20.0).clipped(0.1),
    "placed": Add({SITE: V}).at(Where(prompt=[0, 2])),
    "chain": Add({SITE: V}) | Scale({SITE: 0.5}) | Project({SITE: W}),
}


def tensor_after(model, edit, dictionaries=None):
    """What flows on at the site, and what was there."""
    seen = []

    def keep(_site, x):
        seen.append(x)
        return x

    with (
        model.visiting([SITE], keep),
        applied(model, edit, dictionaries=dictionaries),
        model.visiting([SITE], keep),
    ):
        model.logits(TOKENS)
    return seen


@pytest.mark.parametrize("name", EDITS)
def test_a_tensor_comes_out_the_same_beside_a_dictionary_and_without_one(name):
    model = tiny("gpt2")
    coder = autoencoders(model)["mlp.1"]
    _, plain = tensor_after(model, EDITS[name])
    _, beside = tensor_after(model, EDITS[name], {SITE: coder})
    torch.testing.assert_close(beside, plain)


@pytest.mark.parametrize("name", EDITS)
def test_a_spliced_run_and_an_applied_pass_agree(name):
    model = tiny("gpt2")
    dictionaries = {SITE: autoencoders(model)["mlp.1"]}
    with applied(model, EDITS[name], dictionaries=dictionaries):
        expected = model.logits(TOKENS)
    spliced = run(model, TOKENS, dictionaries, [EDITS[name]])
    torch.testing.assert_close(spliced.logits.detach(), expected)
    assert torch.equal(spliced.used[SITE].features, spliced.computed[SITE].features)


@pytest.mark.parametrize("name", EDITS)
def test_gradients_flow_through(name):
    model = tiny("llama")
    x = model.read(TOKENS, [SITE])[model.site(SITE)][:1].clone().requires_grad_()
    here = Here(SITE, passage=Passage(TOKENS[:1], None, 0, TOKENS.shape[1]))
    assert torch.autograd.gradcheck(lambda x: EDITS[name].tensor(SITE, x, here), (x,))


def test_each_kind_does_what_it_says():
    model = tiny("gpt2")
    x, y = tensor_after(model, EDITS["add"])
    torch.testing.assert_close(y, x + 2 * V)
    x, y = tensor_after(model, EDITS["scale"])
    torch.testing.assert_close(y, 1.5 * x)
    x, y = tensor_after(model, EDITS["project"])
    torch.testing.assert_close(y, x - (x @ V)[..., None] * V / V.norm() ** 2)
    x, y = tensor_after(model, EDITS["subspace"])
    assert (y @ torch.stack([V, W]).T).abs().max() < 1e-10
    basis = torch.linalg.svd(torch.stack([V, W]), full_matrices=False).Vh
    torch.testing.assert_close(y, x - x @ basis.T @ basis)
    x, y = tensor_after(model, EDITS["project to"])
    torch.testing.assert_close(y @ V / V.norm(), torch.full(y.shape[:2], 0.5, dtype=torch.float64))
    x, y = tensor_after(model, EDITS["keeping norm"])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(y, x + 2 * V, dim=-1), torch.ones_like(y[..., 0]))
    x, y = tensor_after(model, EDITS["clipped"])
    torch.testing.assert_close((y - x).norm(dim=-1), 0.1 * x.norm(dim=-1))
    x, y = tensor_after(model, EDITS["placed"])
    torch.testing.assert_close(y[:, [0, 2]], x[:, [0, 2]] + V)
    torch.testing.assert_close(y[:, 1], x[:, 1])


def test_a_rotation_turns_one_direction_into_another_and_keeps_lengths():
    v, w = V / V.norm(), W - (W @ V) * V / V.norm() ** 2
    turn = rotation(V, W, torch.pi / 2)
    torch.testing.assert_close(turn @ v, w / w.norm())
    torch.testing.assert_close(turn.T @ turn, torch.eye(32, dtype=torch.float64))


@pytest.mark.parametrize(
    "edit",
    [
        Add({SITE: V}, 2.0),
        Scale({SITE: 1.5}),
        Scale({SITE: {3: 2.0, 4: -1.0}}),
        TURN,
        Add({SITE: V}).at(Where(prompt=[0, 2])),
        Add({SITE: V}) | TURN | Scale({SITE: 2.0}),
        PerRow([Add({SITE: V}), None, TURN]),
    ],
)
def test_an_inverse_undoes(edit):
    model = tiny("gpt2")
    x, y = tensor_after(model, edit | edit.inverse())
    torch.testing.assert_close(y, x)
    assert not torch.allclose(tensor_after(model, edit)[1], x)


@pytest.mark.parametrize(
    "edit", [Project({SITE: V}), Ablate({SITE: [0]}), Clamp({SITE: {0: 1.0}}), Scale({SITE: 0.0}),
             Affine({SITE: torch.zeros(32, 32)}), Add({SITE: V}).keeping_norm(),
             Add({SITE: V}).at(Where(), schedule=Decay(2.0))]
)  # fmt: skip
def test_what_loses_something_has_no_inverse(edit):
    with pytest.raises(ValueError, match="cannot be undone"):
        edit.inverse()


def test_features_are_scaled_and_the_error_of_the_unsteered_activations_stays():
    model = tiny("gpt2")
    dictionaries = {SITE: autoencoders(model)["mlp.1"]}
    plain = run(model, TOKENS, dictionaries)
    scaled = run(model, TOKENS, dictionaries, [Scale({SITE: {2: 3.0}}) | Add({"embed": V})])
    edit = run(model, TOKENS, dictionaries, [Scale({SITE: {2: 3.0}})])
    torch.testing.assert_close(edit.used[SITE].features[..., 2], 3 * plain.used[SITE].features[..., 2])
    torch.testing.assert_close(edit.used[SITE].error, plain.used[SITE].error)
    assert not torch.allclose(scaled.used[SITE].error, plain.used[SITE].error)


def test_whole_sites_are_ablated_to_zero_to_means_and_to_other_prompts():
    model, prompts = tiny("gpt2"), batch()
    assert not tensor_after(model, Ablate({SITE: "all"}))[1].any()
    mean = mean_acts(model, TOKENS, [SITE], batch_size=3)
    read = model.read(TOKENS, [SITE])[model.site(SITE)]
    torch.testing.assert_close(mean[SITE].features, read.mean((0, 1), keepdim=True))
    _, y = tensor_after(model, Ablate({SITE: "all"}, to=mean))
    torch.testing.assert_close(y, mean[SITE].features.expand_as(y))
    other = acts_of(model, prompts.patch, [SITE], {SITE: autoencoders(model)["mlp.1"]})
    _, y = tensor_after(model, Ablate({SITE: "all"}, to=other), {SITE: autoencoders(model)["mlp.1"]})
    torch.testing.assert_close(y, model.read(prompts.patch, [SITE])[model.site(SITE)])


def test_patched_activations_of_a_batch_serve_each_of_its_copies():
    model = tiny("gpt2")
    patch = Patch(acts_of(model, TOKENS.flip(0), [SITE]))
    with applied(model, patch):
        once, twice = model.logits(TOKENS), model.logits(TOKENS.repeat(2, 1))
    torch.testing.assert_close(twice, once.repeat(2, 1, 1))
    refused = pytest.raises(
        ValueError, match=r"Activations of shape \(3, .*do not fit a pass whose are \(2, "
    )
    with refused, applied(model, patch):
        model.logits(TOKENS[:2])


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
@pytest.mark.parametrize("kind", ["patch", "resample", "mask"])
def test_what_is_for_a_prompt_leaves_alone_what_is_written_after_it(family, kind):
    model = tiny(family)
    other = acts_of(model, TOKENS[:1].flip(1), [SITE])
    mask = torch.zeros(TOKENS.shape[1], 33, dtype=torch.bool)
    mask[1] = True
    edit = {"patch": Patch(other), "resample": Ablate({SITE: "all"}, to=other), "mask": Ablate({SITE: mask})}
    asked = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with applied(model, edit[kind].at(Where(generation=None)), prompt=TOKENS.shape[1]):
        cached = model.generate(TOKENS[:1], **asked)
        assert torch.equal(model.generate(TOKENS[:1], use_cache=False, **asked), cached)
        forced = model.logits(cached)[:, TOKENS.shape[1] - 1 : -1].argmax(-1)
    assert torch.equal(forced, cached[:, TOKENS.shape[1] :])
    too_short = TOKENS[:1, :-1]
    with pytest.raises(ValueError, match="do not fit a pass"), applied(model, edit[kind]):
        model.logits(too_short)


def test_directions_of_another_model_are_refused():
    class Made(dict):
        fingerprint = "0123456789"

    model = tiny("gpt2")
    for edit in (
        Add(Made({SITE: V})),
        Project(Made({SITE: V})) | Add({SITE: W}),
        Add(Made({SITE: V})).at(Where(0)),
    ):
        refused = pytest.raises(
            ValueError, match=r"was made with another model \(fingerprint 01234567, this one has"
        )
        with refused, applied(model, edit):
            pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Project({SITE: torch.zeros(32)}), "do not span 1 dimensions"),
        (lambda: Project({SITE: torch.stack([V, V])}), "do not span 2 dimensions"),
        (lambda: Project({SITE: torch.stack([V, W])}, to={SITE: [1.0, 2.0]}), "are not orthogonal, so `to`"),
        (lambda: rotation(V, 2 * V, 1.0), "lie on one line"),
        (lambda: Add({SITE: V}).clipped(0), "would never move"),
        (lambda: Project({SITE: V}, to={SITE: [1.0, 2.0]}), "has 2 numbers for the 1 directions at"),
        (lambda: Project({SITE: V}, to={"resid.0": 1.0}), r"In `to` there is nothing for resid\.1"),
        (lambda: Affine({SITE: random(32, 32)}, {}), r"In the biases there is nothing for resid\.1"),
        (lambda: Ablate({SITE: "all"}, to={}), r"In `to` there is nothing for resid\.1"),
        (lambda: Ablate({SITE: "none"}), r"'none' names no nodes at resid\.1: give a list"),
        (lambda: Ablate({SITE: 3}), r"3 names no nodes at resid\.1: give a list"),
        (lambda: Add({SITE: random(5, 32)}), r"has shape \(5, 32\), and must be a vector"),
        (lambda: Condition({SITE: V[:1]}, above=0.0).scores(random(1, 2, 32)), "does not fit resid.1, whose"),
        (lambda: Linear(1.0, 0.0, tokens=0), "over at least one token, not 0"),
        (lambda: Decay(0.0), "half-life is above 0, not 0"),
        (lambda: PerRow([None, None]), "at least one row"),
        (lambda: Scale({SITE: 2.0})(SITE, Acts(V, V)), "needs to know what the activations stand for"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make", [lambda: Add({SITE: V}) | 3, lambda: PerRow([3]), lambda: Add({SITE: V}).at(None)]
)
def test_what_is_no_intervention_or_place_is_refused(make):
    with pytest.raises(TypeError):
        make()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_nothing_becomes_infinite_or_undefined(dtype):
    big = 6e4 * torch.ones(1, 1, 32, dtype=dtype)
    for x in (torch.zeros_like(big), big):
        for edit in (Scale({SITE: 0.0}).keeping_norm(), Scale({SITE: 0.5}).clipped(0.25)):
            y = edit.tensor(SITE, x, Here(SITE))
            assert y.isfinite().all()
            assert y.dtype is dtype
    torch.testing.assert_close(Scale({SITE: 0.5}).keeping_norm().tensor(SITE, big, Here(SITE)), big)


STATE = State({"conv.0": random(2, 3)}, "x", (4, 4))
SAVED = [
    *EDITS.values(),
    Ablate({SITE: [1, 2]}, to={SITE: Acts(random(1, 1, 32), random(1, 1, 32))}),
    Ablate({SITE: torch.arange(33) > 20, "mlp.0": "all"}),
    Patch({SITE: Acts(random(2, 3, 8), random(2, 3, 32))}),
    Clamp({SITE: {4: 2.5}}) | Scale({SITE: {1: 3.0}}),
    PerRow([None, Add({SITE: V})]),
    Add({SITE: V}).at(
        Where(prompt=after("x") & ~matching(3, "y") | end_of("z"), generation=slice(1, None, 2))
    ),
    Add({SITE: V}).at(Where(prompt=within("q"), rows=[0, 2]), schedule=Linear(1.0, 0.0, tokens=5)),
    Add({SITE: V}).at(Where(when=Condition({"embed": W}, below=0.2, over="last")), schedule=Decay(3.0)),
    Add(Direction({SITE: V}, "0123456789", {"method": "mean difference", "pairs": 3})),
    AddState(State({"num.0": W, "max.0": V}, "x", (), (Couple("max.0", ("num.0",)),)), 2.0)
    | PatchState(STATE),
    MadeWith(Ablate({SITE: [3]}).at(Where(prompt=1)), "0123456789"),
    AblateState(["conv.*"], to=STATE, before=Where(prompt=slice(2, None))),
]


@pytest.mark.parametrize("edit", SAVED, ids=lambda edit: repr(edit)[:60])
def test_an_intervention_is_the_same_after_saving_and_loading(edit, tmp_path):
    edit.save(tmp_path / "edit")
    loaded = Intervention.load(tmp_path / "edit")
    assert repr(loaded) == repr(edit)
    assert "\n" not in repr(edit)
    loaded.save(tmp_path / "again")
    for name in ("intervention.json", "tensors.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "edit" / name).read_bytes()


def test_loaded_interventions_do_the_same(tmp_path):
    model = tiny("gpt2")
    for edit in EDITS.values():
        edit.save(tmp_path / "edit")
        torch.testing.assert_close(
            tensor_after(model, Intervention.load(tmp_path / "edit"))[1], tensor_after(model, edit)[1]
        )


def test_a_file_remembers_the_model_of_its_directions(tmp_path):
    class Made(dict):
        fingerprint = "0123456789"

    Add(Made({SITE: V})).save(tmp_path)
    assert Intervention.load(tmp_path).fingerprints == {"0123456789"}


def test_files_that_are_no_intervention_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no intervention in .*no intervention\.json"):
        Intervention.load(tmp_path)
    with pytest.raises(ValueError, match="<lambda> is code, which a file cannot hold"):
        Add({SITE: V}).at(Where(when=lambda x, _: x[..., 0] > 0)).save(tmp_path)
    assert not list(tmp_path.iterdir())
    Add({SITE: V}).save(tmp_path)
    content = json.loads((tmp_path / "intervention.json").read_text())
    for broken, message in (
        ({**content, "format": 9}, "of format 9"),
        ({**content, "intervention": {"kind": "Popen", "fields": {}}}, "a kind that is not known, 'Popen'"),
        ({**content, "intervention": {"kind": "Where", "fields": {}}}, "holds a Where"),
        ({**content, "intervention": {"kind": "Add", "fields": {"x": 1}}}, "unexpected keyword"),
        ({**content, "intervention": {"kind": "Add"}}, "cannot be read: it lacks 'fields'"),
        ({**content, "intervention": {"kind": "Add", "fields": {"directions": 3}}}, "has no attribute"),
        ({**content, "intervention": {"kind": "Clamp", "fields": {"values": 3}}}, "has no attribute"),
    ):
        (tmp_path / "intervention.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message):
            Intervention.load(tmp_path)
    Add({SITE: V}).save(tmp_path)
    (tmp_path / "tensors.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read"):
        Intervention.load(tmp_path)


def test_values_by_position_serve_every_row():
    model = tiny("gpt2")
    rows = TOKENS.repeat(5, 1)[: 3 * TOKENS.shape[1]]
    means = model.read(TOKENS, [SITE])[model.site(SITE)].mean(
        0
    )  # (pos d_model), and rows are a multiple of pos
    with applied(model, Ablate({SITE: "all"}, to={SITE: Acts(means, torch.zeros_like(means))})):
        together, one = model.logits(rows), model.logits(rows[:1])
    torch.testing.assert_close(together[:1], one)
    assert len(rows) == 3 * len(means)
