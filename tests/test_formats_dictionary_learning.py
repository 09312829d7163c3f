"""Files of dictionary_learning, against the equations of its classes and what sae-lens makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interventions.dictionaries import BatchTopK, JumpReLU, SparseCoder, TopK, load
from interventions.dictionaries.activations import BatchwiseTopK

D = 6


def _linear(f: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "encoder.weight": torch.randn(f, D),
        "encoder.bias": torch.randn(f) / 2,
        "decoder.weight": torch.randn(D, f) / 3,
    }


def _direct(f: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "W_enc": torch.randn(D, f),
        "b_enc": torch.randn(f) / 2,
        "W_dec": torch.randn(f, D) / 3,
        "b_dec": torch.randn(D),
    }


def _z(t: dict[str, Tensor], x: Tensor, bias: Tensor | float) -> Tensor:
    """Pre-activations as `torch.nn.Linear` computes them."""
    return (x - bias) @ t["encoder.weight"].T + t.get("encoder.bias", 0)


def _normed(t: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `AutoEncoder.normalize_decoder` does on loading."""
    norms = t["decoder.weight"].norm(dim=0)
    return t | {
        "decoder.weight": t["decoder.weight"] / norms,
        "encoder.weight": t["encoder.weight"] * norms[:, None],
        "encoder.bias": t["encoder.bias"] * norms,
    }


def standard(t, x):
    t = _normed(t)
    f = _z(t, x, t["bias"]).relu()
    return f, f @ t["decoder.weight"].T + t["bias"]


def new(t, x):
    f = _z(t, x, 0.0).relu()
    return f, f @ t["decoder.weight"].T + t["decoder.bias"]


def gated(t, x):
    u = _z(t, x, t["decoder_bias"])
    gate = (u + t["gate_bias"] > 0).float()
    f = gate * (t["r_mag"].exp() * u + t["mag_bias"]).relu()
    return f, f @ t["decoder.weight"].T + t["decoder_bias"]


def jump(t, x):
    z = x @ t["W_enc"] + t["b_enc"]
    f = (z * (z > t["threshold"])).relu()
    return f, f @ t["W_dec"] + t["b_dec"]


def topk(t, x):
    z = _z(t, x, t["b_dec"]).relu()
    best = z.topk(int(t["k"]), dim=-1)
    f = torch.zeros_like(z).scatter(-1, best.indices, best.values)
    return f, f @ t["decoder.weight"].T + t["b_dec"]


def batch(t, x):
    z = _z(t, x, t["b_dec"]).relu()
    f = z * (z > t["threshold"])
    return f, f @ t["decoder.weight"].T + t["b_dec"]


def matryoshka(t, x):
    z = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    f = z * (z > t["threshold"])
    return f, f @ t["W_dec"] + t["b_dec"]


def _tensors(name: str, f: int) -> dict[str, Tensor]:
    k = {"k": torch.tensor(2, dtype=torch.int), "threshold": torch.tensor(1.5)}
    made = {
        "AutoEncoder": lambda: _linear(f) | {"bias": torch.randn(D)},
        "AutoEncoderNew": lambda: _linear(f) | {"decoder.bias": torch.randn(D)},
        "GatedAutoEncoder": lambda: (
            {key: value for key, value in _linear(f).items() if key != "encoder.bias"}
            | {"decoder_bias": torch.randn(D)}
            | {key: torch.randn(f) / 2 for key in ("r_mag", "gate_bias", "mag_bias")}
        ),
        "JumpReluAutoEncoder": lambda: _direct(f) | {"threshold": torch.rand(f)},
        "AutoEncoderTopK": lambda: _linear(f) | {"b_dec": torch.randn(D)} | k,
        "BatchTopKSAE": lambda: _linear(f) | {"b_dec": torch.randn(D)} | k,
        "MatryoshkaBatchTopKSAE": lambda: _direct(f) | k | {"group_sizes": torch.tensor([4, f - 4])},
    }
    return made[name]()


