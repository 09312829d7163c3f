from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from interventions.dictionaries import SparseCoder, export_saelens, load
from interventions.dictionaries.activations import (
    AbsTopK,
    BatchTopK,
    BatchwiseTopK,
    GroupMax,
    JumpReLU,
    ReLU,
    TopK,
)
from interventions.dictionaries.normalisation import LayerNorm, RescaleNorm

D, F = 6, 20
CFG = {
    "d_in": D,
    "d_sae": F,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "architecture": "standard",
    "metadata": {
        "model_name": "tiny",
        "hook_name": "blocks.1.hook_resid_post",
        "sae_lens_version": "6.54.12",
    },
}


def _tensors(
    d_out: int = D, *, seed: int = 0, **extra: torch.Size | tuple[int, ...]
) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    shapes = {"W_enc": (D, F), "W_dec": (F, d_out), "b_enc": (F,), "b_dec": (d_out,), **extra}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def _write(folder, cfg, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    safetensors.torch.save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def _one(folder) -> SparseCoder:
    ((_, coder),) = load(folder).items()
    return coder


def test_a_dictionary_keeps_its_place_and_says_where_it_is_from(tmp_path):
    coder = load(_write(tmp_path / "a", CFG, _tensors()))["resid.1"]
    assert coder.site == "resid.1" and coder.reads is None
    assert coder.meta["format"] == "saelens" and coder.meta["source"] == str(tmp_path / "a")
    assert (coder.meta["model_name"], coder.meta["dtype"]) == ("tiny", "float32")


def test_the_decoder_bias_is_subtracted_only_where_the_settings_say_so(tmp_path):
    tensors, x = _tensors(), torch.randn(3, D)
    for apply in (True, False):
        coder = _one(_write(tmp_path / str(apply), CFG | {"apply_b_dec_to_input": apply}, tensors))
        z = (x - tensors["b_dec"] * apply) @ tensors["W_enc"] + tensors["b_enc"]
        assert torch.allclose(coder.encode(x), z.relu(), atol=1e-6)


def test_the_name_of_a_module_counts_more_than_the_name_of_a_hook(tmp_path):
    places = {"hook_name": "blocks.3.hook_mlp_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    places |= {"hf_hook_name": "model.layers.3.pre_feedforward_layernorm.output"}
    cfg = CFG | {"architecture": "transcoder", "d_out": D, "metadata": places}
    assert load(_write(tmp_path, cfg, _tensors()))["mlp.3"].reads == "mlp_in.3"


def test_a_dictionary_of_a_model_with_centred_weights_is_warned_of(tmp_path):
    told = CFG["metadata"] | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    with pytest.warns(UserWarning, match="center_writing_weights"):
        load(_write(tmp_path, CFG | {"metadata": told}, _tensors()))


def test_settings_of_before_version_6_are_understood(tmp_path):
    flat = {
        "hook_point": "blocks.0.attn.hook_z",
        "hook_point_layer": 0,
        "d_in": D,
        "d_sae": F,
        "dtype": "torch.float32",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "normalize_activations": False,
        "expansion_factor": 8,
        "lr": 1e-3,
    }
    coder = load(_write(tmp_path, flat, _tensors()))["heads.0"]
    assert coder.activation.k == 3 and torch.equal(coder.b_pre, coder.b_dec)


def test_the_log_threshold_of_old_files_is_a_threshold(tmp_path):
    tensors = _tensors(log_threshold=(F,))
    coder = _one(_write(tmp_path, CFG | {"architecture": "jumprelu"}, tensors))
    assert torch.allclose(coder.activation.threshold, tensors["log_threshold"].exp())


def test_a_negative_threshold_after_a_relu_is_zero(tmp_path):
    tensors = _tensors(threshold=(F,))
    assert (tensors["threshold"] < 0).any()
    coder, x = _one(_write(tmp_path, CFG | {"architecture": "jumprelu"}, tensors)), torch.randn(30, D)
    z = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    assert torch.allclose(coder.encode(x), z.relu() * (z > tensors["threshold"]), atol=1e-6)


def test_a_finetuning_factor_is_folded_into_the_decoder(tmp_path):
    flat = {"hook_name": "blocks.0.hook_mlp_out", "d_in": D, "d_sae": F, "finetuning_scaling_factor": True}
    tensors = _tensors(scaling_factor=(F,))
    coder, x = _one(_write(tmp_path / "a", flat, tensors)), torch.randn(3, D)
    f = ((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]).relu()
    y = (f * tensors["scaling_factor"]) @ tensors["W_dec"] + tensors["b_dec"]
    assert torch.allclose(coder(x), y, atol=1e-5)
    with pytest.raises(ValueError, match="scaling_factor"):
        load(_write(tmp_path / "b", flat | {"finetuning_scaling_factor": False}, tensors))


def test_the_scale_of_a_checkpoint_is_folded_and_a_missing_one_is_warned_of(tmp_path):
    cfg, tensors = CFG | {"normalize_activations": "expected_average_only_in"}, _tensors()
    with pytest.warns(UserWarning, match=r"scale_input\(s\)"):
        bare = _one(_write(tmp_path, cfg, tensors))
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.25, "has_whitening": false}')
    coder, x = _one(tmp_path), torch.randn(3, D)
    assert torch.allclose(coder.encode(x), bare.encode(0.25 * x), atol=1e-6)
    assert torch.allclose(coder(x), bare(0.25 * x) / 0.25, atol=1e-5)
    assert coder.units.latents == "normalised" and coder.units.input_scale == 0.25


def test_a_checkpoint_of_batchtopk_reads_as_what_its_run_would_save(tmp_path):
    cfg = CFG | {"architecture": "matryoshka_batchtopk", "k": 3.0, "matryoshka_widths": [5, 20]}
    cfg |= {"rescale_acts_by_decoder_norm": True, "topk_threshold_lr": 0.01}
    tensors = _tensors() | {"topk_threshold": torch.tensor(0.3, dtype=torch.double)}
    coder, x = _one(_write(tmp_path, cfg, tensors)), torch.randn(3, D)
    norms = tensors["W_dec"].norm(dim=-1)
    z = ((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]) * norms
    assert torch.allclose(coder.encode(x), z * (z > 0.3), atol=1e-5)
    assert coder.prefixes == (5, 20) and coder.has_unit_decoder


@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        ({"architecture": "matching_pursuit"}, {}, "architecture 'matching_pursuit'"),
        ({"architecture": "temporal"}, {}, "architecture 'temporal'"),
        ({"metadata": {"hook_name": "blocks.0.attn.hook_z", "hook_head_index": 2}}, {}, "one head"),
        ({"normalize_activations": "covariance_whitening"}, {}, "covariance_whitening"),
        ({"architecture": "transcoder", "normalize_activations": "layer_norm"}, {}, "no known scale"),
        ({"gain": 2}, {}, "unknown settings gain"),
        ({"architecture": "jumprelu"}, {}, "lacks threshold"),
        ({"architecture": "topk"}, {}, "lacks 'k'"),
        ({"hook_head_index": 0}, {}, "one head"),
        ({}, {"W_gate": (F, D)}, "unknown tensors W_gate"),
        ({"d_sae": F + 1}, {}, "ask for"),
        ({"d_in": F, "d_sae": D}, {}, "W_enc has shape"),
    ],
)
def test_what_cannot_be_said_in_our_equation_is_refused(tmp_path, change, extra, message):
    with pytest.raises(ValueError, match=message) as error:
        load(_write(tmp_path, CFG | change, _tensors(**extra)))
    assert str(tmp_path) in str(error.value)


