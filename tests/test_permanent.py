import sys
from pathlib import Path

import pytest
import torch
from families import EVERY_FAMILY, WIDTH, module, tiny
from safetensors.torch import load_file

from interventions.model import Model
from interventions.permanent import bake, export_gguf, load_gguf
from interventions.splice import applied
from interventions.steering.direction import Direction
from interventions.tensor_edits import Add, Project
from interventions.where import Where

GOLDEN = Path(__file__).parent / "golden" / "steering"
TOKENS = torch.arange(3, 17).reshape(2, 7)
# For each family the sites of block 1 where an `Add` can be a bias, and those where the bias is a new one.
BAKED = {
    "gpt2": ("attn_in attn mlp_in mlp resid heads", ""),
    "gpt_neo": ("attn_in attn mlp_in mlp resid heads", ""),
    "gpt_neox": ("attn_in attn mlp_in mlp resid heads", ""),
    "gpt_neox_sequential": ("attn_in attn mlp_in mlp resid heads", ""),
    "llama": ("", "attn mlp resid heads"),
    "mistral": ("", "attn mlp resid heads"),
    "qwen2": ("", "attn mlp resid heads"),
    "qwen3": ("", "attn mlp resid heads"),
    "olmo2": ("", "heads"),
    "gemma": ("", "attn mlp resid heads"),
    "gemma2": ("", "heads"),
    "gemma3_text": ("", "heads"),
    "cohere": ("", "attn mlp resid heads"),
    "phi": ("attn mlp resid heads", ""),
    "opt": ("attn_in attn mlp_in mlp resid heads", ""),
    "bloom": ("attn_in attn mlp_in mlp resid heads", ""),
    "mixtral": ("", "attn heads"),
    "mamba": ("", "mixer resid"),
    "mamba2": ("", "mixer resid"),
    "falcon_mamba": ("", "mixer resid"),
    "rwkv": ("mixer_in mlp_in", "mixer"),
    "recurrent_gemma": ("mixer mlp resid", ""),
    "jamba": ("", "attn heads"),
    "zamba2": ("", "mixer resid"),
    "falcon_h1": ("", "mixer attn mlp resid heads"),
    "qwen3_next": ("", "mixer"),
}


def vector(model, site, seed=0):
    return torch.randn(model.site(site).width, generator=torch.Generator().manual_seed(seed))


def saves(model):
    return "save_pretrained" not in vars(model.module)


# Biases


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_an_added_vector_becomes_a_bias_where_the_architecture_has_a_place_for_it(family):
    model = tiny(family)
    found: dict[bool, list[str]] = {True: [], False: []}
    for site in (s for s in [*model.sites, "heads.1"] if s.endswith(".1")):
        if site not in model._named:
            continue
        add = Add({site: vector(model, site)}, scale=2)
        try:
            baked = bake(model, add)
        except ValueError as error:
            assert str(error).startswith(f"No bias adds to {site}")
            continue
        found[saves(baked)].append(site.removesuffix(".1"))
        plain = model.logits(TOKENS)
        with applied(model, add):
            steered = model.logits(TOKENS)
        assert (baked.logits(TOKENS) - steered).abs().max() < 1e-5 * (steered - plain).abs().max()
        assert torch.equal(model.logits(TOKENS), plain)
    known, new = BAKED[family]
    assert (found[True], found[False]) == (known.split(), new.split())


@pytest.mark.parametrize("family", [family for family, (known, _) in BAKED.items() if known])
def test_a_baked_model_survives_its_file_where_its_module_had_a_bias(family, tmp_path):
    model = Model.load(module(family, torch.float32))
    sites = [f"{stem}.1" for stem in BAKED[family][0].split()]
    baked = bake(model, {site: vector(model, site, i) for i, site in enumerate(sites)})
    baked.module.save_pretrained(tmp_path)
    loaded = Model.load(str(tmp_path))
    assert torch.allclose(loaded.logits(TOKENS), baked.logits(TOKENS), atol=1e-5)
    assert not torch.allclose(loaded.logits(TOKENS), model.logits(TOKENS), atol=1e-2)


def test_a_new_bias_is_not_dropped_in_silence_when_the_model_is_saved(tmp_path):
    model = tiny("llama")
    baked = bake(model, {"resid.1": vector(model, "resid.1")})
    with pytest.raises(ValueError, match=r"no place for the new biases of model.layers.1.mlp.down_proj"):
        baked.module.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    again = bake(baked, {"resid.1": vector(model, "resid.1", 1)})
    with pytest.raises(ValueError, match="no place for the new biases"):
        again.module.save_pretrained(tmp_path)


