"""What holds for every format: places, fit, refusals, and the hub."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from families import fresh, module, tiny

from circuits import embedded
from interventions import Model
from interventions.dictionaries import JumpReLU, ReLU, SparseCoder, export_saelens, fvu, load, save
from interventions.dictionaries.activations import GroupMax
from interventions.dictionaries.cross_layer import CrossLayerTranscoder
from interventions.dictionaries.formats.gains import folded, gain
from interventions.dictionaries.formats.names import Named, named
from interventions.dictionaries.formats.source import Source
from interventions.dictionaries.normalisation import LayerNorm
from interventions.dictionaries.units import Units

D, F, WIDTH = 6, 20, 32


def _saelens(
    folder: Path, *, d: int = WIDTH, hook: str = "blocks.1.hook_resid_post", reads=None, **change
) -> Path:
    """A small dictionary as SAELens writes it."""
    torch.manual_seed(0)
    architecture = "transcoder" if reads else "standard"
    metadata = {"hook_name": reads, "hook_name_out": hook} if reads else {"hook_name": hook}
    cfg = {"d_in": d, "d_sae": F, "architecture": architecture, "metadata": metadata, **change}
    cfg |= {"d_out": d} if reads else {}
    tensors = {
        "W_enc": torch.randn(d, F),
        "W_dec": torch.randn(F, d),
        "b_enc": torch.randn(F),
        "b_dec": torch.randn(d),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    safetensors.torch.save_file(tensors, folder / "sae_weights.safetensors")
    return folder


# Places


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("mlp.3", "mlp.3"),
        ("blocks.3.hook_resid_post", "resid.3"),
        ("blocks.3.hook_resid_pre", "resid.2"),
        ("blocks.3.hook_mlp_out", "mlp.3"),
        ("blocks.3.mlp.hook_in", "mlp_in.3"),
        ("blocks.3.hook_attn_out", "attn.3"),
        ("blocks.3.attn.hook_z", "heads.3"),
        ("model.layers.3.output", "resid.3"),
        ("model.layers.3.mlp.output", "mlp.3"),
        ("model.layers.3.self_attn.o_proj.input", "heads.3"),
        ("model.layers.3.pre_feedforward_layernorm.output", "mlp_in.3"),
        ("layers.10.mlp", "mlp.10"),
        ("gpt_neox.layers.5", "resid.5"),
        ("transformer.h.3.mlp", "mlp.3"),
        ("embed_tokens", "embed"),
        ("hook_embed", "embed"),
        ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_pre"),  # with a position's embedding, or a scale
        ("somewhere.else", "somewhere.else"),
    ],
)
def test_hooks_have_our_names_without_a_model(hook, site):
    assert named(hook) == Named(site)


def test_what_transformerlens_has_before_the_gain_is_marked():
    assert named("blocks.3.ln2.hook_normalized") == Named("mlp_in.3", before_gain=True)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_hooks_are_found_in_a_model_by_the_tensor_that_flows_there(family):
    model = tiny(family, torch.float32)
    blocks = model.layout.blocks
    for hook, site in [
        ("blocks.1.hook_resid_post", "resid.1"),
        ("blocks.2.hook_resid_pre", "resid.1"),
        ("blocks.1.hook_mlp_out", "mlp.1"),
        ("blocks.1.attn.hook_z", "heads.1"),
        (f"{model.site('heads.1').path}.input", "heads.1"),
        (f"{blocks}.1", "resid.1"),
        (f"{blocks}.1.output", "resid.1"),
        (f"{blocks}.2.input", "resid.1"),
        (f"{blocks.rpartition('.')[2]}.1.mlp.input", "mlp_in.1"),
        (model.site("mlp.1").path, "mlp.1"),
    ]:
        assert named(hook, model) == Named(site)


def test_our_names_stand_above_module_paths_that_end_alike():
    class Doubling(torch.nn.Sequential):
        pass

    model = fresh("gpt2", torch.float32)
    model.module.get_submodule("transformer.h.1").mlp.mlp = Doubling(torch.nn.Identity(), torch.nn.Identity())
    assert named("mlp.0", model) == Named("mlp.0")


def test_a_path_means_its_own_module_and_not_what_other_models_have_there():
    gemma, llama = tiny("gemma2", torch.float32), tiny("llama", torch.float32)
    assert named("layers.1.mlp", llama).site == "mlp.1"
    assert named("layers.1.mlp", gemma).site == "model.layers.1.mlp"  # a norm comes after it
    assert named("model.layers.1.pre_feedforward_layernorm.output", gemma).site == "mlp_in.1"
    assert named("model.layers.1.post_feedforward_layernorm.output", gemma).site == "mlp.1"


def test_the_residual_stream_inside_a_block_is_what_enters_its_norm():
    model = tiny("llama", torch.float32)
    site = named("blocks.1.hook_resid_mid", model).site
    assert site == "model.layers.1.post_attention_layernorm.in"
    acts = model.read(torch.tensor([[3, 4, 5]]), ["resid.0", "attn.1", site])
    before, attn, mid = (acts[model.site(name)] for name in ("resid.0", "attn.1", site))
    assert torch.allclose(before + attn, mid, atol=1e-5)
    assert named("blocks.0.hook_resid_pre", model).site == "embed"
    assert named("blocks.0.hook_resid_pre", tiny("gpt2", torch.float32)).site == "transformer.h.0.in"


def test_a_place_that_the_model_lacks_is_an_error(tmp_path):
    model = tiny("llama", torch.float32)
    for hook in ("blocks.7.hook_resid_post", "blocks.7.hook_resid_pre", "somewhere.else"):
        with pytest.raises(LookupError, match=r"7|somewhere"):
            load(_saelens(tmp_path, hook=hook), model)


# Loading


def test_places_and_widths_are_the_models(tmp_path):
    model = tiny("llama", torch.float32)
    coder = load(_saelens(tmp_path / "a"), model)["resid.1"]
    assert coder.site == "resid.1"
    with pytest.raises(ValueError, match=r"reads width 6, but resid.1 has width 32"):
        load(_saelens(tmp_path / "b", d=D), model)


def test_several_for_one_site_are_a_choice_of_paths(tmp_path):
    for width in ("16k", "65k"):
        _saelens(tmp_path / "layer_1" / width)
    _saelens(tmp_path / "layer_2", hook="blocks.2.hook_resid_post")
    with pytest.raises(ValueError, match=r"2 dictionaries for resid\.1") as error:
        load(tmp_path)
    assert f"{tmp_path}/layer_1/16k, {tmp_path}/layer_1/65k" in str(error.value)
    assert list(load(tmp_path / "layer_1" / "16k")) == ["resid.1"]


def test_a_lazy_set_reads_a_dictionary_when_it_is_asked_for(tmp_path):
    for layer in range(2):
        _saelens(tmp_path / str(layer), hook=f"blocks.{layer}.hook_resid_post")
    (tmp_path / "1" / "sae_weights.safetensors").write_bytes(b"broken")
    shelf = load(tmp_path, lazy=True)
    assert list(shelf) == ["resid.0", "resid.1"] and shelf["resid.0"].d_in == WIDTH
    assert repr(shelf) == "Shelf(resid.0, resid.1)"
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors"):
        shelf["resid.1"]


def test_a_place_can_be_told_for_one_dictionary(tmp_path):
    coder = load(_saelens(tmp_path / "a", hook="custom"), tiny("llama", torch.float32), site="resid.2")[
        "resid.2"
    ]
    assert coder.site == "resid.2"
    coder = load(tmp_path / "a", site="mlp.0", reads="mlp_in.0")["mlp.0"]
    assert (coder.reads, coder.site) == ("mlp_in.0", "mlp.0")
    _saelens(tmp_path / "b", hook="blocks.0.hook_mlp_out")
    with pytest.raises(ValueError, match="holds 2"):
        load(tmp_path, site="resid.2")


def test_weights_are_cast_and_thresholds_are_not(tmp_path):
    half = load(_saelens(tmp_path), dtype=torch.float16)["resid.1"]
    assert half.W_enc.dtype == torch.float16
    save({"a": SparseCoder.random(D, F, activation=JumpReLU(torch.rand(F)))}, tmp_path / "own")
    assert load(tmp_path / "own", dtype=torch.bfloat16)["a"].activation.threshold.dtype == torch.float32


def test_a_folder_without_dictionaries_lists_what_it_has(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"no known format.*notes.txt"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing at"):
        load(tmp_path / "absent")


def test_a_folder_of_too_much_is_not_walked_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("interventions.dictionaries.formats.source._MOST", 10)
    for name in ("a/a", "b", ".git"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / name / f"{i}.txt").touch()
    assert len(Source.at(tmp_path).files) == 10
    (tmp_path / "b" / "5.txt").touch()
    with pytest.raises(ValueError, match="more than 10 files: pass the folder in which dictionaries are"):
        load(tmp_path)


def test_our_own_files_keep_normalisation_prefixes_and_units(tmp_path):
    x = torch.randn(4, D)
    coder = SparseCoder.random(D, F, activation=GroupMax(4))._with(
        normalise=LayerNorm(eps=1e-3), prefixes=(5, 20), units=Units("normalised", 0.5, "stored"), site="a"
    )
    save({"a": coder}, tmp_path)
    back = load(tmp_path)["a"]
    assert back.fingerprint == coder.fingerprint and torch.equal(back(x), coder(x))
    assert (back.normalise, back.prefixes, back.units) == (coder.normalise, coder.prefixes, coder.units)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_our_own_files_keep_cross_layer_transcoders(tmp_path, dtype):
    torch.manual_seed(0)
    clt = CrossLayerTranscoder(
        [(torch.randn(D, F), torch.randn(F), JumpReLU(torch.rand(F))) for _ in range(3)],
        [torch.randn(F, 3 - i, D) for i in range(3)],
        torch.randn(3, D),
        torch.randn(3, D, D),
        reads=[f"mlp_in.{i}" for i in range(3)],
        writes=[f"mlp.{i}" for i in range(3)],
    )
    save(clt.layers(), tmp_path, dtype=dtype)
    back = load(tmp_path)
    assert list(back) == ["mlp.0", "mlp.1", "mlp.2"]
    for site, layer in clt.layers().items():
        assert list(back[site].later) == list(layer.later) and back[site].reads == layer.reads
        if dtype is None:
            assert back[site].fingerprint == layer.fingerprint


def test_later_sites_of_a_cross_layer_transcoder_get_the_names_that_its_dictionaries_have(tmp_path):
    clt = CrossLayerTranscoder(
        [(torch.randn(WIDTH, F), torch.randn(F), ReLU()) for _ in range(2)],
        [torch.randn(F, 2 - i, WIDTH) for i in range(2)],
        torch.randn(2, WIDTH),
        reads=[f"blocks.{i}.mlp.hook_in" for i in range(2)],
        writes=[f"layers.{i}.mlp" for i in range(2)],
    )
    save(clt.layers(), tmp_path)
    for model, written in ((None, "mlp"), (tiny("gemma2", torch.float32), "model.layers.{}.mlp")):
        first, last = load(tmp_path, model).items()
        names = [f"mlp.{i}" if model is None else written.format(i) for i in range(2)]
        assert [first[0], last[0]] == names
        assert list(first[1].later) == names[1:] and first[1].reads == "mlp_in.0"


def test_an_index_that_was_lost_is_asked_for(tmp_path):
    save({"a": SparseCoder.random(D, D)}, tmp_path)
    (tmp_path / "index.json").unlink()
    (file,) = tmp_path.iterdir()
    for where in (tmp_path, file):
        with pytest.raises(ValueError, match=r"index\.json cannot be read"):
            load(where)


# Before the gain


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_gain_of_a_norm_is_found_by_what_it_does(family):
    model = tiny(family, torch.float32)
    norm = "post_attention_layernorm" if family == "llama" else "pre_feedforward_layernorm"
    weight = model.module.get_submodule(f"model.layers.1.{norm}").weight
    expected = weight if family == "llama" else 1 + weight
    assert torch.allclose(gain(model, model.site("mlp_in.1")), expected, atol=1e-5)


def test_what_reads_before_the_gain_is_made_to_read_behind_it(tmp_path):
    model = tiny("llama", torch.float32)
    _saelens(tmp_path, hook="blocks.1.hook_mlp_out", reads="blocks.1.ln2.hook_normalized")
    bare, coder = load(tmp_path)["mlp.1"], load(tmp_path, model)["mlp.1"]
    assert coder.reads == "mlp_in.1" and bare.meta["before_gain"]
    tokens = torch.tensor([[3, 4, 5, 6]])
    site = model.at("model.layers.1.post_attention_layernorm", "in")
    acts = model.read(tokens, [site, "mlp_in.1"])
    resid, behind = acts[site], acts[model.site("mlp_in.1")]
    before = resid * (resid.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    assert torch.allclose(coder(behind), bare(before), atol=1e-4)


def test_norms_whose_gain_cannot_be_accounted_for_are_refused():
    with pytest.raises(ValueError, match="subtracts the mean"):
        gain(model := tiny("gpt2", torch.float32), model.site("mlp_in.1"))
    with pytest.raises(ValueError, match="not what a norm returns"):
        gain(model, model.site("mlp.1"))
    zeroed = module("llama", torch.float32)
    zeroed.get_submodule("model.layers.1.post_attention_layernorm").weight.data[3] = 0
    with pytest.raises(ValueError, match="gain of zero"):
        gain(model := Model.load(zeroed), model.site("mlp_in.1"))


def test_a_skip_path_and_a_bias_before_the_encoder_are_moved_behind_the_gain_too():
    torch.manual_seed(0)
    coder = SparseCoder.random(D, F)._with(W_skip=torch.randn(D, D), b_pre=torch.randn(D))
    x, g = torch.randn(5, D), torch.rand(D) + 0.5
    assert torch.allclose(folded(coder, g)(x * g), coder(x), atol=1e-5)


# Fit


class Words:
    """A tokenizer of words."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [3 + len(word) % 40 for word in text.split()]}


