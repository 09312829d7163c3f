"""Dictionaries that are one torch file: OpenAI's, Goodfire's and DeepSeek's, Qwen Scope."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from interventions.dictionaries import ReLU, SparseCoder, TopK, load
from interventions.dictionaries.normalisation import LayerNorm

D, F = 6, 20


def _linear(f: int, encoder: str, decoder: str, *biases: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {encoder: torch.randn(f, D), decoder: torch.randn(D, f) / 3}
    return tensors | {name: torch.randn(size) for name, size in zip(biases, (f, D), strict=True)}


def _write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
    return file


def _one(path: Path) -> SparseCoder:
    ((_, coder),) = load(path).items()
    return coder


def _openai(f: int = F, kind: str = "TopK", k: int = 3) -> dict:
    tensors = _linear(f, "encoder.weight", "decoder.weight", "latent_bias", "pre_bias")
    statistics = {name: torch.zeros(f) for name in ("stats_last_nonzero", "latents_activation_frequency")}
    settings = {"k": k, "postact_fn": "ReLU"} if kind == "TopK" else {}
    return tensors | statistics | {"activation": kind, "activation_state_dict": settings}


def _autoencoder(t: dict, x: Tensor) -> tuple[Tensor, Tensor]:
    """`Autoencoder.forward` of openai/sparse_autoencoder: latents of the normalised input, and the output."""
    mean, deviation = torch.zeros(1), torch.ones(1)
    if t["activation"] == "TopK":
        mean = x.mean(dim=-1, keepdim=True)
        centred = x - mean
        deviation = centred.std(dim=-1, keepdim=True)
        x = centred / (deviation + 1e-5)
    z = (x - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]
    f = z.relu()
    if t["activation"] == "TopK":
        best = z.topk(t["activation_state_dict"]["k"], dim=-1)
        f = torch.zeros_like(z).scatter(-1, best.indices, best.values.relu())
    return f, (f @ t["decoder.weight"].T + t["pre_bias"]) * deviation + mean


@pytest.mark.parametrize("width", [F, D], ids=["wide", "square"])
@pytest.mark.parametrize("kind", ["TopK", "ReLU"])
def test_openai_files_are_read_as_published(tmp_path, kind, width):
    content, x = _openai(width, kind), 3 * torch.randn(2, 5, D) + 1
    coder = load(_write(tmp_path / "resid_post_mlp_v5_32k/autoencoders/7.pt", content))["resid.7"]
    f, y = _autoencoder(content, x)
    assert (coder.normalised(x, coder.encode(x)) - f).abs().max() < 1e-5
    assert (coder(x) - y).abs().max() < 1e-5
    assert type(coder.activation) is (TopK if kind == "TopK" else ReLU)
    assert coder.normalise == (LayerNorm() if kind == "TopK" else None)
    assert coder.units.latents == "raw"


def test_features_of_openai_write_in_the_units_of_the_site(tmp_path):
    content, x = _openai(), 3 * torch.randn(5, D) + 1
    coder = _one(_write(tmp_path / "a.pt", content))
    f, _ = _autoencoder(content, x)
    assert torch.allclose(coder.encode(x), f * x.std(-1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize(
    ("location", "site"),
    [
        ("resid_delta_attn_v5_128k", "attn.7"),
        ("resid_delta_mlp", "mlp.7"),
        ("resid_post_mlp_v5_32k", "resid.7"),
        ("resid_post_attn_v5_32k", "blocks.7.hook_resid_mid"),  # a site of its own only in a model
    ],
)
def test_openai_locations_are_told_by_folders(tmp_path, location, site):
    file = _write(tmp_path / location / "autoencoders/7.pt", _openai())
    for path in (file, file.parent, tmp_path):
        assert list(load(path)) == [site]


def test_openai_files_elsewhere_belong_where_they_are_told(tmp_path):
    file = _write(tmp_path / "mine.pt", _openai())
    assert _one(file).site is None
    assert list(load(file, site="mlp.2")) == ["mlp.2"]


def test_what_openai_never_wrote_is_refused(tmp_path):
    def refused(match: str, change: dict) -> None:
        with pytest.raises(ValueError, match=match):
            load(_write(tmp_path / "a.pt", _openai() | change))

    refused("its activation is 'JumpReLU'; known are TopK and ReLU", {"activation": "JumpReLU"})
    refused("followed by 'Identity'", {"activation_state_dict": {"k": 3, "postact_fn": "Identity"}})
    refused("k = None", {"activation_state_dict": {}})
    refused("k must be smaller", {"activation_state_dict": {"k": F}})
    refused("it has gate, which is none of", {"gate": torch.zeros(F)})
    refused("latent_bias has entries that are not finite", {"latent_bias": torch.full((F,), torch.nan)})
    refused("could run code", {"latent_bias": Path})


GOODFIRE = ("encoder_linear.weight", "decoder_linear.weight", "encoder_linear.bias", "decoder_linear.bias")
DEEPSEEK = ("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias")


@pytest.mark.parametrize("width", [F, D], ids=["wide", "square"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["single", "half"])
@pytest.mark.parametrize(
    ("name", "names", "site"),
    [
        ("Llama-3.1-8B-Instruct-SAE-l19.pth", GOODFIRE, "resid.19"),
        ("DeepSeek-R1-Distill-Llama-8B-SAE-l37.pt", GOODFIRE, "resid.37"),
        ("DeepSeek-R1-Distill-Llama-8B-SAE-l37.pt", DEEPSEEK, "resid.37"),
    ],
)
def test_two_linear_layers_are_a_dictionary(tmp_path, name, names, site, dtype, width):
    tensors = {key: t.to(dtype) for key, t in _linear(width, *names).items()}
    coder, x = load(_write(tmp_path / name, tensors))[site], torch.randn(5, D)
    weight, out, bias, b_dec = (tensors[key].float() for key in names)
    f = torch.nn.functional.linear(x, weight, bias).relu()
    assert (coder.encode(x) - f).abs().max() < 1e-5
    assert (coder(x) - torch.nn.functional.linear(f, out, b_dec)).abs().max() < 1e-5
    assert coder.b_pre is None and coder.units.threshold == "none"
    assert load(tmp_path / name, dtype=None)[site].W_enc.dtype == dtype


def test_linear_layers_of_any_name_are_known_by_what_they_hold(tmp_path):
    assert _one(_write(tmp_path / "mine.pth", _linear(F, *GOODFIRE))).site is None
    with pytest.raises(ValueError, match=r"it lacks decoder_linear\.weight or decoder\.weight"):
        load(_write(tmp_path / "mine.pth", {GOODFIRE[0]: torch.zeros(F, D), GOODFIRE[2]: torch.zeros(F)}))
    with pytest.raises(ValueError, match="no known format"):
        load(_write(tmp_path / "mine.pth", {"something": torch.zeros(F, D)}))


def test_a_truncated_file_is_named(tmp_path):
    file = _write(tmp_path / "A-SAE-l19.pth", _linear(F, *GOODFIRE))
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"A-SAE-l19\.pth cannot be read"):
        load(file)


@pytest.mark.parametrize("width", [F, D], ids=["wide", "square"])
def test_qwen_scope_keeps_as_many_features_as_its_repository_says(tmp_path, width):
    tensors, x = _linear(width, "W_enc", "W_dec", "b_enc", "b_dec"), torch.randn(2, 5, D)
    root = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_3"
    file = _write(root / "layer4.sae.pt", tensors)
    z = (x @ tensors["W_enc"].T + tensors["b_enc"]).relu()
    best = z.topk(3, dim=-1)
    f = torch.zeros_like(z).scatter(-1, best.indices, best.values)
    for path in (root, file):
        coder = load(path)["resid.4"]
        assert (coder.encode(x) - f).abs().max() < 1e-5
        assert (coder(x) - (f @ tensors["W_dec"].T + tensors["b_dec"])).abs().max() < 1e-5
        assert isinstance(coder.activation, TopK) and coder.b_pre is None


def test_qwen_scope_without_its_repository_asks_for_the_number_of_features(tmp_path):
    file = _write(tmp_path / "layer4.sae.pt", _linear(F, "W_enc", "W_dec", "b_enc", "b_dec"))
    with pytest.raises(ValueError, match="how many features a token has"):
        load(file)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["goodfire", "deepseek", "qwen"])
def test_torch_files_agree_with_sae_lens(tmp_path, monkeypatch, kind):
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from sae_lens.saes.sae import SAE

    convert, repo, name, names = {
        "goodfire": (
            loaders.get_goodfire_huggingface_loader,
            "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
            "Llama-3.1-8B-Instruct-SAE-l19.pth",
            GOODFIRE,
        ),
        "deepseek": (
            loaders.deepseek_r1_sae_huggingface_loader,
            "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
            "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
            DEEPSEEK,
        ),
        "qwen": (
            loaders.qwen_scope_sae_huggingface_loader,
            "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_3",
            "layer19.sae.pt",
            ("W_enc", "W_dec", "b_enc", "b_dec"),
        ),
    }[kind]
    file = _write(tmp_path / repo / name, _linear(F, *names))
    monkeypatch.setattr(loaders, "hf_hub_download", lambda *_, **__: str(file))
    sizes = {"d_in": D, "d_sae": F, "dtype": "float32"}
    config, state, _ = convert(repo, name, "cpu", cfg_overrides=sizes)
    config = loaders.handle_config_defaulting(loaders.handle_pre_6_0_config(config))
    config = {**config, **config.pop("activation_fn_kwargs", {})}
    theirs = SAE.get_sae_class_for_architecture(config["architecture"]).from_dict(config)
    theirs.load_state_dict(state)
    ours, x = load(file)["resid.19"], torch.randn(9, D)
    assert (ours.encode(x) - theirs.encode(x)).abs().max() < 1e-5
    assert (ours(x) - theirs(x)).abs().max() < 1e-5
