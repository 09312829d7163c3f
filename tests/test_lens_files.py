"""Lenses on disk: exact, and only for the model that they were made for."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from families import EVERY_FAMILY, fresh, module, tiny

from interventions import Model
from interventions.lenses import LogitLens, Translator, TunedLens, lens_sites
from interventions.lenses.jacobian import JacobianLens
from interventions.lenses.lens_files import load_lens


def tuned(model, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return 0.1 * torch.randn(*shape, generator=generator)

    sites = {site: model.site(site).width for site in lens_sites(model)}
    maps = {site: Translator(drawn(model.width, n), drawn(model.width)) for site, n in sites.items()}
    return TunedLens(model, maps, {"objective": "kl", "steps": 3})


def jacobian(model):
    translators = tuned(model).translators
    return JacobianLens(
        model,
        {site: t.weight for site, t in translators.items()},
        biases={site: t.bias for site, t in translators.items()},
        means={"output": torch.ones(model.width)},
        how={"estimator": "made up"},
    )


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_lens_comes_back_as_it_was_in_silence(family, tmp_path):
    model = tiny(family)
    x = torch.randn(3, model.width, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    for lens in (LogitLens(model), tuned(model), jacobian(model)):
        lens.save(tmp_path / lens.kind)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = type(lens).load(tmp_path / lens.kind, fresh(family))
        assert again.sites == lens.sites and again.how == lens.how
        for site in lens.sites:
            assert torch.equal(again.logits(site, x), lens.logits(site, x))


def test_a_site_that_was_placed_by_hand_is_found_again(tmp_path):
    model = tiny("gpt2")
    wide = model.at("transformer.h.0.mlp.c_fc")
    TunedLens.untrained(model, [wide, "mid.1"]).save(tmp_path)
    assert load_lens(tmp_path, fresh("gpt2")).sites == (wide.name, "mid.1")


def test_the_dtype_is_kept_and_writing_again_leaves_nothing_behind(tmp_path):
    model = tiny("gpt2")
    TunedLens.untrained(model, dtype=torch.bfloat16).save(tmp_path)
    tuned(model).save(tmp_path)
    TunedLens.untrained(model, ["embed"], dtype=torch.bfloat16).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert TunedLens.load(tmp_path, model).translators["embed"].weight.dtype == torch.bfloat16


def near(built, by, *, blocks=False):
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if ("h." in name) if blocks else ("wte" in name or "ln_f" in name):
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
                weight += by * weight.std() * noise
    return Model.load(built)


def test_a_near_model_gets_the_lens_with_one_warning_that_says_how_far_it_is(tmp_path):
    tuned(tiny("gpt2")).save(tmp_path)
    with pytest.warns(UserWarning, match=r"made for .*GPT2LMHeadModel.* differ by [45]\.\d% of") as seen:
        load_lens(tmp_path, near(module("gpt2"), 0.05))
    assert len(seen) == 1
    with pytest.warns(UserWarning, match="the logits are the same, and what is before is not"):
        load_lens(tmp_path, near(module("gpt2"), 0.05, blocks=True))
    with pytest.warns(UserWarning, match=r"differ by 0\.\d% of their spread"):
        load_lens(tmp_path, Model.load(module("gpt2").bfloat16()))


def test_another_model_is_refused_by_name(tmp_path):
    model = tiny("llama")
    tuned(model).save(tmp_path)
    other = near(module("gpt2"), 0.0)
    with pytest.raises(ValueError, match=r"made for LlamaForCausalLM, and GPT2LMHeadModel is another model"):
        load_lens(tmp_path, other)
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    words = Model.load(LlamaForCausalLM(LlamaConfig(vocab_size=65, hidden_size=32, **size)))
    with pytest.raises(ValueError, match=r"a vocabulary of 64; LlamaForCausalLM has 65"):
        load_lens(tmp_path, words)
    wide = Model.load(LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=64, **size)))
    with pytest.raises(ValueError, match=r"blocks write 32 numbers; those of LlamaForCausalLM write 64"):
        load_lens(tmp_path, wide)
    built = module("llama")
    built.model.layers = built.model.layers[:1]
    built.config.num_hidden_layers = 1
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"LlamaForCausalLM and reads resid\.1"):
        load_lens(tmp_path, Model.load(built))


def test_files_that_are_damaged_or_of_something_else_give_one_clear_error(tmp_path):
    model = tiny("gpt2")
    with pytest.raises(FileNotFoundError, match=r"no lens in .*: lens\.json is missing"):
        load_lens(tmp_path, model)
    tuned(model).save(tmp_path)
    index, numbers = tmp_path / "lens.json", next(tmp_path.glob("*.safetensors"))
    text, content = index.read_text(), numbers.read_bytes()
    said = json.loads(text)
    for broken, match in (
        (text[:40], "not complete JSON"),
        ("[]", "does not say that it is of a lens"),
        (json.dumps({**said, "format": "else"}), "does not say that it is of a lens"),
        (json.dumps({**said, "version": 9}), "version 9; this release reads 1"),
        (json.dumps({**said, "file": "../x"}), "no such file beside it"),
        (json.dumps({**said, "kind": "else"}), "does not describe a lens"),
        (json.dumps({**said, "sites": [3]}), "does not describe a lens"),
        (json.dumps({**said, "sites": said["sites"][:1]}), "are not those of a TunedLens"),
        (json.dumps({**said, "kind": "logit"}), "are not those of a LogitLens"),
    ):
        index.write_text(broken)
        with pytest.raises(ValueError, match=match):
            load_lens(tmp_path, model)
    index.write_text(text)
    numbers.write_bytes(content[:-8])
    with pytest.raises(ValueError, match="does not match its checksum"):
        load_lens(tmp_path, model)
    numbers.write_bytes(content)
    assert isinstance(load_lens(tmp_path, model), TunedLens)
    with pytest.raises(ValueError, match="there is a TunedLens, not a JacobianLens"):
        JacobianLens.load(tmp_path, model)


def test_a_lens_that_is_not_finite_is_not_written(tmp_path):
    model = tiny("gpt2")
    lens = tuned(model)
    lens.translators["embed"].bias[0] = torch.nan
    with pytest.raises(ValueError, match="embed/bias of this lens is not finite"):
        lens.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
