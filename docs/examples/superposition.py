"""Which way of training finds the features that are there: a table for every architecture.

python docs/examples/superposition.py --out results/superposition

Activations are sums of known directions (`tasks.Superposition`), so that one can see what was found. Every
dictionary reads the same stream, has as many features as there are, and is trained with the same steps,
batches and learning rate; only the recipe differs. docs/superposition.md says what comes out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import exp, log
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from interventions.dictionaries import SparseCoder, recipes, train
from interventions.model import Model
from interventions.writing import write
from tasks import Superposition, recovery
from tasks.superposition import SparseMap

WORLD = Superposition(128, 256, active=8.0, zipf=0.7, noise=0.05)
TARGETS = (4.0, 8.0, 16.0)
PAIRS = ("transcoder", "skip transcoder")
KS = (3, 4, 8, 16, 20)
SWEEPS: dict[str, Sequence[Any]] = {
    "ReLU + L1": [recipes.L1(weight) for weight in (0.06, 0.12, 0.24, 0.4, 0.62)],
    "p-anneal": [recipes.PAnneal(weight) for weight in (0.05, 0.12, 0.25, 0.45)],
    "Gated": [recipes.Gated(weight) for weight in (0.1, 0.2, 0.4, 0.8)],
    "TopK": [recipes.TopK(k) for k in KS],
    "BatchTopK": [recipes.BatchTopK(k) for k in KS],
    "Matryoshka": [recipes.Matryoshka(k) for k in (4, 8, 16)],
    "JumpReLU": [recipes.JumpReLU(l0) for l0 in (3, 8, 24)],
}
FAMILIES = replace(WORLD, active=6.0, parents=16, children=4)
WAYS: dict[str, Any] = {
    "TopK": recipes.TopK(6),
    "BatchTopK": recipes.BatchTopK(6),
    "JumpReLU": recipes.JumpReLU(6),
    "Matryoshka": recipes.Matryoshka(6),
}
COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3")


@dataclass(frozen=True)
class Point:
    """One dictionary, on samples that it was not trained on."""

    architecture: str
    recipe: str
    seed: int
    fvu: float
    l0: float
    dead: float
    cosine: float
    found: float
    f1: float
    seconds: float


def text(vocab: int, rows: int, *, seed: int = 0) -> Tensor:
    """Random tokens, so that every sample is equally likely."""
    return torch.randint(vocab, (rows, 256), generator=torch.Generator().manual_seed(seed))


def measured(
    coder: SparseCoder, x: Tensor, y: Tensor, directions: Tensor, strengths: Tensor
) -> dict[str, float]:
    """How well a dictionary predicts `y` from `x`, and what it found of what writes `directions`."""
    features = coder.encode(x)
    error, spread = (y - coder(x)).square().sum(), (y - y.mean(0)).square().sum()
    found = recovery(coder, directions, x, strengths)
    active = features != 0
    return {
        "fvu": (error / spread).item(),
        "l0": active.float().sum(-1).mean().item(),
        "dead": 1 - active.any(0).float().mean().item(),
        "cosine": found.cosine,
        "found": found.found,
        "f1": found.f1,
    }


def frontier(
    world: Superposition,
    sweeps: Mapping[str, Sequence[Any]],
    *,
    seeds: int,
    samples: int = 2**16,
    **options: Any,
) -> list[Point]:
    """Autoencoders of each architecture over a sweep; a seed is a world and a start of its own."""
    points = []
    for seed in range(seeds):
        drawn = replace(world, seed=seed)
        model = Model.load(drawn.module(samples))
        tokens = text(world.n_features, samples // 256, seed=seed)
        x, strengths = drawn.sample(2**13, torch.Generator().manual_seed(seed))
        for architecture, sweep in sweeps.items():
            for recipe in sweep:
                start = time.perf_counter()
                given = {"n_features": world.n_features, "seed": seed, **options}
                coder = train(model, tokens, ["embed"], recipe=recipe, **given)["embed"]
                seconds = time.perf_counter() - start
                numbers = measured(coder, x, x, drawn.features, strengths)
                points.append(Point(architecture, str(recipe), seed, seconds=seconds, **numbers))
                print(said(points[-1]), flush=True)
    return points


def transcoders(
    world: Superposition,
    ks: Sequence[int],
    *,
    seeds: int,
    linear: float,
    samples: int = 2**16,
    **options: Any,
) -> list[Point]:
    """Transcoders of a sparse map beside a linear one, without and with a skip path."""
    points = []
    for seed in range(seeds):
        known: SparseMap = replace(world, seed=seed).map(linear=linear)
        model = Model.load(known.module(samples))
        tokens = text(world.n_features, samples // 256, seed=seed)
        held = known.sample(2**13, torch.Generator().manual_seed(seed))[0]
        written = known.writes[0][0] + known.sources[0].features @ known.matrices[0]
        for k in ks:
            for name, skip in zip(PAIRS, (False, True), strict=True):
                start = time.perf_counter()
                given = {"n_features": world.n_features, "seed": seed, "skip": skip, **options}
                coder = train(model, tokens, [("mlp_in.0", "mlp.0")], recipe=recipes.TopK(k), **given)[
                    "mlp.0"
                ]
                seconds = time.perf_counter() - start
                # what a feature still has to write where the skip path sees its direction
                carried = 0 if coder.W_skip is None else known.sources[0].features @ coder.W_skip
                numbers = measured(coder, held.x, held.y, written - carried, held.strengths)
                points.append(Point(name, f"TopK(k={k})", seed, seconds=seconds, **numbers))
                print(said(points[-1]), flush=True)
    return points


def families(
    world: Superposition, ways: Mapping[str, Any], *, seeds: int, samples: int = 2**16, **options: Any
) -> str:
    """How often the feature of a parent is silent while its true feature fires, with a child and without.

    A dictionary that gives the parent's direction to the children as well can leave the parent out there, and
    is sparser for it: absorption (Chanin et al. 2024, arXiv 2409.14507).
    """
    lines = ["| | silent with a child | silent alone | cosine of parents | of children |", "|---" * 5 + "|"]
    parents, below = world.parents, world.parents * world.children
    for name, recipe in ways.items():
        rows = []
        for seed in range(seeds):
            drawn = replace(world, seed=seed)
            model = Model.load(drawn.module(samples))
            given = {"n_features": world.n_features, "seed": seed, **options}
            tokens = text(world.n_features, samples // 256, seed=seed)
            coder = train(model, tokens, ["embed"], recipe=recipe, **given)["embed"]
            x, strengths = drawn.sample(2**14, torch.Generator().manual_seed(seed))
            found = recovery(coder, drawn.features, x, strengths)
            fires = strengths > 0
            child = fires[:, -below:].unflatten(-1, (parents, world.children)).any(-1)
            silent = coder.encode(x)[:, found.partner[:parents]] == 0
            both, single = fires[:, :parents] & child, fires[:, :parents] & ~child
            shares = [(silent & when).sum() / when.sum() for when in (both, single)]
            rows.append([*shares, found.cosines[:parents].mean(), found.cosines[-below:].mean()])
        cells = [spread([row[i].item() for row in rows]) for i in range(4)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def at(points: Sequence[Point], l0: float, what: str) -> float | None:
    """A measure at this L0, between its neighbours on a sweep: straight lines in log L0 (and log FVU)."""
    ordered = sorted(points, key=lambda point: point.l0)
    for low, high in pairwise(ordered):
        if 0.97 * low.l0 <= l0 <= 1.03 * high.l0 and high.l0 > low.l0:
            share = (log(l0) - log(low.l0)) / (log(high.l0) - log(low.l0))
            ends = getattr(low, what), getattr(high, what)
            if what == "fvu":
                return exp(log(ends[0]) + share * (log(ends[1]) - log(ends[0])))
            return ends[0] + share * (ends[1] - ends[0])
    return None


def table(points: Sequence[Point], targets: Sequence[float] = TARGETS) -> str:
    """Mean and standard deviation over seeds, at the same L0."""
    lines = [
        "| | "
        + " | ".join(f"FVU at L0 {t:g}" for t in targets)
        + f" | cosine at {targets[1]:g} | found | F1 |",
        "|---" * (len(targets) + 4) + "|",
    ]
    for name in dict.fromkeys(point.architecture for point in points):
        mine = [point for point in points if point.architecture == name]
        runs = [[p for p in mine if p.seed == seed] for seed in sorted({p.seed for p in mine})]
        cells = [spread([at(run, t, "fvu") for run in runs]) for t in targets]
        for what in ("cosine", "found", "f1"):
            cells.append(spread([at(run, targets[1], what) for run in runs], deviation=False))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float | None], *, deviation: bool = True) -> str:
    """`mean ± standard deviation`, or a dash where a run does not reach."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    wide = f" ± {stdev(known):.3f}" if deviation and len(known) > 1 else ""
    return f"{mean(known):.3f}{wide}"