def test_an_unknown_activation_of_old_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}.*'tanh-relu'"):
        load(
            _write(
                tmp_path, {"hook_name": "x", "d_in": D, "d_sae": F, "activation_fn": "tanh-relu"}, _tensors()
            )
        )


def _ours() -> dict[str, SparseCoder]:
    torch.manual_seed(3)

    def coder(activation, d_out=D, **more):
        tensors = _tensors(d_out, seed=4)
        return SparseCoder(**tensors, activation=activation, **more)

    threshold = torch.rand(F)
    return {
        "relu": coder(ReLU(), site="resid.0"),
        "relu, b_pre": coder(ReLU(), b_pre=torch.randn(D)),
        "relu, tied b_pre": coder(ReLU(), b_pre=_tensors(seed=4)["b_dec"], site="mlp.0"),
        "jumprelu": coder(JumpReLU(threshold), site="heads.0"),
        "batchtopk": coder(BatchTopK(4, 0.5)),
        "topk": coder(TopK(3)),
        "abstopk": coder(AbsTopK(3)),
        "layer norm": coder(ReLU(), normalise=LayerNorm()),
        "rescale": coder(TopK(3), normalise=RescaleNorm(), b_pre=_tensors(seed=4)["b_dec"]),
        "transcoder": coder(ReLU(), 5, site="mlp.0", reads="mlp_in.0"),
        "skip transcoder": coder(ReLU(), 5, site="mlp.0", reads="mlp_in.0", W_skip=torch.randn(D, 5)),
        "jumprelu skip": coder(
            JumpReLU(threshold), 5, site="mlp.0", reads="mlp_in.0", W_skip=torch.randn(D, 5)
        ),
        "jumprelu transcoder": coder(
            JumpReLU(threshold), 5, site="mlp.0", reads="mlp_in.0", b_pre=torch.randn(D)
        ),
    }


