"""Tiny random models that carry a state: those of `families`, further ones, and some of torch's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import families
import pytest
import torch
from families import VOCAB, WIDTH, _build, _heads, _ids, _mamba2_mixer, _size
from torch import Tensor, nn

from interventions import Model


class Recurrent(nn.Module):
    """A character model of torch's own parts, as anybody writes it."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 1):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(
            [kind(WIDTH, WIDTH, num_layers=layers, batch_first=True) for _ in range(2)]
        )
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        x = 10 * self.embed(tokens)
        for layer in self.layers:
            x = layer(x)[0]
        return self.head(x)


_further = {
    "bamba": _build("BambaForCausalLM", "BambaConfig", attn_layer_indices=[1], mamba_d_head=16,
                    mamba_expand=2, **_mamba2_mixer, **_size),
    "granitemoehybrid": _build("GraniteMoeHybridForCausalLM", "GraniteMoeHybridConfig", num_local_experts=2,
                               layer_types=["mamba", "attention", "mamba"], num_experts_per_tok=1,
                               shared_intermediate_size=48, mamba_d_head=16, mamba_expand=2, **_mamba2_mixer,
                               **_size),
    "xlstm": _build("xLSTMForCausalLM", "xLSTMConfig", vocab_size=VOCAB, hidden_size=64, embedding_dim=64,
                    num_hidden_layers=2, num_blocks=2, num_heads=2, qk_dim_factor=1.0, v_dim_factor=1.0,
                    mode="inference", chunk_size=8, **_ids),
    "qwen3_5_text": _build("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", linear_num_key_heads=2,
                           linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
                           full_attention_interval=3, **_heads),
    "lfm2": _build("Lfm2ForCausalLM", "Lfm2Config", layer_types=["conv", "full_attention", "conv"],
                   conv_L_cache=3, block_multiple_of=8, **_size),
    "nemotron_h": _build("NemotronHForCausalLM", "NemotronHConfig", mamba_num_heads=4, mamba_head_dim=16,
                         layers_block_type=["mamba", "attention", "mlp"], ssm_state_size=8, n_groups=1,
                         chunk_size=8, **_heads),
    "olmo_hybrid": _build("OlmoHybridForCausalLM", "OlmoHybridConfig", linear_num_key_heads=2,
                          linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, **_size),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU, layers=2),
    "rnn": lambda: Recurrent(nn.RNN),
}  # fmt: skip

SHARED = (
    "mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "zamba2", "falcon_h1",
    "qwen3_next",
)  # fmt: skip
RECURRENT = (*SHARED, *_further)
# Enough different ones for the usual run of what takes long on each, as in `families`.
_SPREAD = {"mamba", "mamba2", "rwkv", "recurrent_gemma", "falcon_h1", "qwen3_next", "xlstm", "lstm", "gru"}
EVERY_RECURRENT = [
    pytest.param(name, marks=() if name in _SPREAD else pytest.mark.slow, id=name) for name in RECURRENT
]
_models: dict[str, Model] = {}


def tiny(name: str) -> Model:
    """The same model of a family in every test, in float64."""
    if name not in _models:
        _models[name] = fresh(name)
    return _models[name]


def fresh(name: str) -> Model:
    return Model.load(families.seeded(_further.get(name) or families.FAMILIES[name]))


def tokens(batch: int, pos: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (batch, pos), generator=torch.Generator().manual_seed(seed))


@contextmanager
def float64_throughout() -> Iterator[None]:
    """While open, what is float64 is not rounded to float32 by the code of models, as parts of them would."""
    own = {name: getattr(Tensor, name) for name in ("float", "to", "type")}
    softmax = nn.functional.softmax

    def kept(name: str) -> Callable[..., Tensor]:
        def convert(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            asked = name == "float" or torch.float32 in (*args, kwargs.get("dtype"))
            return x if asked and x.dtype == torch.float64 else own[name](x, *args, **kwargs)

        return convert

    def soft(x: Tensor, dim: int | None = None, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **kwargs)

    try:
        for name in own:
            setattr(Tensor, name, kept(name))
        nn.functional.softmax = soft
        yield
    finally:
        for name, method in own.items():
            setattr(Tensor, name, method)
        nn.functional.softmax = softmax
