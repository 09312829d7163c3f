import pytest
import torch
from families import EVERY_FAMILY, FAMILIES
from oracles import VOCAB, autoencoders, batch, fresh, tiny, tolerance, transcoders, writers

from interventions.acts import Acts, Identity
from interventions.edits import Ablate, Clamp, Patch
from interventions.splice import applied, run
from interventions.tensor_edits import Add

TOKENS = batch().clean


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("kind", [autoencoders, transcoders, None])
def test_a_splice_changes_nothing(family, cut, kind):
    model = tiny(family)
    dictionaries = kind(model) if kind else {name: Identity() for name in writers(model)}
    spliced = run(model, TOKENS, dictionaries, cut=cut).logits
    torch.testing.assert_close(spliced, model.logits(TOKENS), **tolerance(family))


def test_neurons_spliced_change_not_a_bit():
    model = tiny("llama")
    spliced = run(model, TOKENS, {name: Identity() for name in writers(model)}).logits
    assert torch.equal(spliced, model.logits(TOKENS))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_generation_under_an_intervention_equals_passes_without_a_cache(family):
    model = tiny(family)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3)).double() * 2
    edit = Add({"resid.1": direction}) | Ablate({"resid.0": [1, 2, 3]})
    prompt = TOKENS[:1]
    with applied(model, edit):
        cached = model.generate(prompt, max_new_tokens=4, do_sample=False)
        tokens = prompt
        for _ in range(4):
            tokens = torch.cat([tokens, model.logits(tokens)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached[:, : tokens.shape[1]], tokens[:, : cached.shape[1]])


def test_a_model_is_as_before_after_an_exception():
    model = tiny("gpt2")
    before = model.logits(TOKENS)
    with pytest.raises(ZeroDivisionError), applied(model, Add({"resid.1": torch.ones(32)})):
        assert not torch.equal(before, model.logits(TOKENS))
        1 / 0  # noqa: B018
    assert torch.equal(before, model.logits(TOKENS))


def test_an_ablated_feature_is_gone_and_its_error_stays():
    model = tiny("gpt2")
    dictionaries = autoencoders(model)
    used = run(model, TOKENS, dictionaries, [Ablate({"mlp.1": [4, 7]})])
    assert not used.used["mlp.1"].features[..., [4, 7]].any()
    assert torch.equal(used.used["mlp.1"].error, used.computed["mlp.1"].error)
    with applied(model, Ablate({"mlp.1": [4, 7]}), dictionaries=dictionaries):
        torch.testing.assert_close(model.logits(TOKENS), used.logits.detach())


def test_interventions_compose_in_order():
    model = tiny("gpt2")
    one = torch.ones(32).double()
    with applied(model, Add({"resid.1": one}) | Add({"resid.1": one}, scale=-1)):
        torch.testing.assert_close(model.logits(TOKENS), fresh("gpt2").logits(TOKENS))
    acts = Acts(torch.ones(1, 1, 2), torch.zeros(1, 1, 2))
    assert (Clamp({"a": {0: 5.0}}) | Ablate({"a": [0]}))("a", acts).features[0, 0, 0] == 0
    assert (Ablate({"a": [0]}) | Clamp({"a": {0: 5.0}}))("a", acts).features[0, 0, 0] == 5


def test_patching_every_site_gives_the_patched_logits():
    model, prompts = tiny("llama"), batch()
    dictionaries = autoencoders(model)
    other = run(model, prompts.patch, dictionaries)
    patched = run(model, prompts.clean, dictionaries, [Patch({"embed": other.used["embed"]})])
    torch.testing.assert_close(patched.logits, other.logits, rtol=1e-4, atol=1e-6)


def test_gradients_pass_through_an_intervention():
    model = tiny("gpt2")
    direction = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    with applied(model, Add({"resid.1": direction})):
        (gradient,) = torch.autograd.grad(model.logits(TOKENS)[:, -1, 5].sum(), direction)
    eps = 1e-5 * torch.eye(32, dtype=torch.float64)[3]
    values = []
    for sign in (1, -1):
        with applied(model, Add({"resid.1": sign * eps})), torch.no_grad():
            values.append(model.logits(TOKENS)[:, -1, 5].sum())
    assert (values[0] - values[1]).item() / 2e-5 == pytest.approx(gradient[3].item(), rel=1e-5)


def test_a_feature_out_of_range_is_refused():
    model = tiny("gpt2")
    with (
        pytest.raises(ValueError, match="Feature 40 is out of range"),
        applied(model, Ablate({"mlp.1": [40]}), dictionaries=autoencoders(model)),
    ):
        model.logits(TOKENS)


def test_a_direction_of_another_width_is_refused():
    model = tiny("gpt2")
    with (
        pytest.raises(ValueError, match=r"width 16 does not fit resid.1, whose width is 32"),
        applied(model, Add({"resid.1": torch.ones(16)})),
    ):
        model.logits(TOKENS)


def test_a_dictionary_cannot_read_what_comes_later():
    model = tiny("gpt2")
    backwards = transcoders(model)["mlp.0"]
    backwards.reads = "mlp_in.2"
    with pytest.raises(ValueError, match=r"at mlp.0 reads mlp_in.2, which the model computes only later"):
        run(model, TOKENS, {"mlp.0": backwards})


def test_tokens_stay_in_the_vocabulary_of_the_tests():
    assert int(TOKENS.max()) < VOCAB
