"""Sets of transcoders of circuit-tracer, against the equations of its classes and against sae-lens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from interventions.dictionaries import JumpReLU, ReLU, TopK, load
from interventions.dictionaries.cross_layer import CrossLayer

D = 6
SET = {
    "model_kind": "transcoder_set",
    "model_name": "tiny",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "hook_mlp_out",
}


def _tensors(f: int, *, skip: bool = False, jump: bool = False, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    shapes = {"W_enc": (f, D), "b_enc": (f,), "W_dec": (f, D), "b_dec": (D,)}
    shapes |= {"W_skip": (D, D)} if skip else {}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    return tensors | ({"activation_function.threshold": torch.rand(f)} if jump else {})


def _forward(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """`SingleLayerTranscoder`."""
    z = torch.nn.functional.linear(x, t["W_enc"], t["b_enc"])
    threshold = t.get("activation_function.threshold")
    f = z.relu() if threshold is None else z * (z > threshold)
    return f, f @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "W_skip" in t else 0)


def _yaml(folder: Path, config: dict) -> None:
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def _layers(folder: Path, n: int, f: int = 20, **settings: bool) -> list[dict[str, Tensor]]:
    folder.mkdir(parents=True, exist_ok=True)
    layers = [_tensors(f, seed=i, **settings) for i in range(n)]
    for i, tensors in enumerate(layers):
        safetensors.torch.save_file(tensors, folder / f"layer_{i}.safetensors")
    return layers


@pytest.mark.parametrize("width", [20, D], ids=["wide", "square"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("jump", [True, False])
def test_a_set_is_a_transcoder_for_each_layer(tmp_path, jump, skip, width):
    _yaml(tmp_path, SET)
    layers, x = _layers(tmp_path, 3, width, jump=jump, skip=skip), torch.randn(2, 5, D)
    dictionaries = load(tmp_path)
    assert list(dictionaries) == ["mlp.0", "mlp.1", "mlp.2"]
    for i, (coder, tensors) in enumerate(zip(dictionaries.values(), layers, strict=True)):
        f, y = _forward(tensors, x)
        assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5
        assert coder.reads == f"mlp_in.{i}" and type(coder.activation) is (JumpReLU if jump else ReLU)
        assert coder.units.threshold == ("stored" if jump else "none")


def test_half_precision_keeps_thresholds_whole(tmp_path):
    _yaml(tmp_path, SET)
    half = {name: t.to(torch.bfloat16) for name, t in _tensors(20, jump=True, skip=True).items()}
    safetensors.torch.save_file(half, tmp_path / "layer_0.safetensors")
    stored, coder, x = load(tmp_path, dtype=None)["mlp.0"], load(tmp_path)["mlp.0"], torch.randn(5, D)
    assert stored.W_enc.dtype == torch.bfloat16 and stored.activation.threshold.dtype == torch.float32
    f, y = _forward({name: t.float() for name, t in half.items()}, x)
    assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5


def test_hooks_before_the_gain_of_a_norm_are_known(tmp_path):
    _yaml(tmp_path, SET | {"feature_input_hook": "ln2.hook_normalized"})
    _layers(tmp_path, 1)
    coder = load(tmp_path)["mlp.0"]
    assert coder.reads == "mlp_in.0" and coder.meta["before_gain"]


def test_the_config_may_say_the_activation(tmp_path):
    layers, x = _layers(tmp_path, 1), torch.randn(5, D)
    _yaml(tmp_path, SET | {"activation": "topk", "k": 3})
    coder = load(tmp_path)["mlp.0"]
    assert isinstance(coder.activation, TopK)
    z = (x @ layers[0]["W_enc"].T + layers[0]["b_enc"]).relu()
    best = z.topk(3, dim=-1)
    assert (coder.encode(x) - torch.zeros_like(z).scatter(-1, best.indices, best.values)).abs().max() < 1e-5
    _yaml(tmp_path, SET | {"activation": "gelu"})
    with pytest.raises(ValueError, match="activation 'gelu'; known are relu, jump_relu and topk"):
        load(tmp_path)
    _yaml(tmp_path, SET | {"activation": "jump_relu"})
    with pytest.raises(ValueError, match="there is no threshold"):
        load(tmp_path)


def test_entries_name_the_file_of_each_layer(tmp_path):
    layers = _layers(tmp_path / "b", 2)
    _yaml(tmp_path, SET | {"transcoders": ["b/layer_1.safetensors", "b/layer_0.safetensors"]})
    dictionaries, x = load(tmp_path), torch.randn(4, D)
    assert (dictionaries["mlp.0"](x) - _forward(layers[1], x)[1]).abs().max() < 1e-5
    assert (dictionaries["mlp.1"](x) - _forward(layers[0], x)[1]).abs().max() < 1e-5


def _cached(cache: Path, repo: str, revision: str) -> Path:
    """The folder where the hub's own library keeps a repository at a revision."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text("0123abcd" * 5)
    return folder / "snapshots" / ("0123abcd" * 5)