def test_a_dictionary_that_explains_nothing_is_warned_of(tmp_path):
    model = Model.load(module("llama", torch.float32), tokenizer=Words())
    with pytest.warns(UserWarning, match=r"at resid.1 leaves .* another site or model"):
        load(_saelens(tmp_path), model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, model, check=False)
        perfect = SparseCoder(
            W_enc=torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)], 1),
            W_dec=torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)]),
            b_enc=torch.zeros(2 * WIDTH),
            b_dec=torch.zeros(WIDTH),
            activation=ReLU(),
        )
        save({"resid.1": perfect}, tmp_path / "perfect")
        load(tmp_path / "perfect", model)


def test_fvu_is_the_unexplained_share_of_the_variance():
    model, tokens = tiny("llama", torch.float32), torch.tensor([[3, 4, 5, 6, 7, 8]])
    mean = SparseCoder.random(WIDTH, F)
    (x,) = model.read(tokens, ["resid.1"]).values()
    mean = mean._with(W_dec=torch.zeros(F, WIDTH), b_dec=x[0, 1:].mean(0))
    assert fvu(model, {"resid.1": mean}, tokens)["resid.1"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="no tokenizer"):
        fvu(model, {"resid.1": mean})
    with pytest.raises(ValueError, match="three or more"):
        fvu(model, {"resid.1": mean}, tokens[:, :2])


