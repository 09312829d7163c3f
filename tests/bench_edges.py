"""Edges against one backward pass for each kept node, and `find` against the reference recipe.

The reference is what the code of Sparse Feature Circuits does, written plainly: node effects by ten left-hand
steps, each site by full passes through a model with dictionaries in it; edges by one backward pass for every
kept feature, example and position. Prints ratios measured in one run; `--help` tells of sizes.
"""

from __future__ import annotations

import argparse
import time

import torch
import transformers

from circuits.attribution import integrated_gradients
from circuits.discovery import find
from circuits.selection import top
from circuits.tally import Tally
from circuits.wiring import Edges
from interventions.acts import Acts
from interventions.binding import splices
from interventions.dictionaries import SparseCoder, TopK
from interventions.edits import Patch
from interventions.model import Model
from interventions.splice import run
from tasks import LogitDifference, Pair, Task

VOCAB = 512
metric = LogitDifference()


def setting(device: str, n_features: int, d_model: int, n_layers: int):
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=d_model, num_hidden_layers=n_layers, num_attention_heads=8,
        intermediate_size=4 * d_model, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    module = transformers.GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.02 * torch.randn_like(p))
    model = Model.load(module.to(device))
    names = [n for n, s in model.sites.items() if s.side == "out"]
    dictionaries = {
        name: SparseCoder.random(d_model, n_features, activation=TopK(32), seed=i).to(device)
        for i, name in enumerate(names)
    }
    return model, dictionaries


def question(n: int, n_pos: int) -> Task:
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(1, VOCAB, (n, n_pos), generator=generator)
    patch = clean.clone()
    patch[:, 1] = torch.randint(1, VOCAB, (n,), generator=generator)
    answer = torch.randint(1, 200, (n,), generator=generator).tolist()
    pairs = [
        Pair(tuple(c), tuple(p), (a,), (a + 200,))
        for c, p, a in zip(clean.tolist(), patch.tolist(), answer, strict=True)
    ]
    return Task("random", pairs)


def reference_nodes(model, batch, dictionaries, steps=10):
    """Ten left-hand steps along the features and the error of each site, by full passes."""
    with torch.no_grad():
        clean = run(model, batch.clean, dictionaries).computed
        patch = run(model, batch.patch, dictionaries).computed
    copies = batch[torch.arange(len(batch)).repeat(steps)]
    gradients, deltas = {}, {}
    for site, dictionary in dictionaries.items():
        deltas[site] = patch[site] - clean[site]
        along = [clean[site] + (k / steps) * deltas[site] for k in range(steps)]
        points = Acts(torch.cat([a.features for a in along]), torch.cat([a.error for a in along]))
        spliced = run(model, copies.clean, {site: dictionary}, [Patch({site: points})])
        leaves = spliced.used[site]
        grads = torch.autograd.grad(metric(spliced.logits, copies).sum(), [leaves.features, leaves.error])
        gradients[site] = Acts(*(g.unflatten(0, (steps, -1)).mean(0) for g in grads))
    return gradients, deltas


def reference_edges(model, batch, dictionaries, gradients, deltas, kept, limit=None):
    """One backward pass for each kept node of each example and position; `limit` stops after so many."""
    cut = run(model, batch.clean, dictionaries, cut=True)
    sites = list(cut.used)
    found, done, total = {}, 0, 0
    seconds = 0.0
    for down in sites:
        score = gradients[down].nodes(cut.computed[down])
        ups = sites[: sites.index(down)]
        if not ups:
            continue
        leaves = [t for up in ups for t in (cut.used[up].features, cut.used[up].error)]
        active = (score != 0) & kept[down]
        places = active.nonzero().tolist()
        total += len(places)
        if limit is not None:
            generator = torch.Generator().manual_seed(len(found))
            share = max(1, round(limit / len(sites)))
            places = [places[i] for i in torch.randperm(len(places), generator=generator)[:share].tolist()]
        start = time.perf_counter()
        for b, s, f in places:
            done += 1
            grads = torch.autograd.grad(score[b, s, f], leaves, allow_unused=True, retain_graph=True)
            for up, g, e in zip(ups, grads[::2], grads[1::2], strict=True):
                if g is None and e is None:
                    continue
                acts = cut.used[up]
                g = torch.zeros_like(acts.features) if g is None else g
                e = torch.zeros_like(acts.error) if e is None else e
                weight = Acts(g, e).nodes(deltas[up])[b].sum(0) / len(batch)
                index = kept[up].nonzero()[:, 0]
                block = found.setdefault((up, down), {})
                row = block.setdefault(f, torch.zeros(len(index), device=weight.device))
                row += weight[index]
        if places:
            seconds += (time.perf_counter() - start) * (len(active.nonzero()) / len(places))
    return found, seconds, total