EQUATIONS = {
    "AutoEncoder": standard,
    "AutoEncoderNew": new,
    "GatedAutoEncoder": gated,
    "JumpReluAutoEncoder": jump,
    "AutoEncoderTopK": topk,
    "BatchTopKSAE": batch,
    "MatryoshkaBatchTopKSAE": matryoshka,
}


def _write(folder: Path, tensors: dict, name: str | None = None, **trainer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    if name is not None:
        trainer = {"dict_class": name, "layer": 3, "lm_name": "tiny"} | trainer
        config = {"trainer": trainer, "buffer": {"d_submodule": D, "ctx_len": 128}}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def _one(path: Path) -> SparseCoder:
    ((_, coder),) = load(path).items()
    return coder


@pytest.mark.parametrize("width", [20, D], ids=["wide", "square"])
@pytest.mark.parametrize("name", EQUATIONS)
def test_every_class_gives_what_the_library_gives(tmp_path, name, width):
    tensors, x = _tensors(name, width), torch.randn(3, 5, D)
    coder = _one(_write(tmp_path, tensors, name, submodule_name="resid_post_layer_3"))
    f, y = EQUATIONS[name](tensors, x)
    assert 0 < (f != 0).float().mean() < 1
    assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5
    assert (coder.site, coder.reads) == ("resid.3", None)
    assert coder.units.latents == "raw"
    assert (coder.meta["dict_class"], coder.meta["lm_name"], coder.meta["context_size"]) == (
        name,
        "tiny",
        128,
    )


@pytest.mark.parametrize("name", EQUATIONS)
def test_half_precision_is_read_as_it_stands(tmp_path, name):
    tensors = _tensors(name, 20)
    half = {key: t.to(torch.bfloat16) if t.is_floating_point() else t for key, t in tensors.items()}
    coder = _one(_write(tmp_path, half, name))
    x = torch.randn(4, D)
    f, y = EQUATIONS[name]({key: t.float() if t.is_floating_point() else t for key, t in half.items()}, x)
    assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5
    stored = load(tmp_path, dtype=None)["resid.3" if "resid.3" in load(tmp_path) else tmp_path.name]
    threshold = getattr(stored.activation, "threshold", None)
    assert threshold is None or threshold.dtype == torch.float32


@pytest.mark.parametrize("name", [n for n in EQUATIONS if n not in ("AutoEncoderTopK", "BatchTopKSAE")])
def test_the_class_is_told_by_the_tensors_where_there_is_no_config(tmp_path, name):
    tensors, x = _tensors(name, 20), torch.randn(4, D)
    assert (_one(_write(tmp_path, tensors)).encode(x) - EQUATIONS[name](tensors, x)[0]).abs().max() < 1e-5


def test_topk_and_batch_topk_are_told_apart_by_the_config_alone(tmp_path):
    tensors = _tensors("BatchTopKSAE", 20)
    per_token = _one(_write(tmp_path / "a", tensors, "AutoEncoderTopK"))
    per_batch = _one(_write(tmp_path / "b", tensors, "BatchTopKSAE"))
    assert isinstance(per_token.activation, TopK) and per_token.units.threshold == "none"
    assert isinstance(per_batch.activation, BatchTopK) and per_batch.units.threshold == "stored"
    with pytest.raises(ValueError, match=r"TopK and BatchTopK look the same.*Pass the folder"):
        load(_write(tmp_path / "c", tensors))
    with pytest.raises(ValueError, match=r"TopK and BatchTopK look the same.*Pass the folder"):
        load(tmp_path / "a/ae.pt")


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_without_an_estimated_threshold_the_batch_decides_and_this_is_said(tmp_path, name):
    tensors = _tensors(name, 20) | {"threshold": torch.tensor(-1.0)}
    with pytest.warns(UserWarning, match="no threshold was estimated"):
        coder = _one(_write(tmp_path, tensors, name))
    assert isinstance(coder.activation, BatchwiseTopK) and coder.activation.k == 2
    x = torch.randn(7, D)
    assert (coder.encode(x) != 0).sum() == 2 * len(x)


def test_groups_of_a_matryoshka_dictionary_are_its_prefixes(tmp_path):
    tensors = _tensors("MatryoshkaBatchTopKSAE", 20)
    coder = _one(_write(tmp_path, tensors, "MatryoshkaBatchTopKSAE"))
    assert coder.prefixes == (4, 20)
    x = torch.randn(5, D)
    f, _ = matryoshka(tensors, x)
    assert (coder.prefix(4).encode(x) - f[:, :4]).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"groups end at \[2, 5\], but it has 20 features"):
        load(_write(tmp_path, tensors | {"group_sizes": torch.tensor([2, 3])}, "MatryoshkaBatchTopKSAE"))


