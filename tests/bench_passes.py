"""Overhead of scoring nodes and of splicing, over the passes and matrix products that they cannot do without.

- Node attribution: against two forward passes and one backward pass of the bare model, and the products with
  encoder and decoder for the clean and the patched prompts.
- A spliced forward pass: against a bare one, and the products with encoder and decoder.

Prints ratios measured in one run. With `--shape gemma` the model has the shape of Gemma 2 2B, for a GPU.
"""

from __future__ import annotations

import argparse
import time

import torch
import transformers
from bench_edges import question

from circuits import attribution_patching
from interventions import Ablate, Acts, Intervention, Model, SparseCoder, applied
from interventions.dictionaries import BatchTopK
from interventions.intervention import Here
from tasks import LogitDifference

metric = LogitDifference()
SHAPES = {
    "small": dict(hidden_size=256, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
                  intermediate_size=1024, vocab_size=4096),
    "gemma": dict(hidden_size=2304, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4,
                  head_dim=256, intermediate_size=9216, vocab_size=256000),
}  # fmt: skip


class Nothing(Intervention):
    """Looks at the features and errors of some sites, and changes none."""

    sites = frozenset()

    def __init__(self, sites):
        self.sites = frozenset(sites)

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        return acts


def setting(shape: str, n_features: int, k: int, device: str, dtype: torch.dtype):
    torch.manual_seed(0)
    if shape == "gemma":
        config = transformers.Gemma2Config(**SHAPES[shape])
        kind = transformers.Gemma2ForCausalLM
    else:
        config = transformers.LlamaConfig(**SHAPES[shape])
        kind = transformers.LlamaForCausalLM
    with torch.device(device):
        model = Model.load(kind(config).to(dtype))
    tokens = torch.randint(10, 500, (8, 16), device=device)
    sites = [n for n, s in model.sites.items() if n.startswith(("attn.", "mlp.", "resid."))]
    dictionaries = {}
    for i, name in enumerate(sites):
        width = model.sites[name].width
        coder = SparseCoder.random(width, n_features, seed=i).to(device=device, dtype=dtype)
        x = model.read(tokens, [name])[model.site(name)].float().flatten(0, 1)
        z = coder.pre_activations(x.to(dtype)).float()
        threshold = z.sort(-1).values[:, -k].mean().item()
        dictionaries[name] = SparseCoder(
            W_enc=coder.W_enc, b_enc=coder.b_enc, W_dec=coder.W_dec, b_dec=coder.b_dec,
            activation=BatchTopK(k, threshold),
        ).to(device=device, dtype=dtype)  # fmt: skip
    return model, dictionaries


def clock(fn, device: str, repeat: int) -> float:
    def once() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        fn()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    fn()
    return min(once() for _ in range(repeat))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--active", type=int, default=32)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, dtype = args.device, getattr(torch, args.dtype)
    model, dictionaries = setting(args.shape, args.features, args.active, device, dtype)
    (batch,) = question(args.examples, args.tokens).batches(None, args.examples, device)
    reads = {name: model.read(batch.clean, [name])[model.site(name)] for name in dictionaries}
    codes = {name: dictionaries[name].encode(x) for name, x in reads.items()}
    l0 = torch.stack([(f != 0).sum(-1).float().mean() for f in codes.values()]).mean().item()
    embed = model.site("embed")

    def forward():
        with torch.no_grad():
            model.logits(batch.clean)

    def backward():
        leaf: list[torch.Tensor] = []

        def visit(_site, x):
            leaf.append(x.detach().requires_grad_())
            return leaf[0].clone()

        with model.visiting([embed], visit):
            torch.autograd.grad(metric(model.logits(batch.clean), batch).sum(), leaf[0])

    def products():
        for name, dictionary in dictionaries.items():
            reads[name] @ dictionary.W_enc
            codes[name] @ dictionary.W_dec

    def clocked(fn) -> float:
        return clock(fn, device, args.repeat)

    with torch.no_grad():
        once, twice = clocked(forward), clocked(products)
    both = clocked(backward)
    print(f"{model}, {len(dictionaries)} dictionaries of {args.features} features, L0 {l0:.0f}, "
          f"{args.examples} x {args.tokens} tokens")  # fmt: skip
    floor = once + both + 2 * twice
    found = clocked(lambda: attribution_patching(model, batch, metric, dictionaries))
    print(f"node attribution {found:.3f} s; two forward, one backward {once + both:.3f} s, products "
          f"{2 * twice:.3f} s: {found / floor:.2f}x")  # fmt: skip

    def spliced():
        with torch.no_grad(), applied(model, Nothing(dictionaries), dictionaries=dictionaries):
            model.logits(batch.clean)

    def ablated():
        nodes = {name: [0, 1] for name in dictionaries}
        with torch.no_grad(), applied(model, Ablate(nodes), dictionaries=dictionaries):
            model.logits(batch.clean)

    found = clocked(spliced)
    print(f"spliced forward  {found:.3f} s; bare forward {once:.3f} s, products {twice:.3f} s: "
          f"{found / (once + twice):.2f}x")  # fmt: skip
    found = clocked(ablated)
    print(f"with an ablation at every site {found:.3f} s: {found / (once + twice):.2f}x")
    if device != "cpu":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
