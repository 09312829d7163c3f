from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from families import tiny

from interventions.dictionaries import SparseCoder, export_sparsify, load
from interventions.dictionaries.activations import AbsTopK, BatchTopK, GroupMax, JumpReLU, ReLU, TopK
from interventions.dictionaries.normalisation import RescaleNorm

D, F = 6, 24
CFG = {
    "activation": "topk",
    "expansion_factor": 4,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": 3,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}


def _tensors(d: int = D, f: int = F, skip: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"encoder.weight": (f, d), "encoder.bias": (f,), "W_dec": (f, d), "b_dec": (d,)}
    shapes |= {"W_skip": (d, d)} if skip else {}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def _write(folder: Path, cfg: dict, tensors: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    safetensors.torch.save_file(tensors, folder / "sae.safetensors")
    return folder


def test_a_run_gives_a_dictionary_for_each_folder_and_opens_nothing_else(tmp_path):
    for place in ("layers.0.mlp", "layers.1", "embed_tokens", "layers.2.self_attn.o_proj"):
        _write(tmp_path / place, CFG, _tensors())
        (tmp_path / place / "optimizer_0.pt").write_bytes(b"never opened")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "state.pt").write_bytes(b"never opened")
    found = load(tmp_path)
    assert set(found) == {"mlp.0", "resid.1", "embed", "layers.2.self_attn.o_proj.output"}
    assert all(coder.reads is None and coder.activation.k == 3 for coder in found.values())


def test_one_folder_alone_is_at_the_place_it_is_called_after(tmp_path):
    assert list(load(_write(tmp_path / "layers.3.mlp", CFG, _tensors()))) == ["mlp.3"]
    with pytest.raises(ValueError, match="pass site="):
        load(_write(tmp_path / "best_one", CFG, _tensors()), tiny("llama", torch.float32))
    assert load(tmp_path / "best_one", site="mlp.1")["mlp.1"].site == "mlp.1"


def test_seeds_are_a_choice(tmp_path):
    for seed in (1, 2):
        _write(tmp_path / "layers.0.mlp" / f"seed{seed}", CFG, _tensors())
    with pytest.raises(ValueError, match=r"2 dictionaries for mlp.0.*layers\.0\.mlp/seed1") as error:
        load(tmp_path)
    path = str(error.value).split("Pass one of ")[1].split(",")[0]
    assert list(load(path)) == ["mlp.0"]


def test_a_transcoder_reads_what_enters_its_module(tmp_path):
    coder = load(_write(tmp_path / "layers.0.mlp", CFG | {"transcode": True}, _tensors()))["mlp.0"]
    assert (coder.reads, coder.b_pre) == ("mlp_in.0", None)


def test_what_was_signed_keeps_the_largest_by_magnitude(tmp_path):
    tensors, x = _tensors(), torch.randn(5, D)
    coder = load(_write(tmp_path / "layers.0", CFG | {"signed": True}, tensors))["resid.0"]
    z = (x - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"]
    features = coder.encode(x)
    assert (features < 0).any() and torch.equal(features != 0, z.abs() >= z.abs().topk(3).values[:, -1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"jump": 1.0}, "unknown settings jump"),
        ({"d_in": D + 1}, "ask for"),
        ({"num_latents": D}, "encoder.weight has shape"),
        ({"skip_connection": True}, "lacks W_skip"),
        ({"k": F}, "k must be smaller"),
        ({"activation": "groupmax", "signed": True}, "cannot be signed"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        load(_write(tmp_path / "layers.0", CFG | change, _tensors()))
    assert str(tmp_path) in str(error.value)


def test_an_unknown_tensor_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown tensors W_skip"):
        load(_write(tmp_path / "layers.0", CFG, _tensors(skip=True)))


def _ours() -> dict[str, SparseCoder]:
    t = _tensors()
    tensors = {
        "W_enc": t["encoder.weight"].T,
        "b_enc": t["encoder.bias"],
        "W_dec": t["W_dec"],
        "b_dec": t["b_dec"],
    }

    def coder(activation, **more):
        return SparseCoder(**tensors, activation=activation, **more)

    skip = torch.randn(D, D)
    return {
        "sae": coder(TopK(3), b_pre=t["b_dec"]),
        "sae with a bias of its own": coder(TopK(3), b_pre=torch.randn(D)),
        "sae that subtracts nothing": coder(TopK(3)),
        "groupmax": coder(GroupMax(4), b_pre=t["b_dec"]),
        "transcoder": coder(TopK(3), reads="mlp_in.0"),
        "skip transcoder": coder(GroupMax(4), reads="mlp_in.0", W_skip=skip),
    }


OURS = _ours()


@pytest.mark.parametrize("case", OURS)
def test_exported_dictionaries_read_back_as_the_same_function(tmp_path, case):
    coder, x = OURS[case], torch.randn(9, D)
    export_sparsify({"mlp.0": coder}, tmp_path, hooks={"mlp.0": "layers.0.mlp"})
    back = load(tmp_path)["mlp.0"]
    assert torch.allclose(back.encode(x), coder.encode(x), atol=1e-5)
    assert torch.allclose(back(x), coder(x), atol=1e-5)
    assert back.reads == coder.reads


def test_what_was_exported_under_our_names_is_at_home_again(tmp_path):
    model = tiny("llama", torch.float32)
    known = {
        "resid.1": SparseCoder.random(32, 48, activation=TopK(3)),
        "mlp.1": SparseCoder.random(32, 48, activation=TopK(3), reads="mlp_in.1"),
    }
    export_sparsify(known, tmp_path)
    for again in (load(tmp_path), load(tmp_path, model)):
        assert {site: coder.reads for site, coder in again.items()} == {"resid.1": None, "mlp.1": "mlp_in.1"}


def test_what_sparsify_cannot_say_is_not_exported(tmp_path):
    base = OURS["sae"]
    for activation in (ReLU(), JumpReLU(torch.rand(F)), BatchTopK(3, 0.5), AbsTopK(3)):
        with pytest.raises(ValueError, match="TopK and GroupMax"):
            export_sparsify({"mlp.0": base._with(activation=activation)}, tmp_path)
    with pytest.raises(ValueError, match="normalised inputs"):
        export_sparsify({"mlp.0": base._with(normalise=RescaleNorm())}, tmp_path)
    with pytest.raises(ValueError, match="one width"):
        export_sparsify({"mlp.0": SparseCoder.random(6, 20, 5, activation=TopK(3))}, tmp_path)
    with pytest.raises(ValueError, match="name of a folder inside"):
        export_sparsify({"mlp.0": base}, tmp_path, hooks={"mlp.0": "../mlp"})


GOLDEN = sorted((Path(__file__).parent / "golden" / "sparsify").glob("*.safetensors"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_files_that_the_library_wrote_give_what_it_gave(path):
    coder, expected = load(path.with_suffix(""))["mlp.1"], safetensors.torch.load_file(path)
    assert (coder.encode(expected["x"]) - expected["f"]).abs().max() < 1e-5
    assert (coder(expected["x"]) - expected["y"]).abs().max() < 1e-5
    assert coder.reads == ("mlp_in.1" if "transcoder" in path.stem else None)


# Against the library itself

CASES = [
    (activation, transcode, skip, d, f)
    for activation in ("topk", "groupmax")
    for transcode, skip in ((False, False), (True, False), (True, True), (False, True))
    for d, f in ((D, F), (8, 8))  # where a transposed matrix fits too
]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("activation", "transcode", "skip", "d", "f"), CASES)
def test_files_of_the_library_give_the_same_features_and_outputs(tmp_path, activation, transcode, skip, d, f):
    from sparsify import SparseCoder as Original
    from sparsify import SparseCoderConfig

    cfg = SparseCoderConfig(
        activation=activation, num_latents=f, k=4, skip_connection=skip, transcode=transcode
    )
    original = Original(d, cfg)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in original.parameters():
            weight.copy_(torch.randn_like(weight))
    original.save_to_disk(tmp_path / "layers.0.mlp")
    (coder,) = load(tmp_path).values()
    x = torch.randn(33, d) * 2 + 0.5
    with torch.no_grad():
        found = original.encode(x)
        features = torch.zeros(33, f).scatter(1, found.top_indices, found.top_acts)
        out = original(x).sae_out
    assert (coder.encode(x) - features).abs().max() < 1e-5
    assert (coder(x) - out).abs().max() < 1e-5 * max(1, out.abs().max())


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", OURS)
def test_the_library_reads_what_we_export(tmp_path, case):
    from sparsify import SparseCoder as Original

    coder, x = OURS[case], torch.randn(33, D)
    export_sparsify({"mlp.0": coder}, tmp_path, hooks={"mlp.0": "layers.0.mlp"})
    original = Original.load_many(str(tmp_path), local=True)["layers.0.mlp"]
    with torch.no_grad():
        out = original(x).sae_out
    assert (coder(x) - out).abs().max() < 1e-5 * max(1, out.abs().max())