def test_the_fvu_of_a_cross_layer_transcoder_counts_what_earlier_layers_write():
    model, tokens = tiny("llama", torch.float32), torch.tensor([[3, 4, 5, 6, 7, 8]])
    torch.manual_seed(0)
    clt = CrossLayerTranscoder(
        [(torch.randn(WIDTH, F), torch.randn(F), ReLU()) for _ in range(3)],
        [torch.randn(F, 3 - i, WIDTH) * 0.01 for i in range(3)],
        torch.zeros(3, WIDTH),
        reads=[f"mlp_in.{i}" for i in range(3)],
        writes=[f"mlp.{i}" for i in range(3)],
    )
    reads, writes = (
        model.read(tokens, [f"{name}.{i}" for i in range(3)]).values() for name in ("mlp_in", "mlp")
    )
    found = fvu(model, clt.layers(), tokens)
    for value, y, predicted in zip(found.values(), writes, clt(list(reads)), strict=True):
        y, error = y[0, 1:], (y - predicted)[0, 1:]
        assert value == pytest.approx(
            (error.square().sum() / (y - y.mean(0)).square().sum()).item(), rel=1e-4
        )


def test_dictionaries_of_a_real_model_go_out_and_come_back_where_they_belong(tmp_path):
    model, ours = embedded.model(), embedded.dictionaries()
    export_saelens(ours, tmp_path, model_name="embedded")
    back = load(tmp_path, model, check=False)  # its language is not English
    tokens = torch.arange(1, 25).reshape(2, 12)
    before, after = fvu(model, ours, tokens), fvu(model, back, tokens)
    assert before.keys() == after.keys()
    assert all(before[site] == pytest.approx(after[site], rel=1e-3) for site in before)


