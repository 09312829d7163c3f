from __future__ import annotations

from typing import Any

import pytest
import torch
from families import WIDTH, tiny
from oracles import tolerance
from torch import Tensor

from interventions import Project, applied
from interventions.features import orthogonalised
from interventions.features.orthogonal import writers
from interventions.model import Model
from interventions.steering import Direction

FAMILIES = [
    "gpt2", "gpt_neo", "gpt_neox", "gpt_neox_sequential", "llama", "mistral", "qwen2", "qwen3", "gemma",
    "cohere", "phi", "opt", "mixtral", "mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "jamba",
    "falcon_h1", "qwen3_next", "zamba2",
]  # fmt: skip


def vectors(k: int = 1) -> Tensor:
    return torch.randn(k, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def tokens() -> Tensor:
    return torch.randint(3, 64, (3, 7), generator=torch.Generator().manual_seed(5))


def writing(model: Model) -> list[str]:
    """The embedding, what enters the first block (positions added), and what attention and MLPs add."""
    model.at(f"{model.layout.blocks}.0", "in", "entry")
    return ["entry", *(name for name, site in model.sites.items()
                       if site.side == "out" and not name.startswith("resid"))]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_copy_computes_what_projecting_at_every_writer_does(family: str) -> None:
    model, v = tiny(family), vectors()[0]
    with applied(model, Project({name: v for name in writing(model)})):
        expected = model.logits(tokens())
    copy = orthogonalised(model, v)
    torch.testing.assert_close(copy.logits(tokens()), expected, **tolerance(family))
    assert not torch.allclose(model.logits(tokens()), expected)
    sites = [name for name in copy.sites if name.startswith("resid.")]
    for x in copy.read(tokens(), sites).values():
        assert (x @ v).abs().max() < 1e-4 * x.norm(dim=-1).max() * v.norm()


def test_several_directions_are_taken_out_together() -> None:
    model, rows = tiny("llama"), vectors(3)
    with applied(model, Project({name: rows for name in writing(model)})):
        expected = model.logits(tokens())
    torch.testing.assert_close(orthogonalised(model, rows).logits(tokens()), expected, **tolerance("llama"))


def test_the_model_itself_stays_and_shares_what_does_not_write() -> None:
    model, v = tiny("gpt2"), vectors()[0]
    before, weights = model.logits(tokens()), {k: x.clone() for k, x in model.module.state_dict().items()}
    copy = orthogonalised(model, v)
    assert torch.equal(model.logits(tokens()), before)
    assert all(torch.equal(x, weights[k]) for k, x in model.module.state_dict().items())
    ours, theirs = dict(model.module.named_parameters()), dict(copy.module.named_parameters())
    assert {k for k in ours if theirs[k] is not ours[k]} == {
        "transformer.wte.weight", "transformer.wpe.weight",
        *(f"transformer.h.{i}.{part}.c_proj.{kind}" for i in range(3) for part in ("attn", "mlp")
          for kind in ("weight", "bias")),
    }  # fmt: skip
    assert copy.fingerprint != model.fingerprint


def test_a_tied_embedding_is_untied_from_its_head_and_stays_so_on_loading(tmp_path) -> None:
    model, v = tiny("gpt2"), vectors()[0]
    copy = orthogonalised(model, v)
    built: Any = copy.module
    embedding, head = built.get_input_embeddings().weight, built.get_output_embeddings().weight
    assert (embedding @ v).abs().max() < 1e-10 and (head @ v).abs().max() > 0.1
    built.save_pretrained(tmp_path)
    loaded = Model.load(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(loaded.logits(tokens()), copy.logits(tokens()))
    whole: Any = model.module
    assert whole.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_models_of_less_precision_write_along_it_as_little_as_they_can(family, dtype) -> None:
    model, v = tiny(family, dtype), vectors()[0].to(dtype)
    copy = orthogonalised(model, v)
    site = copy.site("resid.2")
    x = copy.read(tokens(), [site])[site].double()
    along = (x @ (v.double() / v.double().norm())).abs().max()
    assert along < 5 * torch.finfo(dtype).eps * x.norm(dim=-1).max()


def test_a_direction_brings_its_model_along() -> None:
    model, v = tiny("gpt2"), vectors()[0]
    ours = Direction({"resid.1": v}, model.fingerprint)
    plain = orthogonalised(model, v).logits(tokens())
    torch.testing.assert_close(orthogonalised(model, ours).logits(tokens()), plain, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="found in another model"):
        orthogonalised(model, Direction({"resid.1": v}, tiny("llama").fingerprint))
    with pytest.raises(ValueError, match="Directions at 2 sites"):
        orthogonalised(model, Direction({"resid.1": v, "resid.0": v}))


@pytest.mark.parametrize(
    ("family", "place"),
    [
        ("gemma2", r"attn\.0 \(Gemma2RMSNorm\)"),
        ("gemma3_text", r"attn\.0 \(Gemma3RMSNorm\)"),
        ("olmo2", r"attn\.0 \(Olmo2RMSNorm\)"),
        ("bloom", "What enters the first layer"),
        ("rwkv", r"mlp\.0 \(RwkvFeedForward\)"),
    ],
)
def test_norms_in_the_way_are_named(family: str, place: str) -> None:
    model = tiny(family)
    before = {k: x.clone() for k, x in model.module.state_dict().items()}
    with pytest.raises(ValueError, match=f"{place} cannot be rid of a direction"):
        orthogonalised(model, vectors()[0])
    assert all(torch.equal(x, before[k]) for k, x in model.module.state_dict().items())


def test_what_is_no_direction_is_said() -> None:
    model, v = tiny("gpt2"), vectors()[0]
    with pytest.raises(ValueError, match=r"shape \(31,\) do not fit a residual stream of width 32"):
        orthogonalised(model, v[:31])
    with pytest.raises(ValueError, match="not zero"):
        orthogonalised(model, torch.zeros(32))
    with pytest.raises(ValueError, match="made up by the others"):
        orthogonalised(model, torch.stack([v, 2 * v]))
    with applied(model, Project({"resid.0": v})), pytest.raises(ValueError, match="outside of `applied`"):
        orthogonalised(model, v)


def test_experts_are_alike_whatever_tokens_went_to_them() -> None:
    model = tiny("mixtral")
    names = [f"{p.holder}.{p.name}" for p in writers(model)]
    assert len(names) == len(set(names)) and "model.embed_tokens.weight" in names
    per_layer = [[n for n in names if n.startswith(f"model.layers.{i}.")] for i in range(3)]
    assert len({len(found) for found in per_layer}) == 1 and len(per_layer[0]) >= 2
