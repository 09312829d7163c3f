"""At which layer of a model of children's stories does it know whether Lily or Tim is meant?

python docs/examples/directions.py --weights FOLDER --out results/directions

FOLDER holds stories260K, a Llama of 260,032 parameters. docs/directions.md says what comes out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from circuits.direction_plots import plot_separation, plot_similarity
from interventions import Add, Model, applied
from interventions.steering import (
    Direction,
    PairActivations,
    contrast,
    lda,
    logistic_probe,
    mean_difference,
    pair_activations,
    paired_pca,
    promoted,
    separations,
)

_SHARED = Path(__file__).resolve().parents[3] / "shared" / "weights"
WEIGHTS = os.environ.get("BREADBOARD_WEIGHTS", str(_SHARED))
GIRLS = ("Lily", "Lucy", "Mia", "Sue", "Anna", "Sara", "Jane", "Amy", "Emma", "Mary")
BOYS = ("Tom", "Tim", "Ben", "Max", "Sam", "Jack", "Bob", "Joe", "John", "Billy")
ENDS = (
    "was happy because",
    "went to the park and",
    "saw a big dog and",
    "had a red ball and",
    "was sad because",
)
HELD_OUT = 3  # names of either kind


def pairs(girls: Sequence[str], boys: Sequence[str]) -> list[tuple[str, str]]:
    """Stories that begin alike, of a girl and of a boy."""
    return [(f"{girl} {end}", f"{boy} {end}") for girl, boy in zip(girls, boys, strict=True) for end in ENDS]


def methods(model: Model, acts: PairActivations, *, draws: int) -> dict[str, Direction]:
    """What several methods find at every layer, with whole names drawn and held out, and labels shuffled."""
    names = [girl for girl in GIRLS[:-HELD_OUT] for _ in ENDS]
    sites, folds = list(acts.positive), len(names) // len(ENDS)
    found = {
        label: contrast(model, acts, sites, method=method, folds=folds, bootstrap=draws, groups=names)
        for label, method in (
            ("mean difference", mean_difference),
            ("paired PCA", paired_pca),
            ("LDA", lda),
            ("logistic probe", logistic_probe),
        )
    }
    shuffled = contrast(model, acts, sites, folds=folds, bootstrap=draws, groups=names, shuffled=0)
    return {**found, "labels shuffled": shuffled}


def pronoun(model: Model, text: str) -> float:
    """By how many nats she is likelier than he."""
    before = model.tokenizer.encode(text)
    she, he = (model.tokenizer.encode(f"{text} {word}")[len(before)] for word in ("she", "he"))
    with torch.no_grad():
        logits = model.logits(torch.tensor([before]))[0, -1]
    return (logits[she] - logits[he]).item()


def moved(model: Model, direction: Direction, texts: Sequence[str], scales: Sequence[float]) -> list[float]:
    """The mean of `pronoun` over texts with each multiple of a direction added."""
    means = []
    for scale in scales:
        with applied(model, Add(direction, scale=scale)):
            means.append(sum(pronoun(model, text) for text in texts) / len(texts))
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", default=WEIGHTS, metavar="FOLDER")
    parser.add_argument("--out", default="results/directions", metavar="FOLDER")
    parser.add_argument("--draws", type=int, default=200)
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    model = Model.load(Path(args.weights) / "stories260K")
    train = pairs(GIRLS[:-HELD_OUT], BOYS[:-HELD_OUT])
    held = pairs(GIRLS[-HELD_OUT:], BOYS[-HELD_OUT:])
    sites = [f"resid.{i}" for i in range(len(model.blocks))]
    acts = pair_activations(model, train, sites)

    found = methods(model, acts, draws=args.draws)
    for label, direction in found.items():
        print(f"\n{label}: norm; AUROC over folds; redrawn cosine; halves; names never seen")
        unseen = separations(model, held, direction)
        for site in sites:
            how = {key: direction.how[key][site] for key in ("separation", "bootstrap", "split_half")}
            drawn = how["bootstrap"]
            print(
                f"  {site}  {direction.norms[site]:.2f}  {how['separation']['auroc']:.2f}  "
                f"{drawn['cosine']:.2f} [{drawn['low']:.2f}, {drawn['high']:.2f}]  "
                f"{how['split_half']:.2f}  {unseen[site]}"
            )
    alone = contrast(model, acts, sites, folds=7, method=lda).how["separation"]
    print("\nLDA with pairs held out one by one:", {site: round(alone[site]["auroc"], 2) for site in sites})
    shown = {label: each for label, each in found.items() if "shuffled" not in label}
    plot_separation(shown, out / "directions-separation.svg", width=4.5)

    direction = found["mean difference"]
    plot_similarity(direction, out / "directions-similarity.svg")
    for site, tokens in promoted(model, direction, k=6).items():
        print(site, tokens)

    last, scales = direction.only(sites[-1]), (-2, -1, 0, 1, 2)
    texts = {"boys": [pair[1] for pair in held], "girls": [pair[0] for pair in held]}
    random = [Direction.random(last, seed) for seed in range(20)]
    for who, some in texts.items():
        print(f"\n{who}, she over he in nats, at {scales}")
        print("  direction", [round(value, 2) for value in moved(model, last, some, scales)])
        control = torch.tensor([moved(model, each, some, (2,))[0] for each in random])
        print(f"  20 random ones, at 2: {control.mean():.2f}, {control.min():.2f} to {control.max():.2f}")
        shuffled = found["labels shuffled"].only(sites[-1])
        same = shuffled * (last.norms[sites[-1]] / shuffled.norms[sites[-1]])
        print("  shuffled, of the same norm", [round(value, 2) for value in moved(model, same, some, scales)])
    for scale in (0, 2):
        with applied(model, Add(last, scale=scale)):
            print(scale, model.complete("Tom was happy because", max_new_tokens=14))
    direction.save(out / "pronoun")


if __name__ == "__main__":
    main()