# What is not read


class Payload:
    def __reduce__(self):
        return (Path("/").exists, ())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_objects_in_torch_files_are_refused(tmp_path):
    torch.save({"W_enc": torch.ones(2), "hook": Payload()}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae.pt cannot be read: it holds more than tensors"):
        Source.at(tmp_path).tensors("ae.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"a": Payload()}))
    with pytest.raises(ValueError, match=r"bare.pt cannot be read"):
        Source.at(tmp_path).tensors("bare.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        Source.at(tmp_path).tensors("list.pt")


def test_objects_in_npz_files_are_refused(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.ones(2, np.float32), names=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"params.npz cannot be read: it holds more than tensors"):
        Source.at(tmp_path).tensors("params.npz")


def test_torch_and_npz_files_of_tensors_are_read(tmp_path):
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(3)}
    torch.save(tensors, tmp_path / "a.pt")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "a.npz", **{key: tensor.numpy() for key, tensor in tensors.items()})
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    source = Source.at(tmp_path)
    assert source.shapes("a.safetensors") == {"a": (2, 3), "b": (3,)}
    for file in source.files:
        found = source.tensors(file)
        assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in found)


@pytest.mark.parametrize("file", ["a.pt", "a.npz", "a.safetensors", "old.pth", "a.json", "a.yaml"])
def test_a_truncated_file_is_named(tmp_path, file):
    test_torch_and_npz_files_of_tensors_are_read(tmp_path)
    (tmp_path / "a.json").write_text('{"a": [1, 2, 3]}')
    (tmp_path / "a.yaml").write_text("a: [1, 2, 3]")
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    source = Source.at(tmp_path)
    read = {"json": source.json, "yaml": source.yaml}.get(file.partition(".")[2], source.tensors)
    with pytest.raises(ValueError, match=f"{file} cannot be read"):
        read(file)