def test_rows_of_zero_stay_where_the_decoder_is_brought_to_unit_norm(tmp_path):
    tensors = _tensors("AutoEncoder", 20)
    tensors["decoder.weight"][:, 4] = 0
    coder, x = _one(_write(tmp_path, tensors, "AutoEncoder")), torch.randn(5, D)
    raw = _z(tensors, x, tensors["bias"]).relu()
    assert (coder(x) - (raw @ tensors["decoder.weight"].T + tensors["bias"])).abs().max() < 1e-5
    norms = coder.W_dec.norm(dim=-1)
    assert norms[4] == 0 and torch.allclose(norms[torch.arange(20) != 4], torch.ones(19))


def test_a_unit_decoder_is_left_bit_for_bit(tmp_path):
    tensors = _tensors("AutoEncoder", 20)
    tensors["decoder.weight"] /= tensors["decoder.weight"].norm(dim=0)
    coder = _one(_write(tmp_path, tensors, "AutoEncoder"))
    assert torch.equal(coder.W_enc, tensors["encoder.weight"].T)


def test_a_sweep_lists_its_dictionaries(tmp_path):
    for i in range(3):
        _write(
            tmp_path / f"resid_post_layer_3/trainer_{i}", _tensors("AutoEncoderTopK", 20), "AutoEncoderTopK"
        )
    with pytest.raises(ValueError, match=r"3 dictionaries for resid\.3.*trainer_0.*trainer_1.*trainer_2"):
        load(tmp_path)
    assert list(load(tmp_path / "resid_post_layer_3/trainer_1")) == ["resid.3"]


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("resid_post_layer_5", "resid.5"),
        ("mlp_out_layer_2", "mlp.2"),
        ("attn_out_layer0", "attn.0"),
        ("mlp_out", "mlp.3"),
        ("run_blocks.4.hook_resid_post__trainer_10", "resid.4"),
    ],
)
def test_places_are_told_by_the_settings_or_by_a_folder(tmp_path, name, site):
    tensors = _tensors("AutoEncoder", 20)
    assert list(load(_write(tmp_path / "a", tensors, "AutoEncoder", submodule_name=name))) == [site]
    assert list(load(_write(tmp_path / name, tensors, "AutoEncoder"))) == [site]