OURS = _ours()


@pytest.mark.parametrize("case", OURS)
def test_exported_dictionaries_read_back_as_the_same_function(tmp_path, case):
    coder, x = OURS[case], torch.randn(7, D)
    site = coder.site or "resid.0"
    (folder,) = export_saelens({site: coder}, tmp_path, model_name="tiny")
    back = load(folder)[site]
    assert torch.allclose(back.encode(x), coder.encode(x), atol=1e-5)
    assert torch.allclose(back(x), coder(x), atol=1e-5)
    assert back.reads == coder.reads


def test_what_saelens_cannot_say_is_not_exported(tmp_path):
    base = OURS["relu"]
    for coder in (
        base._with(activation=GroupMax(4)),
        base._with(activation=BatchwiseTopK(4)),
        base._with(normalise=replace(LayerNorm(), eps=1e-2)),
        OURS["transcoder"]._with(activation=TopK(3)),
        OURS["transcoder"]._with(normalise=RescaleNorm()),
    ):
        with pytest.raises(ValueError, match="SAELens has no"):
            export_saelens({"resid.0": coder}, tmp_path, model_name="tiny")
    with pytest.raises(ValueError, match="hooks="):
        export_saelens({"mixer.0": base}, tmp_path, model_name="tiny")


GOLDEN = sorted((Path(__file__).parent / "golden" / "saelens").glob("*.safetensors"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_files_that_the_library_wrote_give_what_it_gave(path):
    coder, expected = _one(path.with_suffix("")), safetensors.torch.load_file(path)
    x = expected["x"]
    assert (coder.normalised(x, coder.encode(x)) - expected["f"]).abs().max() < 1e-5
    assert (coder(x) - expected["y"]).abs().max() < 1e-5
    assert (coder.reads, coder.site) == (
        ("mlp_in.1", "mlp.1") if "transcoder" in path.stem else (None, "resid.1")
    )


# Against the library itself

ARCHITECTURES = [
    "standard", "gated", "jumprelu", "topk", "abstopk", "transcoder", "skip_transcoder",
    "jumprelu_transcoder", "jumprelu_skip_transcoder",
]  # fmt: skip
CASES = [(architecture, D, F, {}) for architecture in ARCHITECTURES]
CASES += [(architecture, 8, 8, {}) for architecture in ARCHITECTURES]  # where a transposed matrix fits too
CASES += [
    (architecture, D, F, {"apply_b_dec_to_input": apply, "normalize_activations": how})
    for architecture in ("standard", "gated", "jumprelu", "topk")
    for apply in (True, False)
    for how in ("none", "layer_norm", "constant_norm_rescale")
]
CASES += [(kind, D, F, {"rescale_acts_by_decoder_norm": True}) for kind in ("topk", "abstopk")]
CASES += [("jumprelu", D, F, {"reshape_activations": "hook_z"})]


def _library(architecture: str, d: int, f: int, options: dict):
    """One of the library's own dictionaries, with random weights of every kind."""
    from sae_lens import SAE

    transcodes = architecture.endswith("transcoder")
    cfg = CFG | {"architecture": architecture, "d_in": d, "d_sae": f, "apply_b_dec_to_input": not transcodes}
    hook = "blocks.1.attn.hook_z" if "reshape_activations" in options else "blocks.1.hook_resid_post"
    cfg |= options | {"metadata": {"model_name": "tiny", "hook_name": hook}}
    if transcodes:
        cfg |= {"d_out": d if d == f else d + 1}
        cfg["metadata"] |= {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    if "topk" in architecture:
        cfg |= {"k": 3}
    sae = SAE.from_dict(cfg)
    torch.manual_seed(1)  # of seed 0, one pre-activation is its threshold to the last bit
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            weight.copy_(torch.rand_like(weight) if name == "threshold" else torch.randn_like(weight))
    return sae


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("architecture", "d", "f", "options"), CASES)
def test_files_of_the_library_give_the_same_features_and_outputs(tmp_path, architecture, d, f, options):
    sae = _library(architecture, d, f, options)
    sae.save_model(tmp_path)
    coder, x = _one(tmp_path), torch.randn(33, d) * 2 + 0.5
    heads = x.unflatten(-1, (2, -1)) if "reshape_activations" in options else x
    with torch.no_grad():
        features, out = sae.encode(heads), sae(heads).flatten(1)
    ours = coder.normalised(x, coder.encode(x))
    assert (ours - features).abs().max() < 1e-5
    assert (coder(x) - out).abs().max() < 1e-5 * max(1, out.abs().max())
    if architecture.endswith("transcoder"):
        assert (coder.reads, coder.site) == ("mlp_in.1", "mlp.1")


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", OURS)
def test_the_library_reads_what_we_export(tmp_path, case):
    from sae_lens import SAE

    coder, x = OURS[case], torch.randn(33, D)
    (folder,) = export_saelens({coder.site or "resid.0": coder}, tmp_path, model_name="tiny")
    sae = SAE.load_from_disk(folder)
    heads = x.unflatten(-1, (2, -1)) if coder.site == "heads.0" else x
    with torch.no_grad():
        features, out = sae.encode(heads), sae(heads).flatten(1)
    assert (coder.normalised(x, coder.encode(x)) - features).abs().max() < 1e-5
    assert (coder(x) - out).abs().max() < 1e-5 * max(1, out.abs().max())


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk"]
)
@pytest.mark.parametrize("scale", [None, 0.5])
def test_checkpoints_and_final_files_of_a_run_agree(tmp_path, kind, scale):
    """A checkpoint is what the run has in hand; at the end the scale is folded in and the rest is dropped."""
    from sae_lens.registry import get_sae_training_class

    made, config = get_sae_training_class(kind)
    more = {"k": 3} if "topk" in kind else {}
    more |= {"matryoshka_widths": [5, 20]} if kind.startswith("matry") else {}
    how = "none" if scale is None else "expected_average_only_in"
    sae = made(config(d_in=D, d_sae=F, normalize_activations=how, **more))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            weight.copy_(torch.rand_like(weight) if "threshold" in name else torch.randn_like(weight))
        if "batch" in kind:
            sae.topk_threshold.fill_(0.7)
    sae.save_model(tmp_path / "step")
    (tmp_path / "step" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    (tmp_path / "step" / "trainer_state.pt").write_bytes(b"never opened")
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    sae.save_inference_model(tmp_path / "final")
    step, final, x = _one(tmp_path / "step"), _one(tmp_path / "final"), torch.randn(9, D)
    assert torch.allclose(step(x), final(x), atol=1e-4)
    with torch.no_grad():
        from sae_lens import SAE

        assert (final(x) - SAE.load_from_disk(tmp_path / "final")(x)).abs().max() < 1e-4
    if kind.startswith("matry"):
        assert step.prefixes == final.prefixes == (5, 20)