def test_yaml_makes_no_objects(tmp_path):
    (tmp_path / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match=r"config.yaml cannot be read"):
        Source.at(tmp_path).yaml("config.yaml")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list"):
        Source.at(tmp_path).json("list.json")


@pytest.mark.parametrize("path", ["../secret.json", "/etc/passwd", "a/../../secret.json", "..\\secret.json"])
def test_paths_that_lead_out_are_refused(tmp_path, path):
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.json").write_text("{}")
    source = Source.at(tmp_path / "inside")
    for enter in (source.path, source.within, source.json):
        with pytest.raises(ValueError, match="leads out of"):
            enter(path)


@pytest.mark.parametrize("value", [None, [], ["a"], {"a": 1}, "no", True, -3, 10**30, 1.5], ids=repr)
@pytest.mark.parametrize(
    "name",
    ["architecture", "apply_b_dec_to_input", "normalize_activations", "d_in", "d_sae", "metadata", "k",
     "rescale_acts_by_decoder_norm", "hook_name"],
)  # fmt: skip
def test_settings_of_another_kind_are_one_error_or_none(tmp_path, name, value):
    known = {
        "architecture": "topk",
        "k": 3,
        "rescale_acts_by_decoder_norm": True,
        "apply_b_dec_to_input": True,
    }
    hook = {"metadata": {"hook_name": value}} if name == "hook_name" else {name: value}
    _saelens(tmp_path / "sae", **known | hook)
    allowed = {  # a null is as good as nothing where something is meant by default
        "apply_b_dec_to_input": (None, True), "normalize_activations": (None,), "d_sae": (None,),
        "metadata": (None, {"a": 1}), "rescale_acts_by_decoder_norm": (None, True), "hook_name": (None, "no"),
    }  # fmt: skip
    if any(value is one or (value == one and type(value) is type(one)) for one in allowed.get(name, ())):
        load(tmp_path / "sae")
        return
    with pytest.raises(ValueError, match=r"sae.* cannot be read: ") as caught:
        load(tmp_path / "sae")
    assert len(str(caught.value)) < 500


