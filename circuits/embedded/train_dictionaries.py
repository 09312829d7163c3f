"""Trains the sparse dictionaries that ship with the library, one for every site of the embedded model.

python -m circuits.embedded.train_dictionaries --out FOLDER
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from interventions.dictionaries import load, quality, recipes, save, table, train
from tasks.grammar import texts

from .. import embedded


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m circuits.embedded.train_dictionaries", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the dictionaries")
    parser.add_argument("--features", type=int, default=256, help="features of each dictionary")
    parser.add_argument("--k", type=int, default=4, help="active features per position")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=20_000, help="texts of 48 tokens to train on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    model = embedded.model()
    sites = [site for site in model.sites if not site.split(".")[0].endswith("_in")]
    start = time.monotonic()
    dictionaries = train(
        model,
        torch.stack(list(islice(texts(args.seed), args.rows))),
        sites,
        n_features=args.features,
        recipe=recipes.BatchTopK(args.k, start=4 * args.k),
        steps=args.steps,
        seed=args.seed,
    )
    seconds = time.monotonic() - start
    save(dictionaries, args.out, dtype=torch.float16)
    unseen = torch.stack(list(islice(texts(10**6), 500)))
    print(table(quality(model, load(args.out), unseen)))
    print(f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
