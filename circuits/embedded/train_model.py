"""Trains the language model that ships with the library, on sentences of `tasks.grammar`.

python -m circuits.embedded.train_model --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from tasks.grammar import VOCABULARY, texts, tokenizer
from tasks.questions import accuracy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Family = Literal["llama", "mamba"]
LENGTH = 48


def untrained(
    family: Family = "llama", *, width: int = 64, layers: int = 3, seed: int = 0
) -> PreTrainedModel:
    """A small model of one of the families that transformers knows, with random weights from a seed."""
    from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

    torch.manual_seed(seed)
    special = {"bos_token_id": VOCABULARY.index("<bos>"), "eos_token_id": None, "pad_token_id": 0}
    if family == "mamba":
        return MambaForCausalLM(
            MambaConfig(
                vocab_size=len(VOCABULARY),
                hidden_size=width,
                num_hidden_layers=layers,
                state_size=8,
                time_step_rank=4,
                use_mambapy=False,
                **special,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=2 * LENGTH,
            tie_word_embeddings=False,
            **special,
        )
    )


def train(
    model: PreTrainedModel,
    *,
    steps: int,
    batch: int = 128,
    rate: float = 4e-3,
    decay: float = 0.1,
    seed: int = 0,
) -> list[float]:
    """Trains the model in place (AdamW, cosine schedule); gives the loss of each step in nats per token.

    With a strong weight decay (2.0, as for the model that ships) a model does not get as saturated: with the
    usual 0.1 it is as good, but gradients at the embedding account for as little as half a percent of what
    moving the embedding does.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    warm = max(0.05, 2 / steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=warm)
    stream, losses = texts(seed, length=LENGTH), []
    model.train()
    bar = tqdm(range(steps), desc="training", unit="step")
    for step in bar:
        tokens = torch.stack(list(islice(stream, batch)))
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    model.eval()
    return losses


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m circuits.embedded.train_model", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--family", choices=("llama", "mamba"), default="llama")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, help="3 (llama) or 2 (mamba) unless given")
    parser.add_argument("--steps", type=int, help="1000 (llama) or 800 (mamba) unless given")
    parser.add_argument("--batch", type=int, help="texts per step, 128 (llama) or 32 (mamba) unless given")
    parser.add_argument("--rate", type=float, default=4e-3, help="the highest learning rate")
    parser.add_argument("--decay", type=float, help="weight decay, 2.0 (llama) or 0.1 (mamba) unless given")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    layers, steps, batch, decay = {"llama": (3, 1000, 128, 2.0), "mamba": (2, 800, 32, 0.1)}[args.family]
    model = untrained(args.family, width=args.width, layers=args.layers or layers, seed=args.seed)
    start = time.monotonic()
    losses = train(
        model,
        steps=args.steps or steps,
        batch=args.batch or batch,
        rate=args.rate,
        decay=decay if args.decay is None else args.decay,
        seed=args.seed,
    )
    seconds = time.monotonic() - start
    scores = accuracy(lambda tokens: model(input_ids=tokens, use_cache=False).logits, 1000, seed=10**6)
    model.save_pretrained(args.out)
    tokenizer().save_pretrained(args.out)

    last = losses[-100:]
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} parameters, {seconds:.0f} s, loss {sum(last) / len(last):.4f} nats per token")
    print("held-out agreement: " + json.dumps({name: round(score, 4) for name, score in scores.items()}))


if __name__ == "__main__":
    main()