def clock(fn, device: str, repeat: int = 1):
    best, out = float("inf"), None
    for _ in range(repeat):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        out = fn()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return out, best


def compare(model, dictionaries, n: int, n_pos: int, nodes: int, device: str, limit: int | None) -> None:
    task = question(n, n_pos)
    (batch,) = task.batches(None, n, device)
    bound = splices(model, dictionaries)
    method = integrated_gradients
    method(model, batch, metric, dictionaries)
    effects, node_seconds = clock(lambda: method(model, batch, metric, dictionaries), device, 2)
    tally = Tally(bound)
    tally.add(effects)
    kept = {site: mask.to(device) for site, mask in tally.kept(top(nodes)).items()}

    def fast():
        wires = Edges(kept)
        wires.add(model, batch, metric, bound, effects)
        return wires

    wires, edge_seconds = clock(fast, device, 3)
    _, whole_seconds = clock(
        lambda: find(model, task, dictionaries, node=nodes, edge=10**9, batch_size=n, progress=False), device
    )
    (_, deltas), slow_nodes = clock(lambda: reference_nodes(model, batch, dictionaries), device)
    # The oracle is given our gradients, so that the edges can be compared.
    ours = {
        site: Acts(g @ _rows(dictionaries[site]).T, g)
        for site, g in ((s, effects[s].gradient) for s in dictionaries)
    }
    found, slow_edges, total = reference_edges(model, batch, dictionaries, ours, deltas, kept, limit)
    difference = compare_edges(wires, kept, found) if limit is None else None
    count = sum(int(t.ne(0).sum()) for t in wires.sums.values())
    print(
        f"{n:3d} x {n_pos} tokens, {nodes} nodes ({total} counting examples and positions), {count} edges\n"
        f"  edges: {edge_seconds:8.3f} s, one backward per node {slow_edges:8.1f} s"
        f"{' (from a sample)' if limit else ''}: {slow_edges / edge_seconds:6.0f}x"
        + ("" if difference is None else f", relative difference {difference:.1e}")
    )
    reference = slow_nodes + slow_edges
    print(
        f"  nodes: {node_seconds:8.3f} s, ten left-hand steps  {slow_nodes:8.1f} s: "
        f"{slow_nodes / node_seconds:6.1f}x\n"
        f"  find:  {whole_seconds:8.3f} s, reference recipe      {reference:8.1f} s: "
        f"{reference / whole_seconds:6.1f}x",
        flush=True,
    )


def _rows(dictionary):
    return dictionary.W_dec


def compare_edges(wires, kept, found) -> float:
    worst, seen = 0.0, set()
    for (up, down), target, source, mean, _ in wires:
        if (up, down) not in found:
            continue
        seen.add((up, down))
        rows = kept[down].nonzero()[:, 0].tolist()
        slow = torch.zeros(len(rows), int(kept[up].sum()), dtype=torch.float64)
        for f, row in found[up, down].items():
            slow[rows.index(f)] = row.cpu()
        fast = torch.zeros_like(slow)
        fast[target, source] = mean
        worst = max(worst, float((fast - slow).norm() / slow.norm()))
    missed = [pair for pair in found.keys() - seen if any(bool(row.any()) for row in found[pair].values())]
    return float("inf") if missed else worst


def linear(model, dictionaries, n: int, n_pos: int, device: str) -> None:
    task = question(n, n_pos)
    (batch,) = task.batches(None, n, device)
    bound = splices(model, dictionaries)
    effects = integrated_gradients(model, batch, metric, dictionaries)
    tally = Tally(bound)
    tally.add(effects)
    print(f"kept nodes and seconds for their edges, {n} x {n_pos} tokens:")
    for nodes in (125, 250, 500, 1000, 2000, 4000):
        kept = {site: mask.to(device) for site, mask in tally.kept(top(nodes)).items()}

        def fast(kept=kept):
            Edges(kept).add(model, batch, metric, bound, effects)

        _, seconds = clock(fast, device, 3)
        print(f"  {nodes:5d}  {seconds:7.3f}  {1e3 * seconds / nodes:6.3f} ms each", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--examples", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--nodes", type=int, default=1000, help="kept features and errors")
    parser.add_argument("--limit", type=int, help="time the oracle on about so many backward passes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, dictionaries = setting(args.device, args.features, args.width, args.layers)
    print(
        f"{model}; {args.features} features at {len(dictionaries)} sites; torch {torch.__version__}",
        flush=True,
    )
    for n in args.examples:
        compare(model, dictionaries, n, args.tokens, args.nodes, args.device, args.limit)
    linear(model, dictionaries, args.examples[0], args.tokens, args.device)