def test_several_at_one_site_add_up_and_generation_is_the_same_as_under_applied():
    model = tiny("llama")
    add = Add({"resid.0": vector(model, "resid.0")}, scale=3) | Add(
        {"resid.0": vector(model, "resid.0", 1), "heads.2": vector(model, "heads.2", 2)}, scale=-2
    )
    baked = bake(model, add)
    kwargs = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with applied(model, add):
        steered = model.generate(TOKENS, **kwargs)
    assert torch.equal(baked.generate(TOKENS, **kwargs), steered)
    assert not torch.equal(model.generate(TOKENS, **kwargs), steered)


def test_what_was_baked_comes_off_by_baking_its_inverse():
    model = tiny("gpt2")
    add = Add({"resid.1": vector(model, "resid.1")})
    back = bake(bake(model, add), add.inverse())
    assert torch.allclose(back.logits(TOKENS), model.logits(TOKENS))


def test_a_baked_model_shares_all_other_weights():
    model = tiny("gpt2")
    baked = bake(model, {"resid.1": vector(model, "resid.1")})
    theirs = {id(p) for p in model.module.parameters()}
    own = [name for name, p in baked.module.named_parameters() if id(p) not in theirs]
    assert own == ["transformer.h.1.mlp.c_proj.bias"]


def test_half_precision_bakes_within_its_rounding():
    model = Model.load(module("gpt2", torch.bfloat16))
    add = Add({"resid.0": 3 * vector(model, "resid.0")})
    with applied(model, add):
        steered = model.logits(TOKENS)
    off = (bake(model, add).logits(TOKENS) - steered).abs().max()
    assert off < 0.05 * (steered - model.logits(TOKENS)).abs().max()


def test_a_site_that_no_bias_adds_to_is_refused_with_what_was_tried():
    post_norm = tiny("gemma2")
    with pytest.raises(ValueError, match=r"No bias adds to attn\.0 .*Gemma2RMSNorm has none"):
        bake(post_norm, {"attn.0": vector(post_norm, "attn.0")})
    with pytest.raises(ValueError, match=r"No bias adds to resid\.0 .*mlp\.down_proj.* does something else"):
        bake(post_norm, {"resid.0": vector(post_norm, "resid.0")})
    experts = tiny("mixtral")
    with pytest.raises(ValueError, match=r"No bias adds to mlp\.0 "):
        bake(experts, {"mlp.0": vector(experts, "mlp.0")})


def test_a_model_is_not_baked_while_it_is_changed():
    model = tiny("gpt2")
    add = Add({"resid.1": vector(model, "resid.1")})
    with applied(model, add), pytest.raises(ValueError, match="bake outside of `applied`"):
        bake(model, add)


# Files for llama.cpp


def test_repengs_control_vector_is_read_and_written_as_repeng_does(tmp_path):
    model, read = tiny("gpt2", torch.float32), load_file(GOLDEN / "repeng.safetensors")
    direction = load_gguf(GOLDEN / "repeng.gguf", model)
    assert list(direction) == ["resid.1", "resid.2"]
    assert direction.how["model_hint"] == "gpt2"
    assert all(torch.equal(direction[f"resid.{layer}"], vector) for layer, vector in read.items())
    export_gguf(direction, tmp_path / "ours.gguf", model)
    ours, theirs = contents(tmp_path / "ours.gguf"), contents(GOLDEN / "repeng.gguf")
    assert ours == theirs


