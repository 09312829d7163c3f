"""Gemma Scope 1 and 2, against their equations and, marked `oracle`, against what sae-lens makes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from interventions.dictionaries import JumpReLU, SparseCoder, load
from interventions.dictionaries.cross_layer import CrossLayer
from interventions.dictionaries.formats import Source

D = 6


def _tensors(d: int, f: int, d_out: int, *, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    shapes = {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d_out), "b_dec": (d_out,)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()} | {"threshold": torch.rand(f)}
    return tensors | {"W_dec": tensors["W_dec"] / 4}


def _published(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The equation of the Gemma Scope tutorial."""
    z = x @ t["W_enc"] + t["b_enc"]
    f = (z > t["threshold"]) * z.clamp(min=0)
    return f, f @ t["W_dec"] + t["b_dec"]


def _npz(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "params.npz", **{name: t.numpy() for name, t in tensors.items()})
    return folder


def _one(path: Path, **settings: object) -> SparseCoder:
    ((_, coder),) = load(path, **settings).items()  # type: ignore[arg-type]
    return coder


@pytest.mark.parametrize("width", [24, D], ids=["wide", "square"])
def test_npz_files_are_read_as_published(tmp_path, width):
    tensors, x = _tensors(D, width, D), torch.randn(2, 5, D)
    coder = _one(_npz(tmp_path / "gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_9", tensors))
    f, y = _published(tensors, x)
    assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5
    assert 0 < (f != 0).float().mean() < 1
    assert isinstance(coder.activation, JumpReLU) and coder.activation.threshold.dtype == torch.float32
    assert (coder.units.latents, coder.units.threshold, coder.b_pre) == ("raw", "stored", None)
    assert coder.meta["average_l0"] == 9


@pytest.mark.parametrize(
    ("kind", "site", "reads"),
    [
        ("res", "resid.3", None),
        ("mlp", "mlp.3", None),
        ("att", "heads.3", None),
        ("transcoders", "mlp.3", "mlp_in.3"),
    ],
)
def test_the_name_of_the_repository_says_what_is_read(tmp_path, kind, site, reads):
    d_in = 8 if kind == "att" else D
    folder = tmp_path / f"gemma-scope-2b-pt-{kind}/layer_3/width_16k/average_l0_9"
    dictionaries = load(_npz(folder, _tensors(d_in, 24, d_in)))
    assert list(dictionaries) == [site]
    assert dictionaries[site].reads == reads
    assert dictionaries[site].meta.get("before_gain", False) == (kind == "transcoders")


def test_a_whole_repository_is_a_dictionary_for_each_layer(tmp_path):
    root = tmp_path / "gemma-scope-2b-pt-mlp"
    for layer in range(3):
        _npz(root / f"layer_{layer}/width_16k/average_l0_9", _tensors(D, 24, D, seed=layer))
    assert set(load(root)) == {"mlp.0", "mlp.1", "mlp.2"}
    _npz(root / "layer_1/width_16k/average_l0_50", _tensors(D, 24, D))
    with pytest.raises(ValueError, match=r"2 dictionaries for mlp\.1.*layer_1/width_16k/average_l0_9"):
        load(root)


@dataclass(frozen=True)
class Elsewhere:
    """A repository whose files lie in a folder that is not called like it."""

    name: str
    root: Path

    def listed(self) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()]

    def local(self, file: str) -> Path:
        return self.root / file


def test_a_repository_at_a_revision_is_called_as_without_one(tmp_path):
    _npz(tmp_path / "layer_3/width_16k/average_l0_9", _tensors(D, 24, D))
    source = Source(Elsewhere("google/gemma-scope-2b-pt-mlp@a1b2c3", tmp_path))
    assert list(load(source)) == ["mlp.3"]
    assert list(load(source.within("layer_3/width_16k"))) == ["mlp.3"]


def test_a_file_that_nothing_names_belongs_where_it_is_told(tmp_path):
    folder = _npz(tmp_path / "mine", _tensors(D, 24, D))
    assert list(load(folder, site="mlp.2", reads="mlp_in.2")) == ["mlp.2"]
    assert _one(folder).site is None
    assert _one(folder / "params.npz", site="resid.0").site == "resid.0"


def test_those_of_the_embedding_read_what_enters_the_first_block(tmp_path):
    tensors, rows = _tensors(D, 24, D), torch.randn(7, D)
    folder = tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
    dictionaries = load(_npz(folder, tensors))
    coder = dictionaries["embed"]
    f, y = _published(tensors, rows)
    entered = rows * D**0.5
    assert (coder.encode(entered) - f).abs().max() < 1e-5
    assert (coder(entered) - y * D**0.5).abs().max() < 1e-5
    assert coder.units.input_scale == pytest.approx(D**-0.5)


