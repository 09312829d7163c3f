"""Peak memory of `find` with large dictionaries: 32k features at 19 sites of a Pythia-70m shape."""

from __future__ import annotations

import argparse
import resource
import time

import torch
import transformers
from bench_edges import question

from circuits import find
from interventions import Model, SparseCoder
from interventions.dictionaries import TopK


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=32768)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--nodes", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=50304, hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=8,
        intermediate_size=4 * args.width, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = Model.load(transformers.GPTNeoXForCausalLM(config))
    sites = [name for name, site in model.sites.items() if site.side == "out"]
    dictionaries = {
        name: SparseCoder.random(args.width, args.features, activation=TopK(64), seed=i)
        for i, name in enumerate(sites)
    }
    size = sum(t.numel() * 4 for d in dictionaries.values() for t in (d.W_enc, d.W_dec)) / 2**30
    print(
        f"{model}, {len(sites)} dictionaries of {args.features} features, "
        f"{size:.1f} GiB; before {peak():.1f} GiB"
    )
    start = time.perf_counter()
    task = question(args.examples, args.tokens)
    circuit = find(model, task, dictionaries, node=args.nodes, edge=10_000, batch_size=args.examples)
    print(f"{circuit} in {time.perf_counter() - start:.1f} s, peak {peak():.1f} GiB")


if __name__ == "__main__":
    main()
