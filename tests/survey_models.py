"""Loads a tiny random model of every causal architecture that transformers can build, and says what works.

Run `python -m tests.survey_models` (or with names of model types) for the Markdown table in
docs/new-model.md. It is no test: which architectures there are changes with every release.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from interventions.model import Model

SMALL: dict[str, Any] = {
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input", "n_vocab", "text_vocab_size"], 64),
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "dim_model", "embedding_size", "emb_dim", "dim",
                     "lru_width", "word_embed_proj_dim", "attention_hidden_size"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
                     "encoder_layers", "num_decoder_layers", "num_blocks"], 4),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
                     "encoder_attention_heads", "num_decoder_attention_heads", "swa_num_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "n_head_kv", "num_kv_heads", "swa_num_key_value_heads",
                     "num_global_key_value_heads"], 2),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff",
                     "dim_ff", "ffn_hidden_size", "dense_intermediate_size", "block_ff_dim"], 48),
    **dict.fromkeys(["head_dim", "v_head_dim", "swa_head_dim", "swa_v_head_dim", "global_head_dim",
                     "dim_head", "attention_head_size", "kv_channels", "d_kv", "index_head_dim"], 8),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length",
                     "context_length", "max_target_positions", "max_source_positions"], 64),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k",
                     "top_k_experts"], 2),
    **dict.fromkeys(["n_shared_experts", "n_group", "topk_group", "first_k_dense_replace", "num_dense_layers",
                     "moe_num_shared_experts", "num_mem_blocks", "mamba_n_groups", "mamba_ngroups",
                     "n_groups", "num_mamba_heads_groups", "num_shared_experts"], 1),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size",
                     "moe_shared_expert_intermediate_size", "shared_intermediate_size",
                     "moe_latent_size"], 16),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "adapter_rank"], 4),
    **dict.fromkeys(["kv_lora_rank", "q_lora_rank", "state_size", "mamba_d_state", "chunk_size",
                     "mamba_chunk_size", "linear_key_head_dim", "linear_value_head_dim", "sliding_window",
                     "attention_window_size", "window_size", "mamba_head_dim", "ssm_state_size",
                     "hidden_size_per_layer_input", "index_topk", "attention_chunk_size",
                     "attention_projection_layers"], 8),
    **dict.fromkeys(["linear_num_key_heads", "index_n_heads"], 2),
    **dict.fromkeys(["linear_num_value_heads", "mamba_n_heads", "n_mamba_heads", "mamba_num_heads",
                     "linear_num_heads"], 4),
    "is_decoder": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "block_size": 8, "mamba_d_ssm": 64, "dropout": 0.0,
    "num_kv_shared_layers": 0, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8,
    "rope_parameters": None,
}  # fmt: skip

# What differs from SMALL, because the values of some types constrain each other.
OTHERWISE: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default",
                                                                   "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
             "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "dots3_note_text": {"shared_experts_intermediate_size": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
                       "indexer_budget": 8, "indexer_compress_ratio": 2, "hc_lowrank": 8},
    "reformer": {"axial_pos_embds": False},
    "roc_bert": {"shape_vocab_size": 64, "pronunciation_vocab_size": 64, "shape_embed_dim": 8,
                 "pronunciation_embed_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 5, "num_key_value_heads": 4, "head_dim": 16, "attention_hidden_size": 64,
              "attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def small(model_type: str) -> nn.Module:
    """A module of that type with random weights: three or four layers, width 32, 64 tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = type(AutoConfig.for_model(model_type))
    config = _small_config(kind, OTHERWISE.get(model_type, {}))
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 5_000_000:
        raise ValueError(f"{size} parameters are too many for a survey")
    return AutoModelForCausalLM.from_config(config)