def said(point: Point) -> str:
    """A dictionary in one line."""
    short = point.recipe.partition(",")[0].removesuffix(")") + ")"
    return (
        f"{point.architecture:<16} {short:<22} seed {point.seed}: FVU {point.fvu:.3f}  L0 {point.l0:5.1f}  "
        f"dead {point.dead:4.0%}  cosine {point.cosine:.3f}  found {point.found:4.0%}  F1 {point.f1:.2f}  "
        f"{point.seconds:.0f} s"
    )


def draw(points: Sequence[Point], path: Path) -> None:
    """FVU and the cosine to the truth over L0: a line for each architecture, a dot for each dictionary."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "frontier", "font.size": 9, "axes.spines.top": False,
                            "axes.spines.right": False}):  # fmt: skip
        figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
        names = list(dict.fromkeys(point.architecture for point in points))
        for axis, what in zip(axes, ("fvu", "cosine"), strict=True):
            for name, colour in zip(names, COLOURS, strict=False):
                mine = [point for point in points if point.architecture == name]
                axis.plot(
                    [p.l0 for p in mine], [getattr(p, what) for p in mine], ".", color=colour, alpha=0.5
                )
                means = [
                    [p for p in mine if p.recipe == recipe]
                    for recipe in dict.fromkeys(p.recipe for p in mine)
                ]
                line = sorted(
                    (mean(p.l0 for p in group), mean(getattr(p, what) for p in group)) for group in means
                )
                axis.plot(*zip(*line, strict=True), color=colour, label=name, linewidth=1.5)
            axis.set_xscale("log", base=2)
            ticks = [2.0**i for i in range(1, 6)]
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_xlabel("active features per sample (L0)")
        axes[0].set_yscale("log")
        axes[0].set_yticks([0.05, 0.1, 0.2, 0.4], ["0.05", "0.1", "0.2", "0.4"])
        axes[0].minorticks_off()
        axes[0].set_ylabel("fraction of variance unexplained")
        axes[1].set_ylabel("cosine of true features to the nearest row")
        axes[0].legend(frameon=False, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/superposition"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--only", nargs="+", help="train these; the rest is as in points.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    options = {"steps": args.steps, "batch_size": args.batch, "lr": args.lr, "dead_after": 50}
    kept = args.out / "points.json"
    before = [Point(**point) for point in json.loads(kept.read_text())] if args.only else []
    sweeps = {name: sweep for name, sweep in SWEEPS.items() if not args.only or name in args.only}
    new = frontier(WORLD, sweeps, seeds=args.seeds, **options)
    if not args.only or set(args.only) & set(PAIRS):
        noisy = replace(WORLD, noise=0.15)
        new += transcoders(noisy, (4, 8, 24), seeds=args.seeds, linear=0.5, **options)
    if not args.only or "families" in args.only:
        print("\n" + families(FAMILIES, WAYS, seeds=args.seeds, **options))
    fresh = {point.architecture for point in new}
    every = new + [point for point in before if point.architecture not in fresh]
    write(kept, json.dumps([asdict(point) for point in every], indent=1).encode())
    order = list(SWEEPS)
    points = sorted((p for p in every if p.architecture in order), key=lambda p: order.index(p.architecture))
    pairs = [point for point in every if point.architecture in PAIRS]
    print("\n" + "\n\n".join(table(part) for part in (points, pairs) if part))
    draw(points, args.out / "frontier.svg")


if __name__ == "__main__":
    main()
