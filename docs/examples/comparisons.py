"""What dictionaries of one site have in common: seeds, widths, and the directions they are made of.

python docs/examples/comparisons.py --weights FOLDER --out results/comparisons

FOLDER holds stories260K, a Llama of 260,032 parameters. Dictionaries of one site are trained by two recipes
at three widths, two seeds each; then come the measures of `interventions.dictionaries.measures`, each as a
table, and pictures of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from pronouns import WEIGHTS, Clock, own_text
from torch import Tensor

from circuits import geometry_plots as plots
from interventions.dictionaries import Quality, SparseCoder, load, quality, recipes, save, train
from interventions.dictionaries.measures import (
    Overlap,
    geometry,
    meta_dictionary,
    overlap,
    principal,
    stitching,
)
from interventions.dictionaries.recipes import Recipe
from interventions.model import Model

RECIPES: Mapping[str, Recipe] = {"ReLU + L1": recipes.L1(0.35), "BatchTopK": recipes.BatchTopK(8, start=32)}
WIDTHS = (128, 512, 1024)
SEEDS = (0, 1)
Trained = Mapping[tuple[str, int, int], SparseCoder]  # recipe, width, seed


def learned(
    model: Model, text: Tensor, site: str, folder: Path, *, widths: Sequence[int] = WIDTHS, steps: int = 2500
) -> Trained:
    """The dictionaries, each kept in a folder of its own."""
    found = {}
    for recipe in RECIPES:
        for width in widths:
            for seed in SEEDS:
                here = folder / f"{recipe.replace(' + ', '-')}-{width}-{seed}"
                if not here.exists():
                    made = train(
                        model,
                        text,
                        [site],
                        n_features=width,
                        recipe=RECIPES[recipe],
                        steps=steps,
                        pool=2**16,
                        seed=seed,
                    )
                    save(made, here)
                found[recipe, width, seed] = load(here)[site]
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def qualities(model: Model, text: Tensor, site: str, trained: Trained) -> dict[tuple[str, int], Quality]:
    """Of the first seed of each."""
    return {
        (recipe, width): quality(model, {site: coder}, text)[site]
        for (recipe, width, seed), coder in trained.items()
        if seed == SEEDS[0]
    }


def of_quality(found: Mapping[tuple[str, int], Quality]) -> str:
    head = ("recipe", "features", "L0", "FVU", "cosine", "norm ratio", "dead", "over 10%", "recovered", "KL")
    return table(
        head,
        [
            (
                recipe, f"{width:,}", f"{q.l0:.1f}", f"{q.fvu:.3f}", f"{q.cosine:.3f}", f"{q.norm_ratio:.3f}",
                f"{q.dead:.1%}", f"{q.dense(0.1):.1%}", f"{q.recovered:.1%}", f"{q.kl:.3f}",
            )
            for (recipe, width), q in found.items()
        ],
    )  # fmt: skip


def of_seeds(overlaps: Mapping[tuple[str, int], Overlap], found: Mapping[tuple[str, int], Quality]) -> str:
    head = ("recipe", "features", "shared", "of the denser half", "of the rarer half", "same partner",
            "matched cosine", "chance")  # fmt: skip
    return table(
        head,
        [
            (recipe, f"{width:,}", f"{o.shared:.1%}", *halves(o, found[recipe, width]),
             f"{o.agreement:.1%}", f"{o.decoder.mean:.3f}", f"{o.chance:.3f}")
            for (recipe, width), o in overlaps.items()
        ],
    )  # fmt: skip


def halves(found: Overlap, of_left: Quality) -> Iterator[str]:
    """How many are shared of the features that are active more often than half of them, and less often."""
    shared = torch.zeros(found.n_left, dtype=torch.bool)
    shared[found.shared_pairs.left] = True
    order = of_left.density.cpu().argsort(descending=True)
    for half in order.tensor_split(2):
        yield f"{shared[half].double().mean().item():.1%}"


def of_stitching(model: Model, text: Tensor, trained: Trained, widths: Sequence[int], out: Path) -> str:
    rows = []
    for recipe in RECIPES:
        small, large = (trained[recipe, width, SEEDS[0]] for width in (widths[0], widths[-1]))
        found = stitching(model, small, large, text)
        print(f"{recipe}: {found}\n")
        plots.plot_stitching(found, out / f"stitching-{recipe.split()[0]}.svg", title=recipe)
        lower = [
            (found.change[which & (found.density > 0)] < 0).double().mean().item()
            for which in (found.novel, ~found.novel)
        ]
        rows.append(
            (recipe, f"{found.share_novel:.1%}", *(f"{x:.1%}" for x in lower), f"{found.separation:.3f}")
        )
    head = ("recipe", "novel", "of these lower the error", "of the others", "area under the ROC curve")
    return table(head, rows)


def of_metas(trained: Trained, *, steps: int = 1500) -> str:
    rows = []
    for (recipe, width, seed), coder in trained.items():
        if seed == SEEDS[0] and width > 128:
            random = torch.randn(coder.W_dec.shape, generator=torch.Generator().manual_seed(0))
            explained = [meta_dictionary(x, steps=steps).explained_variance for x in (coder, random)]
            rows.append((recipe, f"{width:,}", f"{width // 4:,}", *(f"{x:.1%}" for x in explained)))
    return table(("recipe", "features", "meta-features", "explained", "of random rows"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=Path(WEIGHTS), help="folder that holds stories260K")
    parser.add_argument("--out", type=Path, default=Path("results/comparisons"))
    parser.add_argument("--site", default="resid.2")
    parser.add_argument("--rows", type=int, default=1024, help="texts of 256 tokens to sample")
    parser.add_argument("--steps", type=int, default=2500, help="of training each dictionary")
    parser.add_argument("--meta-steps", type=int, default=1500, help="of training on decoder rows")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    clock = Clock()

    model = Model.load(args.weights / "stories260K")
    text, unseen = own_text(model, args.rows, args.out)
    trained = learned(model, text, args.site, args.out, widths=args.widths, steps=args.steps)
    clock("dictionaries")

    found = qualities(model, unseen, args.site, trained)
    print(of_quality(found))
    names = {key: f"{key[0]}, {key[1]:,}" for key in found}
    widest = {names[key]: q for key, q in found.items() if key[1] == args.widths[-1]}
    plots.plot_densities(widest, args.out / "densities.svg")
    geometries = {
        names[r, w]: geometry(c) for (r, w, s), c in trained.items() if s == 0 and names[r, w] in widest
    }
    plots.plot_cosines(geometries, args.out / "cosines.svg")
    for recipe in RECIPES:
        key = recipe, args.widths[-1]
        plots.plot_principal(
            principal(trained[(*key, SEEDS[0])].W_dec),
            args.out / f"principal-{recipe.split()[0]}.svg",
            color=found[key].density.log10(),
            label="log10 of density",
            title=names[key],
        )
    families = {recipe: [q for key, q in found.items() if key[0] == recipe] for recipe in RECIPES}
    plots.plot_frontier(families, args.out / "frontier.svg")
    clock("quality")

    overlaps = {
        (recipe, width): overlap(*(trained[recipe, width, seed] for seed in SEEDS))
        for recipe in RECIPES
        for width in args.widths
    }
    print(of_seeds(overlaps, found))
    plots.plot_overlap({names[key]: o for key, o in overlaps.items()}, args.out / "overlap.svg", width=5.5)
    clock("seeds")

    print(of_stitching(model, unseen, trained, args.widths, args.out))
    clock("stitching")
    print(of_metas(trained, steps=args.meta_steps))
    clock("dictionaries of decoder rows")


if __name__ == "__main__":
    main()
