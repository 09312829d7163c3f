"""Tiny random models of many families, shared by the tests.

Vocabulary 64, width 32, three layers. Weights are seeded, and spread widely enough that the models are
far from linear: at the usual initial scale a model this small is nearly the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from interventions.model import Model

VOCAB, WIDTH, LAYERS = 64, 32, 3

_ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_size: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **_ids,
}
_heads = {**_size, "head_dim": 8}
_ssm: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, **_ids}
_mamba2_mixer: dict[str, Any] = {
    "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8,
}  # fmt: skip


def _build(model: str, config: str, **values: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(hf, model)(getattr(hf, config)(**values))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": _build("GPT2LMHeadModel", "GPT2Config", vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=4,
                   n_positions=64, **_ids),
    "gpt_neo": _build("GPTNeoForCausalLM", "GPTNeoConfig", vocab_size=VOCAB, hidden_size=WIDTH, num_layers=4,
                      num_heads=4, attention_types=[[["global", "local"], 2]], window_size=4,
                      max_position_embeddings=64, **_ids),
    "gpt_neox": _build("GPTNeoXForCausalLM", "GPTNeoXConfig", **_size),
    "gpt_neox_sequential": _build("GPTNeoXForCausalLM", "GPTNeoXConfig", use_parallel_residual=False,
                                  **_size),
    "llama": _build("LlamaForCausalLM", "LlamaConfig", **_size),
    "mistral": _build("MistralForCausalLM", "MistralConfig", sliding_window=4, **_size),
    "qwen2": _build("Qwen2ForCausalLM", "Qwen2Config", **_size),
    "qwen3": _build("Qwen3ForCausalLM", "Qwen3Config", **_heads),
    "olmo2": _build("Olmo2ForCausalLM", "Olmo2Config", **_size),
    "gemma": _build("GemmaForCausalLM", "GemmaConfig", **_heads),
    "gemma2": _build("Gemma2ForCausalLM", "Gemma2Config", sliding_window=4, final_logit_softcapping=5.0,
                     attn_logit_softcapping=5.0, query_pre_attn_scalar=8, **_heads),
    "gemma3_text": _build("Gemma3ForCausalLM", "Gemma3TextConfig", sliding_window=4,
                          query_pre_attn_scalar=8, layer_types=["sliding_attention"] * 2 + ["full_attention"],
                          **_heads),
    "cohere": _build("CohereForCausalLM", "CohereConfig", logit_scale=0.25, **_size),
    "phi": _build("PhiForCausalLM", "PhiConfig", **_size),
    "opt": _build("OPTForCausalLM", "OPTConfig", vocab_size=VOCAB, hidden_size=WIDTH, ffn_dim=48,
                  num_hidden_layers=LAYERS, num_attention_heads=4, word_embed_proj_dim=WIDTH,
                  max_position_embeddings=64, **_ids),
    "bloom": _build("BloomForCausalLM", "BloomConfig", vocab_size=VOCAB, hidden_size=WIDTH, n_layer=LAYERS,
                    n_head=4, **_ids),
    "mixtral": _build("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, num_experts_per_tok=2,
                      sliding_window=None, **_size),
    "mamba": _build("MambaForCausalLM", "MambaConfig", state_size=8, **_ssm),
    "mamba2": _build("Mamba2ForCausalLM", "Mamba2Config", state_size=8, num_heads=4, head_dim=16, n_groups=1,
                     chunk_size=8, **_ssm),
    "falcon_mamba": _build("FalconMambaForCausalLM", "FalconMambaConfig", state_size=8, **_ssm),
    "rwkv": _build("RwkvForCausalLM", "RwkvConfig", attention_hidden_size=WIDTH, intermediate_size=48,
                   context_length=64, rescale_every=2, **_ssm),
    "recurrent_gemma": _build("RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", vocab_size=VOCAB,
                              hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=96,
                              num_attention_heads=4, lru_width=WIDTH, attention_window_size=8,
                              logits_soft_cap=5.0, **_ids),
    "jamba": _build("JambaForCausalLM", "JambaConfig", use_mamba_kernels=False, num_experts=2,
                    num_experts_per_tok=1, attn_layer_period=3, attn_layer_offset=1, mamba_d_state=8,
                    **_size),
    "zamba2": _build("Zamba2ForCausalLM", "Zamba2Config", mamba_d_state=8, n_mamba_heads=4, mamba_ngroups=1,
                     chunk_size=8, use_mamba_kernels=False, num_mem_blocks=1, adapter_rank=4,
                     layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
                     **{**_size, "num_hidden_layers": 4, "num_key_value_heads": 4}),
    "falcon_h1": _build("FalconH1ForCausalLM", "FalconH1Config", mamba_d_ssm=64, **_mamba2_mixer, **_size),
    "qwen3_next": _build("Qwen3NextForCausalLM", "Qwen3NextConfig", linear_num_key_heads=2,
                         linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
                         num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                         shared_expert_intermediate_size=16, full_attention_interval=3, **_heads),
}  # fmt: skip

# Enough different ones for the usual run of what takes long on each; the others are for the slow tests.
_SPREAD = {"gpt2", "llama", "opt", "cohere", "gemma2", "mixtral", "mamba", "rwkv", "recurrent_gemma"}
EVERY_FAMILY = [
    pytest.param(name, marks=() if name in _SPREAD else pytest.mark.slow, id=name) for name in FAMILIES
]


def module(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A tiny random module of one family, the same in every run."""
    return seeded(FAMILIES[name], dtype)


def seeded(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """What `build` gives, with weights that are the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build().to(dtype).eval()
        with torch.no_grad():
            for parameter in built.parameters():
                if parameter.is_floating_point():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def fresh(name: str, dtype: torch.dtype = torch.float64) -> Model:
    """A tiny random model of one family, the same in every run, and a test's own."""
    return Model.load(module(name, dtype))


_models: dict[tuple[str, torch.dtype], tuple[Model, tuple[Any, ...]]] = {}
_lent: set[tuple[str, torch.dtype]] = set()


def tiny(name: str, dtype: torch.dtype = torch.float64) -> Model:
    """A tiny random model of one family, the same one in all tests; to change it, take a `fresh` one."""
    key = name, dtype
    if key not in _models:
        model = fresh(name, dtype)
        _models[key] = model, _state(model)
    _lent.add(key)
    return _models[key][0]


def forget_changed() -> None:
    """Lets go of the models that a test has changed after all: the next one gets them as they were built."""
    for key in _lent:
        if _state(_models[key][0]) != _models[key][1]:
            del _models[key]
    _lent.clear()


def _state(model: Model) -> tuple[Any, ...]:
    module: Any = model.module
    parameters = list(module.parameters())
    return (
        torch.cat([x.detach().reshape(-1) for x in parameters]).view(torch.uint8).numpy().tobytes(),
        [(x.requires_grad, x.grad is None) for x in parameters],
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
         for m in module.modules()],
        module.config.to_dict(),
        model.tokenizer,
        {name for name in vars(model) if not isinstance(getattr(Model, name, None), cached_property)},
    )  # fmt: skip