def test_the_dictionaries_for_pythia_70m_are_one_load(tmp_path):
    root = tmp_path / "dictionaries/pythia-70m-deduped"
    folders = ["embed"] + [f"{part}_out_layer{i}" for part in ("attn", "mlp", "resid") for i in range(2)]
    written = {}
    for folder in folders:
        written[folder] = _tensors("AutoEncoder", 20) | {"bias": torch.randn(D)}
        _write(root / folder / "10_32768", written[folder])
        (root / folder / "10_32768/config.json").write_text(json.dumps({"trainer": {}, "buffer": {}}))
    dictionaries = load(tmp_path)
    assert set(dictionaries) == {"embed", "attn.0", "attn.1", "mlp.0", "mlp.1", "resid.0", "resid.1"}
    x = torch.randn(4, D)
    for site, folder in [("embed", "embed"), ("mlp.1", "mlp_out_layer1"), ("resid.0", "resid_out_layer0")]:
        assert (dictionaries[site](x) - standard(written[folder], x)[1]).abs().max() < 1e-5
    assert list(load(root / "mlp_out_layer1")) == ["mlp.1"]


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    good = _tensors("AutoEncoderTopK", 20)

    def refused(match: str, tensors: dict, name: str | None = "AutoEncoderTopK") -> None:
        with pytest.raises(ValueError, match=match):
            load(_write(tmp_path / "x", tensors, name))

    refused(
        "ae.pt cannot be read: its dict_class is 'CrossCoder'; known are AutoEncoder,", good, "CrossCoder"
    )
    refused("it lacks b_dec; it has", {key: t for key, t in good.items() if key != "b_dec"})
    refused("it has r_mag, which is none of", good | {"r_mag": torch.zeros(20)})
    refused(
        "encoder.bias has entries that are not finite", good | {"encoder.bias": torch.full((20,), torch.nan)}
    )
    refused("b_enc has shape", good | {"encoder.bias": torch.zeros(19)})
    refused(
        "k, the number of features per token, is missing", {key: t for key, t in good.items() if key != "k"}
    )
    refused("k is inf", good | {"k": torch.tensor(torch.inf)})
    refused("threshold is nan", good | {"threshold": torch.tensor(torch.nan)}, "BatchTopKSAE")
    refused("k must be smaller", good | {"k": torch.tensor(20)})
    refused("could run code", good | {"b_dec": pytest.raises})
    refused("b_dec is a list, not a tensor", good | {"b_dec": [1.0]})
    (tmp_path / "x/config.json").unlink()
    refused("those of no class that is known", {"weight": torch.zeros(3)}, None)


def test_a_truncated_file_is_named(tmp_path):
    file = _write(tmp_path, _tensors("AutoEncoderTopK", 20), "AutoEncoderTopK") / "ae.pt"
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"ae\.pt cannot be read"):
        load(tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize("name", [n for n in EQUATIONS if n != "AutoEncoderNew"])  # which sae-lens lacks
def test_classes_agree_with_sae_lens(tmp_path, monkeypatch, name):
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from sae_lens.saes.sae import SAE

    tensors = _tensors(name, 20)
    sizes = {"activation_dim": D, "dict_size": 20, "k": 2}
    folder = _write(tmp_path, tensors, name, submodule_name="resid_post_layer_3", **sizes)
    monkeypatch.setattr(
        loaders, "hf_hub_download", lambda *_, filename, **__: str(folder / filename.split("/")[-1])
    )
    config, state, _ = loaders.dictionary_learning_sae_huggingface_loader_1("owner/repo", "trainer_0")
    config = loaders.handle_config_defaulting(loaders.handle_pre_6_0_config(config))
    config = {**config, **config.pop("activation_fn_kwargs", {})}
    kind = "topk" if name == "AutoEncoderTopK" else config["architecture"]
    theirs = SAE.get_sae_class_for_architecture(kind).from_dict(config | {"architecture": kind})
    theirs.process_state_dict_for_loading(state)
    theirs.load_state_dict(state)
    ours, x = load(folder)["resid.3"], torch.randn(9, D)
    f = theirs.encode(x)
    if name == "AutoEncoder":  # sae-lens leaves decoder rows as they are
        f = f * tensors["decoder.weight"].norm(dim=0)
    assert (ours.encode(x) - f).abs().max() < 1e-5
    assert (ours(x) - theirs(x)).abs().max() < 1e-5
    if name == "JumpReluAutoEncoder":
        assert isinstance(ours.activation, JumpReLU) and ours.b_pre is None