def _safe(folder: Path, tensors: dict[str, Tensor], name: str = "params.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key.replace("W_", "w_"): t for key, t in tensors.items()}, folder / name)
    return folder


@pytest.mark.parametrize("width", [24, D], ids=["wide", "square"])
@pytest.mark.parametrize("affine", [True, False])
def test_transcoders_of_gemma_scope_2_add_an_affine_map_that_is_not_transposed(tmp_path, affine, width):
    tensors, x = _tensors(D, width, D), torch.randn(5, D)
    extra = {"affine_skip_connection": torch.randn(D, D)} if affine else {}
    folder = tmp_path / f"transcoder_all/layer_2_width_16k_l0_big{'_affine' * affine}"
    dictionaries = load(_safe(folder, tensors | extra))
    coder = dictionaries["mlp.2"]
    f, y = _published(tensors, x)
    if affine:
        y = y + x @ extra["affine_skip_connection"]
    assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5
    assert coder.reads == "mlp_in.2" and "before_gain" not in coder.meta


@pytest.mark.parametrize(
    ("kind", "site"), [("resid_post", "resid.1"), ("attn_out_all", "heads.1"), ("mlp_out", "mlp.1")]
)
def test_autoencoders_of_gemma_scope_2_belong_where_their_folders_say(tmp_path, kind, site):
    folder = _safe(tmp_path / kind / "layer_1_width_16k_l0_small", _tensors(D, 24, D))
    assert list(load(folder)) == [site] and load(folder)[site].reads is None


def test_a_config_names_the_place_where_no_folder_does(tmp_path):
    folder = _safe(tmp_path / "mine", _tensors(D, 24, D))
    config = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-3-1b-pt",
        "hf_hook_point_in": "model.layers.4.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.4.post_feedforward_layernorm.output",
    }
    (folder / "config.json").write_text(json.dumps(config))
    coder = load(folder)["mlp.4"]
    assert coder.reads == "mlp_in.4" and coder.meta["model_name"] == "google/gemma-3-1b-pt"
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "topk"}))
    with pytest.raises(ValueError, match=r"'topk'.*jump_relu"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"affine_connection": True}))
    with pytest.raises(ValueError, match="lacks affine_skip_connection"):
        load(folder)


def test_half_precision_files_keep_their_thresholds_whole(tmp_path):
    tensors = {name: t.to(torch.bfloat16) for name, t in _tensors(D, 24, D).items()}
    folder = _safe(tmp_path / "resid_post/layer_1_width_16k_l0_small", tensors)
    stored = load(folder, dtype=None)["resid.1"]
    assert stored.W_enc.dtype == torch.bfloat16 and stored.activation.threshold.dtype == torch.float32
    x = torch.randn(5, D)
    f, y = _published({name: t.float() for name, t in tensors.items()}, x)
    coder = load(folder)["resid.1"]
    assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5


def _clt(folder: Path, n_layers: int, width: int, *, skip: bool) -> list[dict[str, Tensor]]:
    layers = []
    for layer in range(n_layers):
        tensors = _tensors(D, width, D, seed=layer) | {"W_dec": torch.randn(width, n_layers, D)}
        layers.append(tensors | ({"affine_skip_connection": torch.randn(D, D)} if skip else {}))
        _safe(folder, layers[-1], f"params_layer_{layer}.safetensors")
    return layers


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("width", [10, D], ids=["wide", "square"])
def test_cross_layer_transcoders_keep_their_last_layer(tmp_path, width, skip):
    layers = _clt(tmp_path / "clt/width_262k_l0_big", 3, width, skip=skip)
    dictionaries = load(tmp_path)
    assert list(dictionaries) == ["mlp.0", "mlp.1", "mlp.2"]
    x = torch.randn(3, 5, D)
    features = [_published({**t, "W_dec": t["W_dec"][:, 0]}, x[i])[0] for i, t in enumerate(layers)]
    for m, (site, layer) in enumerate(dictionaries.items()):
        assert isinstance(layer, CrossLayer) and layer.reads == f"mlp_in.{m}"
        assert (layer.encode(x[m]) - features[m]).abs().max() < 1e-5
        y = sum(features[i] @ layers[i]["W_dec"][:, m] for i in range(m + 1)) + layers[m]["b_dec"]
        y = y + (x[m] @ layers[m]["affine_skip_connection"] if skip else 0)
        ours = layer.decode(features[m]) + sum(
            dictionaries[f"mlp.{i}"].onward(site, features[i]) for i in range(m)
        )
        ours = ours if layer.skip(x[m]) is None else ours + layer.skip(x[m])
        assert (ours - y).abs().max() < 1e-5