def _small_config(kind: Any, otherwise: dict[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(kind)} | set(kind.attribute_map)
    values = {key: value for key, value in SMALL.items() if key in known}
    if kind.sub_configs:
        whole = kind()
        for key in kind.sub_configs:
            if (part := getattr(whole, key, None)) is not None:
                values[key] = _small_config(type(part), OTHERWISE.get(part.model_type, {})).to_dict()
    if "qk_rope_head_dim" in values:  # multi-head latent attention
        values |= {"head_dim": values["qk_rope_head_dim"], "num_key_value_heads": 4}
    values = {key: value for key, value in values.items() if key in known}
    values |= otherwise
    return kind(**{key: value for key, value in values.items() if value is not None})


def row(model_type: str) -> dict[str, str]:
    """What works, by name of the column."""
    torch.manual_seed(0)
    try:
        module = small(model_type).double().eval()
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.1 * torch.randn_like(p))
    except Exception as error:
        _trace()
        return {"model type": model_type, "notes": f"not built: {_line(error)}"}
    note = ""
    try:
        try:
            model = Model.load(module)
        except RuntimeError:  # some know no float64
            model, note = Model.load(module.float()), "float32"
    except Exception as error:
        _trace()
        return {"model type": model_type, "notes": f"not loaded: {_line(error)}"}
    cells = _checks(model)
    return {"model type": model_type, **cells, "notes": "; ".join(n for n in (note, cells["notes"]) if n)}


def _trace() -> None:
    if "-v" in sys.argv:
        traceback.print_exc()


@torch.no_grad()
def _checks(model: Model) -> dict[str, str]:
    tokens = torch.tensor([[5, 6, 7, 8], [8, 9, 10, 11]])
    stems = dict.fromkeys(name.partition(".")[0] for name in model.sites)
    cells = {"sites": ", ".join(f"`{stem}`" for stem in stems), "notes": ""}
    notes, tolerance = [], 1e-6 if model.dtype == torch.float64 else 1e-4
    try:
        logits = model.logits(tokens)
        kept = {site.name: x for site, x in model.read(tokens, model.sites).items()}
        with model.visiting(model.sites, lambda _site, x: x.clone()):
            cells["identity"] = _mark((model.logits(tokens) - logits).abs().max() == 0)
        cells["sums"] = _sums(model, kept)
        cells["unembed"] = "no"
        last = next((name for name in reversed(list(kept)) if name.startswith("resid.")), None)
        if last:
            try:
                cells["unembed"] = _mark((model.unembed(kept[last]) - logits).abs().max() < tolerance)
            except ValueError as error:
                cells["unembed"] = "no" if "no unembedding" in str(error) else _line(error)
        cells["resumes"] = _mark(model.resumes)
        cells["pads"] = _mark(model.pads)
    except Exception as error:
        _trace()
        notes.append(_line(error))
    cells["notes"] = "; ".join(notes)
    return cells


def _sums(model: Model, kept: dict[str, Tensor]) -> str:
    """Whether each block adds just what its sub-layers write."""
    writers = [s for s in dict.fromkeys(n.partition(".")[0] for n in kept) if s not in ("embed", "resid")]
    writers = [s for s in writers if not s.endswith("_in")]
    worst, compared = 0.0, 0
    for i in range(1, len(model.blocks)):
        if f"resid.{i}" not in kept or f"resid.{i - 1}" not in kept:
            continue
        compared += 1
        written = sum(kept[f"{w}.{i}"] for w in writers if f"{w}.{i}" in kept)
        change = kept[f"resid.{i}"] - kept[f"resid.{i - 1}"]
        if isinstance(written, Tensor) and written.shape != change.shape:
            return "no"
        worst = max(worst, float((change - written).abs().max()))
    return _mark(worst < 1e-4) if compared else "-"


def _mark(value: Any) -> str:
    return "yes" if value else "no"


def _line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".splitlines()[0].partition(" Pass layout=")[0]
    return text[:100].replace("|", "/")


def main(names: list[str]) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    warnings.simplefilter("ignore")
    columns = ["sites", "identity", "sums", "unembed", "resumes", "pads", "notes"]
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in names or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        cells = row(name)
        alike.setdefault(tuple(cells.get(column, "") for column in columns), []).append(name)
    print("| model types |", " | ".join(columns), "|")
    print("| --- |", " | ".join("---" for _ in columns), "|")
    for cells, types in sorted(alike.items(), key=lambda item: (not item[0][0], -len(item[1]))):
        print("|", ", ".join(types), "|", " | ".join(cells), "|")


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if not name.startswith("-")])