def test_entries_in_other_repositories_are_read_from_their_cache(tmp_path, monkeypatch):
    """Files of Gemma Scope too, which store the encoder the other way round."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tensors, others, x = _tensors(D, jump=True), _tensors(20, seed=1), torch.randn(4, D)
    folder = (
        _cached(tmp_path / "cache", "google/gemma-scope-2b-pt-transcoders", "v1") / "layer_0/average_l0_76"
    )
    folder.mkdir(parents=True)
    scope = {name.split(".")[-1]: t.numpy() for name, t in tensors.items()}
    np.savez(folder / "params.npz", **(scope | {"W_enc": tensors["W_enc"].T.numpy()}))
    folder = _cached(tmp_path / "cache", "someone/else", "main")
    folder.mkdir(parents=True)
    safetensors.torch.save_file(others, folder / "layer_1.safetensors")
    entries = [
        "hf://google/gemma-scope-2b-pt-transcoders/layer_0/average_l0_76/params.npz?revision=v1",
        "hf://someone/else/layer_1.safetensors",
    ]
    _yaml(tmp_path / "set", SET | {"feature_input_hook": "ln2.hook_normalized", "transcoders": entries})
    dictionaries = load(tmp_path / "set")
    assert (dictionaries["mlp.0"](x) - _forward(tensors, x)[1]).abs().max() < 1e-5
    assert (dictionaries["mlp.1"](x) - _forward(others, x)[1]).abs().max() < 1e-5
    assert all(coder.meta["before_gain"] for coder in dictionaries.values())
    _yaml(tmp_path / "set", SET | {"transcoders": ["hf://someone/missing/layer_1.safetensors"]})
    with pytest.raises(ValueError, match="someone/missing"):
        load(tmp_path / "set")


def test_a_set_may_be_a_cross_layer_transcoder_of_gemma_scope_2(tmp_path):
    layers = []
    (tmp_path / "files").mkdir()
    for i in range(2):
        t = _tensors(20, seed=i) | {"W_dec": torch.randn(20, 2, D), "threshold": torch.rand(20)}
        layers.append(t)
        stored = {name.replace("W_", "w_"): tensor for name, tensor in t.items()}
        stored["w_enc"] = t["W_enc"].T.contiguous()
        safetensors.torch.save_file(stored, tmp_path / f"files/{i}.safetensors")
    entries = [f"files/{i}.safetensors" for i in range(2)]
    _yaml(tmp_path, SET | {"model_kind": "cross_layer_transcoder", "transcoders": entries})
    dictionaries, x = load(tmp_path), torch.randn(2, 4, D)
    assert list(dictionaries) == ["mlp.0", "mlp.1"]
    f = [_encoded(t, x[i]) for i, t in enumerate(layers)]
    assert (dictionaries["mlp.0"].encode(x[0]) - f[0]).abs().max() < 1e-5
    onward = dictionaries["mlp.0"].onward("mlp.1", f[0])
    assert (onward - f[0] @ layers[0]["W_dec"][:, 1]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "entry",
    ["../secret.safetensors", "/etc/passwd", "hf://owner/repo/../../x.safetensors", "~/x.safetensors"],
)
def test_entries_do_not_lead_out_of_the_set(tmp_path, entry):
    _yaml(tmp_path, SET | {"transcoders": [entry]})
    with pytest.raises(ValueError, match="leads out of the set"):
        load(tmp_path)


def test_a_config_that_is_not_understood_is_refused(tmp_path):
    _layers(tmp_path, 1)
    _yaml(tmp_path, SET | {"model_kind": "crosscoder"})
    with pytest.raises(ValueError, match="model_kind is 'crosscoder'; known are transcoder_set and cross"):
        load(tmp_path)
    _yaml(tmp_path, SET | {"transcoders": {"0": "layer_0.safetensors"}})
    with pytest.raises(ValueError, match="transcoders is no list of paths"):
        load(tmp_path)
    _yaml(tmp_path, SET | {"transcoders": ["hf://repo"]})
    with pytest.raises(ValueError, match="'hf://repo' is not of the form hf://owner/repo/path"):
        load(tmp_path)
    _yaml(tmp_path, SET | {"transcoders": ["layer_7.safetensors"]})
    with pytest.raises(ValueError, match=r"layer_7\.safetensors cannot be read: there is no such file"):
        load(tmp_path)
    (tmp_path / "config.yaml").write_text("model_kind: [")
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read"):
        load(tmp_path)


def test_files_without_a_config_do_not_say_where_they_belong(tmp_path):
    (tensors,), x = _layers(tmp_path / "plain", 1), torch.randn(4, D)
    for path in (tmp_path / "plain", tmp_path / "plain/layer_0.safetensors"):
        ((_, coder),) = load(path).items()
        assert coder.site is None
        assert (coder(x) - _forward(tensors, x)[1]).abs().max() < 1e-5
        assert load(path, site="mlp.0", reads="mlp_in.0")["mlp.0"].reads == "mlp_in.0"
    _layers(tmp_path / "run", 2)
    (tmp_path / "run/wandb-config.yaml").write_text("d_model: {value: 6}")
    dictionaries = load(tmp_path / "run")
    assert [(site, coder.reads) for site, coder in dictionaries.items()] == [
        ("mlp.0", "mlp_in.0"),
        ("mlp.1", "mlp_in.1"),
    ]


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    _yaml(tmp_path, SET)

    def refused(match: str, change: dict[str, Tensor], without: str | None = None) -> None:
        tensors = {name: t for name, t in (_tensors(20) | change).items() if name != without}
        safetensors.torch.save_file(tensors, tmp_path / "layer_0.safetensors")
        with pytest.raises(ValueError, match=match):
            load(tmp_path)

    refused("layer_0.safetensors cannot be read: it lacks W_dec", {}, "W_dec")
    refused("it has log_thresholds, which is none of", {"log_thresholds": torch.zeros(20)})
    refused("W_dec has shape", {"W_dec": torch.zeros(19, D)})
    refused("Thresholds are finite and at least 0", {"activation_function.threshold": -torch.ones(20)})
    refused("W_enc has entries that are not finite", {"W_enc": torch.full((20, D), torch.nan)})
    file = tmp_path / "layer_0.safetensors"
    safetensors.torch.save_file(_tensors(20), file)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"layer_0\.safetensors cannot be read"):
        load(tmp_path)


def _clt(folder: Path, n: int, f: int, *, jump: bool) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    layers = []
    for i in range(n):
        t = {"W_enc": torch.randn(f, D), "b_enc": torch.randn(f), "b_dec": torch.randn(D)}
        t |= {"threshold": torch.rand(f)} if jump else {}
        encoder = {f"{name}_{i}": tensor for name, tensor in t.items()}
        safetensors.torch.save_file(encoder, folder / f"W_enc_{i}.safetensors")
        t["W_dec"] = torch.randn(f, n - i, D) / 2
        safetensors.torch.save_file({f"W_dec_{i}": t["W_dec"]}, folder / f"W_dec_{i}.safetensors")
        layers.append(t)
    return layers


def _encoded(t: dict[str, Tensor], x: Tensor) -> Tensor:
    z = x @ t["W_enc"].T + t["b_enc"]
    return z * (z > t["threshold"]) if "threshold" in t else z.relu()


@pytest.mark.parametrize("width", [20, D], ids=["wide", "square"])
@pytest.mark.parametrize("jump", [True, False])
def test_features_of_a_cross_layer_transcoder_write_to_later_layers(tmp_path, jump, width):
    layers, x = _clt(tmp_path, 3, width, jump=jump), torch.randn(3, 5, D)
    _yaml(tmp_path, SET | {"model_kind": "cross_layer_transcoder"})
    dictionaries = load(tmp_path)
    assert list(dictionaries) == ["mlp.0", "mlp.1", "mlp.2"]
    features = [_encoded(t, x[i]) for i, t in enumerate(layers)]
    for m, (site, layer) in enumerate(dictionaries.items()):
        assert isinstance(layer, CrossLayer) and layer.reads == f"mlp_in.{m}"
        assert (layer.encode(x[m]) - features[m]).abs().max() < 1e-5
        y = sum(features[i] @ layers[i]["W_dec"][:, m - i] for i in range(m + 1)) + layers[m]["b_dec"]
        ours = layer.decode(layer.encode(x[m])) + sum(
            dictionaries[f"mlp.{i}"].onward(site, dictionaries[f"mlp.{i}"].encode(x[i])) for i in range(m)
        )
        assert (ours - y).abs().max() < 1e-5


def test_without_a_config_the_places_are_those_that_the_library_assumes(tmp_path):
    _clt(tmp_path, 2, 20, jump=False)
    dictionaries = load(tmp_path)
    assert [(site, layer.reads) for site, layer in dictionaries.items()] == [
        ("mlp.0", "blocks.0.hook_resid_mid"),
        ("mlp.1", "blocks.1.hook_resid_mid"),
    ]


def test_a_cross_layer_transcoder_is_whole_or_refused(tmp_path):
    _clt(tmp_path, 3, 20, jump=False)
    _yaml(tmp_path, SET | {"model_kind": "cross_layer_transcoder"})
    decoder = tmp_path / "W_dec_1.safetensors"
    safetensors.torch.save_file({"W_dec_1": torch.zeros(20, 3, D)}, decoder)
    with pytest.raises(ValueError, match=r"Layer 1 of 3 writes at 2 layers;.* \(20, 3, 6\)"):
        load(tmp_path)
    decoder.unlink()
    with pytest.raises(ValueError, match="of layers 1 there is only W_enc or only W_dec"):
        load(tmp_path)
    (tmp_path / "W_enc_1.safetensors").unlink()
    with pytest.raises(ValueError, match="every layer up to 2, and 1 is missing"):
        load(tmp_path)


def test_layers_say_in_what_units_they_are_and_what_they_read(tmp_path):
    _clt(tmp_path, 2, 20, jump=True)
    early = {"model_kind": "cross_layer_transcoder", "feature_input_hook": "ln2.hook_normalized"}
    _yaml(tmp_path, SET | early)
    layer = load(tmp_path)["mlp.0"]
    assert (layer.own.units.threshold, layer.meta["format"]) == ("stored", "circuit-tracer")
    assert layer.meta["before_gain"] and layer.reads == "mlp_in.0"


@pytest.mark.oracle
def test_transcoders_agree_with_sae_lens(tmp_path, monkeypatch):
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from sae_lens.saes.sae import SAE

    _yaml(tmp_path, SET)
    values = {"d_model": D, "d_feature": 20, "batch_size": 8}
    run = "\n".join(f"{name}: {{value: {value}}}" for name, value in values.items())
    (tmp_path / "wandb-config.yaml").write_text(run)
    _layers(tmp_path, 2)
    monkeypatch.setattr(
        loaders,
        "hf_hub_download",
        lambda *args, **settings: str(tmp_path / (settings.get("filename") or args[1])),
    )
    config, state, _ = loaders.mwhanna_transcoder_huggingface_loader("owner/repo", "layer_1.safetensors")
    config = loaders.handle_config_defaulting(loaders.handle_pre_6_0_config(config))
    theirs = SAE.get_sae_class_for_architecture(config["architecture"]).from_dict(config)
    theirs.load_state_dict(state)
    ours, x = load(tmp_path)["mlp.1"], torch.randn(9, D)
    assert (ours.encode(x) - theirs.encode(x)).abs().max() < 1e-5
    assert (ours(x) - theirs(x)).abs().max() < 1e-5


@pytest.mark.oracle
def test_cross_layer_encoders_agree_with_sae_lens(tmp_path, monkeypatch):
    """sae-lens sums the decoders of a layer, so that only its features can be compared."""
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from sae_lens.saes.sae import SAE

    _clt(tmp_path, 3, 20, jump=False)
    _yaml(tmp_path, SET | {"model_kind": "cross_layer_transcoder"})
    monkeypatch.setattr(loaders, "hf_hub_download", lambda _repo, name, **__: str(tmp_path / name))
    shapes = {"b_dec_1": [D], "b_enc_1": [20]}
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *_: shapes)
    with pytest.warns(UserWarning, match="summing all decoders"):
        config, state, _ = loaders.mntss_clt_layer_huggingface_loader("owner/repo", "1")
    config = loaders.handle_config_defaulting(loaders.handle_pre_6_0_config(config))
    theirs = SAE.get_sae_class_for_architecture(config["architecture"]).from_dict(config)
    theirs.load_state_dict(state)
    x = torch.randn(9, D)
    assert (load(tmp_path)["mlp.1"].encode(x) - theirs.encode(x)).abs().max() < 1e-5