def test_a_cross_layer_transcoder_without_one_of_its_layers_is_refused(tmp_path):
    _clt(tmp_path, 3, 10, skip=False)
    odd = _tensors(D, 10, D) | {"W_dec": torch.zeros(10, 3, D), "affine_skip_connection": torch.zeros(D, D)}
    _safe(tmp_path, odd, "params_layer_1.safetensors")
    with pytest.raises(ValueError, match="1 of its layers have a skip path"):
        load(tmp_path)
    (tmp_path / "params_layer_1.safetensors").unlink()
    with pytest.raises(ValueError, match="every layer up to 2, and 1 is missing"):
        load(tmp_path)
    (tmp_path / "params_layer_2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"\(10, 3, 6\); with 1 layers"):
        load(tmp_path)


def test_crosscoders_are_refused_by_name(tmp_path):
    _safe(tmp_path / "crosscoder/layer_1_2_width_16k_l0_big", _tensors(D, 24, D))
    with pytest.raises(ValueError, match="crosscoders, whose features are of several layers at once"):
        load(tmp_path)


@pytest.mark.parametrize("write", [_npz, _safe], ids=["npz", "safetensors"])
def test_what_is_wrong_with_a_file_is_said(tmp_path, write):
    def refused(match: str, change: dict[str, Tensor], *, without: str | None = None) -> None:
        tensors = {name: t for name, t in (_tensors(D, 24, D) | change).items() if name != without}
        with pytest.raises(ValueError, match=match):
            load(write(tmp_path / "gemma-scope-2b-pt-res/resid_post/layer_0_width_16k_l0_big", tensors))

    refused("params.* lacks W_enc|params.* lacks w_enc", {}, without="W_enc")
    refused("lacks threshold", {}, without="threshold")
    refused("it has r_mag, which is none of", {"r_mag": torch.zeros(24)})
    refused(r"W_dec has shape|b_enc has shape", {"b_enc": torch.zeros(23)})
    refused("not finite", {"b_dec": torch.full((D,), torch.nan)})


@pytest.mark.parametrize("write", [_npz, _safe], ids=["npz", "safetensors"])
def test_a_truncated_file_is_named(tmp_path, write):
    folder = write(tmp_path / "gemma-scope-2b-pt-res/resid_post/layer_0_width_16k_l0_big", _tensors(D, 24, D))
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"{file.name} cannot be read"):
        load(folder)


def test_objects_in_an_npz_are_not_unpickled(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-res/layer_0"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", W_enc=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="could run code"):
        load(folder)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["res", "embedding", "transcoders"])
def test_gemma_scope_agrees_with_sae_lens(tmp_path, monkeypatch, kind):
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from sae_lens.saes.sae import SAE

    tensors = _tensors(D, 24, D)
    repo = f"gemma-scope-2b-pt-{'transcoders' if kind == 'transcoders' else 'res'}"
    inside = "embedding/width_16k/average_l0_6" if kind == "embedding" else "layer_0/width_16k/average_l0_6"
    folder = _npz(tmp_path / repo / inside, tensors)
    monkeypatch.setattr(loaders, "hf_hub_download", lambda *_, **__: str(folder / "params.npz"))
    convert = loaders.gemma_2_sae_huggingface_loader
    if kind == "transcoders":
        convert = loaders.gemma_2_transcoder_huggingface_loader
    sizes = {"d_in": D, "d_sae": 24} | ({"d_out": D} if kind == "transcoders" else {})
    config, state, *_ = convert(f"google/{repo}", inside, "cpu", cfg_overrides=sizes)
    config = {**config, "normalize_activations": "none"}
    theirs = SAE.get_sae_class_for_architecture(config["architecture"]).from_dict(config)
    theirs.process_state_dict_for_loading(state)
    theirs.load_state_dict(state)
    ours, x = _one(folder), torch.randn(9, D)
    assert (ours.encode(x) - theirs.encode(x)).abs().max() < 1e-5
    if kind == "embedding":  # sae-lens leaves the bias in the units of the matrix
        ours = ours._with(b_dec=ours.b_dec * D**-0.5)
    assert (ours(x) - theirs(x)).abs().max() < 1e-5


@pytest.mark.oracle
def test_gemma_scope_2_agrees_with_sae_lens(tmp_path, monkeypatch):
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from sae_lens.saes.sae import SAE

    tensors = _tensors(D, 24, D) | {"affine_skip_connection": torch.randn(D, D)}
    inside = "transcoder/layer_2_width_16k_l0_big_affine"
    folder = _safe(tmp_path / inside, tensors)
    (folder / "config.json").write_text(
        json.dumps({"architecture": "jump_relu", "model_name": "gemma", "affine_connection": True})
    )
    shapes = {name.replace("W_", "w_"): list(t.shape) for name, t in tensors.items()}
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *_: shapes)
    monkeypatch.setattr(
        loaders,
        "hf_hub_download",
        lambda *args, **settings: str(folder / (settings.get("filename") or args[1]).split("/")[-1]),
    )
    config, state, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-1b-pt", inside, "cpu")
    theirs = SAE.get_sae_class_for_architecture(config["architecture"]).from_dict(config)
    theirs.load_state_dict(state)
    ours, x = load(folder)["mlp.2"], torch.randn(9, D)
    assert (ours.encode(x) - theirs.encode(x)).abs().max() < 1e-5
    assert (ours(x) - theirs(x)).abs().max() < 1e-5
