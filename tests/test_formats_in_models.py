"""Published dictionaries at their places in a model, by the tensors that its own modules are handed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from families import fresh, tiny
from torch import Tensor, nn

from interventions import Model, run
from interventions.dictionaries import load

F, LAYER = 24, 1


@pytest.fixture(scope="module")
def gemma() -> Model:
    model = fresh("gemma2", torch.float32)
    generator = torch.Generator().manual_seed(0)
    for module in model.module.modules():
        if type(module).__name__.endswith("RMSNorm"):  # gains that are none make no difference
            weight: nn.Parameter = module.weight  # type: ignore[assignment]
            weight.data = torch.randn(weight.shape, generator=generator) / 2
    return model


@pytest.fixture(scope="module")
def seen(gemma) -> dict[str, Tensor]:
    """What enters and leaves some modules of a layer."""
    held: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_, args, output):
            held[f"{name}.input"], held[f"{name}.output"] = args[0].detach(), output.detach()

        return hook

    layer = gemma.module.get_submodule(f"{gemma.layout.blocks}.{LAYER}")
    names = ("self_attn.o_proj", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    hooks = [layer.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    hooks.append(layer.register_forward_hook(lambda _m, _a, output: held.update(layer=output.detach())))
    gemma.module(TOKENS)
    for hook in hooks:
        hook.remove()
    return held


TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def _tensors(d_in: int, d_out: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"W_enc": (d_in, F), "b_enc": (F,), "W_dec": (F, d_out), "b_dec": (d_out,)}
    return {name: torch.randn(shape) / 4 for name, shape in shapes.items()} | {"threshold": torch.rand(F) / 8}


def _published(t: dict[str, Tensor], x: Tensor) -> Tensor:
    z = x @ t["W_enc"] + t["b_enc"]
    return (z > t["threshold"]) * z.clamp(min=0)


def _scope(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder = folder / f"layer_{LAYER}/width_16k/average_l0_9"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: t.numpy() for name, t in tensors.items()})
    return folder


def _rescaled(model: Model, x: Tensor) -> Tensor:
    """What the norm makes of its input before it multiplies by its gain."""
    return x / (x.square().mean(-1, keepdim=True) + model.module.config.rms_norm_eps).sqrt()


@pytest.mark.parametrize(
    ("kind", "site", "entered"),
    [
        ("res", "resid", "layer"),
        ("mlp", "mlp", "post_feedforward_layernorm.output"),
        ("att", "heads", "self_attn.o_proj.input"),
    ],
)
def test_gemma_scope_reads_what_its_paper_says(tmp_path, gemma, seen, kind, site, entered):
    x = seen[entered]
    tensors = _tensors(x.shape[-1], x.shape[-1])
    dictionaries = load(_scope(tmp_path / f"gemma-scope-2b-pt-{kind}", tensors), gemma, check=False)
    assert list(dictionaries) == [f"{site}.{LAYER}"]
    acts = run(gemma, TOKENS, dictionaries).computed[f"{site}.{LAYER}"]
    assert (acts.features - _published(tensors, x)).abs().max() < 1e-4


def test_gemma_scope_transcoders_read_the_norm_before_its_gain(tmp_path, gemma, seen):
    x = _rescaled(gemma, seen["pre_feedforward_layernorm.input"])
    tensors = _tensors(x.shape[-1], x.shape[-1])
    dictionaries = load(_scope(tmp_path / "gemma-scope-2b-pt-transcoders", tensors), gemma, check=False)
    acts = run(gemma, TOKENS, dictionaries).computed[f"mlp.{LAYER}"]
    f = _published(tensors, x)
    assert (acts.features - f).abs().max() < 1e-4
    y = f @ tensors["W_dec"] + tensors["b_dec"]
    assert (acts.error - (seen["post_feedforward_layernorm.output"] - y)).abs().max() < 1e-4


def test_gemma_scope_2_transcoders_read_it_behind_the_gain(tmp_path, gemma, seen):
    x = seen["pre_feedforward_layernorm.output"]
    tensors = _tensors(x.shape[-1], x.shape[-1])
    skip = torch.randn(x.shape[-1], x.shape[-1]) / 4
    folder = tmp_path / f"transcoder_all/layer_{LAYER}_width_16k_l0_big_affine"
    folder.mkdir(parents=True)
    stored = {name.replace("W_", "w_"): t for name, t in tensors.items()} | {"affine_skip_connection": skip}
    safetensors.torch.save_file(stored, folder / "params.safetensors")
    acts = run(gemma, TOKENS, load(tmp_path, gemma, check=False)).computed[f"mlp.{LAYER}"]
    f = _published(tensors, x)
    assert (acts.features - f).abs().max() < 1e-4
    y = f @ tensors["W_dec"] + tensors["b_dec"] + x @ skip
    assert (acts.error - (seen["post_feedforward_layernorm.output"] - y)).abs().max() < 1e-4


@pytest.mark.parametrize("hook", ["hook_resid_mid", "mlp.hook_in", "ln2.hook_normalized"])
def test_a_cross_layer_transcoder_runs_at_the_hooks_of_its_config(tmp_path, gemma, seen, hook):
    d, n = gemma.site("mlp.0").width, len(gemma.blocks)
    torch.manual_seed(0)
    for i in range(n):
        W_enc, b_enc, b_dec = torch.randn(F, d) / 4, torch.randn(F) / 4, torch.randn(d)
        if i == LAYER:
            encoder = W_enc, b_enc
        parts = {f"W_enc_{i}": W_enc, f"b_enc_{i}": b_enc, f"b_dec_{i}": b_dec}
        safetensors.torch.save_file(parts, tmp_path / f"W_enc_{i}.safetensors")
        decoder = {f"W_dec_{i}": torch.randn(F, n - i, d) / 4}
        safetensors.torch.save_file(decoder, tmp_path / f"W_dec_{i}.safetensors")
    config = (
        f"model_kind: cross_layer_transcoder\nfeature_input_hook: {hook}\nfeature_output_hook: hook_mlp_out"
    )
    (tmp_path / "config.yaml").write_text(config)
    dictionaries = load(tmp_path, gemma, check=False)
    assert list(dictionaries) == [f"mlp.{i}" for i in range(n)]
    stream, behind = (seen[f"pre_feedforward_layernorm.{end}"] for end in ("input", "output"))
    x = {"hook_resid_mid": stream, "mlp.hook_in": behind, "ln2.hook_normalized": _rescaled(gemma, stream)}[
        hook
    ]
    acts = run(gemma, TOKENS, dictionaries).computed[f"mlp.{LAYER}"]
    assert (acts.features - (x @ encoder[0].T + encoder[1]).relu()).abs().max() < 1e-4


def test_a_dictionary_of_another_width_is_refused_with_both(tmp_path, gemma):
    folder = _scope(tmp_path / "gemma-scope-2b-pt-res", _tensors(8, 8))
    with pytest.raises(ValueError, match=rf"reads width 8, but resid\.{LAYER} has width 32"):
        load(folder, gemma)


@pytest.mark.parametrize(
    ("location", "module", "end"),
    [
        ("resid_delta_attn", "attn.c_proj", "output"),
        ("resid_post_attn_v5_32k", "ln_2", "input"),
        ("resid_delta_mlp_v5_128k", "mlp.c_proj", "output"),
        ("mlp_post_act", "mlp.c_proj", "input"),
    ],
)
def test_openai_locations_are_places_in_gpt2(tmp_path, location, module, end):
    model = tiny("gpt2", torch.float32)
    held: dict[str, Tensor] = {}
    place = model.module.get_submodule(f"{model.layout.blocks}.{LAYER}.{module}")
    hook = place.register_forward_hook(lambda _m, args, out: held.update(input=args[0], output=out))
    model.module(TOKENS)
    hook.remove()
    x = held[end].detach()
    torch.manual_seed(0)
    content = {
        "encoder.weight": torch.randn(F, x.shape[-1]) / 4,
        "decoder.weight": torch.randn(x.shape[-1], F) / 4,
        "latent_bias": torch.randn(F),
        "pre_bias": torch.randn(x.shape[-1]),
    }
    file = tmp_path / location / f"autoencoders/{LAYER}.pt"
    file.parent.mkdir(parents=True)
    torch.save(content, file)
    dictionaries = load(tmp_path, model, check=False)
    (acts,) = run(model, TOKENS, dictionaries).computed.values()
    z = (x - content["pre_bias"]) @ content["encoder.weight"].T + content["latent_bias"]
    assert (acts.features - z.relu()).abs().max() < 1e-4