def test_an_autoencoder_of_two_widths_is_asked_where_it_reads(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_3"
    folder.mkdir(parents=True)
    tensors = {"W_enc": torch.randn(D + 1, F), "W_dec": torch.randn(F, D), "b_enc": torch.randn(F)}
    tensors |= {"b_dec": torch.randn(D), "threshold": torch.ones(F)}
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    with pytest.raises(ValueError, match=r"layer_3.* reads width 7 and writes width 6, so .* pass reads="):
        load(folder)
    assert load(folder, reads="mlp.3")["resid.3"].reads == "mlp.3"


@pytest.mark.parametrize("where", ["", " ", "a" * 5000], ids=["nothing", "space", "long"])
def test_no_path_is_not_this_folder(where):
    with pytest.raises(FileNotFoundError, match="There is nothing at") as caught:
        load(where)
    assert len(str(caught.value)) < 200


def test_a_hook_without_a_name_is_asked_for(tmp_path):
    folder = _saelens(tmp_path / "sae", hook="")
    with pytest.raises(ValueError, match="do not say where it belongs"):
        load(folder, tiny("llama", torch.float32))
    assert list(load(folder, tiny("llama", torch.float32), site="resid.1")) == ["resid.1"]


def test_what_is_no_model_and_no_mapping_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"fitted to a Model, as Model\.load gives it, not to 'gpt2'"):
        load(_saelens(tmp_path / "sae"), "gpt2")
    with pytest.raises(TypeError, match="not as list"):
        save([SparseCoder.random(D, F)], tmp_path / "own")
    with pytest.raises(ValueError, match="is not the name of a folder inside"):
        export_saelens(
            {".": SparseCoder.random(D, F)}, tmp_path / "out", model_name="x", hooks={".": "hook_embed"}
        )


def test_words_are_not_taken_for_true(tmp_path):
    for name, change in (
        ("a", {"apply_b_dec_to_input": "False"}),
        ("b", {"rescale_acts_by_decoder_norm": "no"}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(change))} is '.*', which is not true or false"):
            load(_saelens(tmp_path / name, **change))


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    _saelens(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "sae_weights.safetensors")
    tensors["W_dec"][0, 0] = torch.nan
    safetensors.torch.save_file(tensors, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="W_dec is not finite"):
        load(tmp_path)


# The hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache as the hub's client keeps it, with a repository of two dictionaries, and no connection."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--some--saes"
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
        _saelens(repo / "snapshots" / commit / "layer_0", hook="blocks.0.hook_resid_post")
    _saelens(repo / "snapshots" / ("b" * 40) / "layer_1")
    return repo


def test_cached_repositories_are_read_without_a_connection(cache):
    assert list(load("some/saes")) == ["resid.0"]
    assert list(load("some/saes@v2")) == ["resid.0", "resid.1"]
    assert list(load("some/saes@v2/layer_1")) == ["resid.1"]
    coder = load("some/saes@v2/layer_1")["resid.1"]
    assert coder.meta["source"] == "some/saes@v2/layer_1"


def test_what_is_not_cached_says_what_to_do(cache):
    with pytest.raises(ValueError, match=r"'other/saes' is neither.*without HF_HUB_OFFLINE"):
        load("other/saes")
    with pytest.raises(FileNotFoundError, match="some/saes/layer_9"):
        load("some/saes/layer_9")
    for address in ("no such folder", "a/b/../c", "only_one_part"):
        with pytest.raises(FileNotFoundError, match="no repository"):
            load(address)


def test_only_the_files_that_are_needed_are_downloaded(cache, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    names = ("cfg.json", "sae_weights.safetensors", "optimizer.pt")
    files = [f"layer_{i}/{name}" for i in range(2) for name in names] + ["README.md"]
    asked = []

    def download(repo, file, *, revision=None):
        asked.append(f"{repo}@{revision}:{file}")
        return str(cache / "snapshots" / ("b" * 40) / file)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo, revision=None: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert list(load("some/saes@v2/layer_1")) == ["resid.1"]
    assert set(asked) == {"some/saes@v2:layer_1/cfg.json", "some/saes@v2:layer_1/sae_weights.safetensors"}
    asked.clear()
    shelf = load("some/saes@v2", lazy=True)
    assert all(line.endswith("cfg.json") for line in asked)
    assert shelf["resid.0"].d_in == WIDTH


def test_a_hub_that_does_not_answer_leaves_the_cache(cache, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    def refuse(self, repo, revision=None):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    assert Source.at("some/saes").files == ["layer_0/cfg.json", "layer_0/sae_weights.safetensors"]
    with pytest.raises(ValueError, match="no route to host"):
        Source.at("other/saes")