def contents(path):
    """Every field, and every tensor by name as bytes; the order of tensors aside."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    fields = {k: f.contents() for k, f in reader.fields.items()}
    return fields, {t.name: (t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in reader.tensors}


@pytest.mark.oracle
def test_repeng_reads_our_control_vector(tmp_path):
    np = pytest.importorskip("numpy")
    np.float_ = np.float64
    repeng = pytest.importorskip("repeng")
    model = tiny("llama", torch.float32)
    add = Add({"resid.1": vector(model, "resid.1"), "resid.2": vector(model, "resid.2", 1)}, scale=0.5)
    export_gguf(add, tmp_path / "ours.gguf", model)
    theirs = repeng.ControlVector.import_gguf(tmp_path / "ours.gguf")
    assert theirs.model_type == "llama"
    for site, v in add.directions.items():
        assert (theirs.directions[int(site[-1])] == (0.5 * v).numpy()).all()
    control = repeng.ControlModel(model.module, [1, 2])
    try:
        control.set_control(theirs)
        steered = model.module(TOKENS[:1]).logits  # it takes the positions of one row for the batch's
    finally:
        control.unwrap()
    with applied(model, add):
        assert torch.allclose(model.logits(TOKENS[:1]), steered, atol=1e-5)


def test_scales_are_folded_in_and_what_is_at_one_site_is_summed(tmp_path):
    model = tiny("llama")
    one, other = vector(model, "resid.1"), vector(model, "resid.1", 1)
    add = Add({"resid.1": one}, scale=3) | Add({model.site("resid.1"): other}).at(Where())
    export_gguf(add, tmp_path / "v.gguf", model)
    read = load_gguf(tmp_path / "v.gguf", model)
    assert torch.allclose(read["resid.1"], 3 * one + other)
    with applied(model, add):
        steered = model.logits(TOKENS)
    with applied(model, Add(read)):
        assert torch.allclose(model.logits(TOKENS), steered, atol=1e-5)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["resid.0", "resid.1"], r"no control vector at its first layer: leave out resid\.0"),
        (["mlp.1"], r"mlp\.1 has no place in it, resid\.1 to resid\.2 have"),
        (["embed"], "embed has no place"),
        (["heads.1"], r"heads\.1 has no place"),
    ],
)
def test_sites_that_a_control_vector_has_no_place_for_are_refused(sites, message, tmp_path):
    model = tiny("gpt2")
    with pytest.raises(ValueError, match=message):
        export_gguf({site: vector(model, site) for site in sites}, tmp_path / "v.gguf", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("made", [lambda add, path, model: export_gguf(add, path, model),
                                  lambda add, path, model: bake(model, add)])  # fmt: skip
def test_what_cannot_be_permanent_is_refused(made, tmp_path):
    model = tiny("gpt2")
    right = {"resid.1": vector(model, "resid.1")}
    for given, error, message in [
        (Add(right).at(Where(prompt=-1)), ValueError, "at some tokens only"),
        (Project(right), ValueError, r"Project.* is no `Add`"),
        (Add(right).keeping_norm(), ValueError, "is no `Add`"),
        ({"resid.1": torch.ones(WIDTH + 1)}, ValueError, r"resid\.1 has the shape \(33,\), not \(32\)"),
        ({"resid.1": torch.full((WIDTH,), torch.nan)}, ValueError, r"resid\.1 is not finite"),
        ({"resid.9": torch.ones(WIDTH)}, LookupError, r"No site 'resid\.9'"),
        (Direction(right, fingerprint="0123456789"), ValueError, r"another model \(fingerprint 01234567\)"),
        ({}, ValueError, "Nothing is added"),
    ]:
        with pytest.raises(error, match=message):
            made(given, tmp_path / "v.gguf", model)


def test_files_that_are_no_control_vectors_of_this_model_are_refused(tmp_path):
    gguf = pytest.importorskip("gguf")
    np = pytest.importorskip("numpy")
    model = tiny("gpt2")

    def written(name, arch, **tensors):
        writer = gguf.GGUFWriter(tmp_path / name, arch)
        for tensor, values in tensors.items():
            writer.add_tensor(tensor.replace("_", "."), np.asarray(values, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    (tmp_path / "text.gguf").write_text("not a model at all, though it is long enough to be looked at")
    whole = (GOLDEN / "repeng.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-64])
    (tmp_path / "bytes.gguf").write_bytes(whole.replace(b"controlvector", b"controlvecto\xff"))
    for path, error, message in [
        (tmp_path / "none.gguf", FileNotFoundError, "There is no file"),
        (tmp_path / "text.gguf", ValueError, "is not a whole GGUF file"),
        (tmp_path / "cut.gguf", ValueError, "is not a whole GGUF file"),
        (tmp_path / "bytes.gguf", ValueError, "is not a whole GGUF file"),
        (written("llama.gguf", "llama", direction_1=np.ones(WIDTH)), ValueError, "says that it is 'llama'"),
        (written("odd.gguf", "controlvector", token=np.ones(WIDTH)), ValueError, "'token' in .*direction.N"),
        (written("wide.gguf", "controlvector", direction_1=np.ones(40)), ValueError, "has width 40"),
        (
            written("deep.gguf", "controlvector", direction_7=np.ones(WIDTH)),
            LookupError,
            r"No site 'resid\.7'",
        ),
        (written("none_there.gguf", "controlvector"), ValueError, "at least one site"),
    ]:
        with pytest.raises(error, match=message):
            load_gguf(path, model)


def test_without_gguf_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    model = tiny("gpt2")
    with pytest.raises(ImportError, match=r"breadboard-circuits\[gguf\]"):
        export_gguf({"resid.1": vector(model, "resid.1")}, tmp_path / "v.gguf", model)
    with pytest.raises(ImportError, match=r"breadboard-circuits\[gguf\]"):
        load_gguf(GOLDEN / "repeng.gguf", model)
