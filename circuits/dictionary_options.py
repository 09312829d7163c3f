"""The commands `circuits dictionaries ...` and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .options import (
    add_debug,
    add_machine,
    add_model,
    add_report,
    add_results,
    command_group,
    count,
    many,
    natural,
    numbers,
    positive,
    silent,
)

RECIPES = ("topk", "batchtopk", "jumprelu", "gated", "l1", "p-anneal", "matryoshka")
LAYOUTS = ("own", "saelens", "sparsify")

_ABOUT = """examples:
  circuits dictionaries train                       for the residual stream of the shipped model
  circuits dictionaries inspect embedded            what is there
  circuits dictionaries inspect embedded --feature resid.1/131 --out page.html
  circuits dictionaries convert ./my-saes ./for-saelens --to saelens
  circuits dictionaries compare seed-0 seed-1

`circuits dictionaries COMMAND --help` says more."""
_TRAIN = """examples:
  circuits dictionaries train
  circuits dictionaries train --model ./my-model --text corpus.txt --sites 'resid.*' 'mlp.*'
  circuits dictionaries train --sites 'mlp_in.*->mlp.*' --skip --recipe batchtopk --k 8
  circuits dictionaries train --sites resid.1 --seeds 0,1,2 --recipe jumprelu --l0 16

All sites and seeds are trained side by side on one stream of activations. A site is a name or
a pattern; a transcoder is a pair READS->WRITES, in quotes, its stars standing for the same layer.

What is done is kept in OUT/checkpoint until the end: an interrupted run goes on where it stopped
when the same command is given again."""
_INSPECT = """examples:
  circuits dictionaries inspect embedded
  circuits dictionaries inspect ./my-saes --model ./my-model         and whether they fit it
  circuits dictionaries inspect embedded --feature resid.1/131
  circuits dictionaries inspect embedded --site resid.1 --features 3,17,40 --out page.html
  circuits dictionaries inspect owner/repo --site resid.6 --model gpt2 --top 20 --out page.html"""
_CONVERT = """examples:
  circuits dictionaries convert owner/repo@main/layer_6 ./layer-6
  circuits dictionaries convert ./my-saes ./for-saelens --to saelens --dtype float16

Folds are exact. What a layout cannot hold is refused, and the message says what it is."""
_COMPARE = """examples:
  circuits dictionaries compare my-saes/seed-0 my-saes/seed-1
  circuits dictionaries compare ./small ./large --site resid.1 --out compared.json
  circuits dictionaries compare seed-0 seed-1 seed-2 --draw overlap.svg

Features are matched one to one, by decoder rows and by encoder rows. Shared are those to which both
matchings give the same partner, with both cosines above --threshold (Paulo and Belrose 2025).
`by chance` is the mean cosine of matched random directions, to be held against `matched`."""

Say = Callable[[str], None]


def add_dictionaries(commands: Any) -> None:
    """Adds the command `dictionaries`, which has commands of its own."""
    about = "train sparse dictionaries, and look at them"
    command = command_group(commands, "dictionaries", about, _ABOUT)
    _add_train(command("train", _train, "train dictionaries for sites of a model", _TRAIN))
    _add_inspect(command("inspect", _inspect, "list dictionaries, or show features", _INSPECT))
    _add_convert(command("convert", _convert, "write dictionaries in another layout", _CONVERT))
    _add_compare(command("compare", _compare, "measure which features dictionaries share", _COMPARE))


# --- running ------------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace, say: Say) -> None:
    from . import dictionary_training as training
    from .question import part

    given = vars(args)
    training.train(
        part(training.Training, given),
        out=args.out,
        fresh=args.fresh,
        progress=False if args.quiet else None,
        command=args.line,
        say=silent if args.quiet else say,
    )


def _inspect(args: argparse.Namespace, say: Say) -> None:
    from . import dictionary_commands as dictionaries
    from .question import part

    dictionaries.inspect(
        part(dictionaries.Inspection, vars(args)),
        out=args.out,
        progress=False if args.quiet else None,
        say=silent if args.quiet else say,
    )


def _convert(args: argparse.Namespace, say: Say) -> None:
    from . import dictionary_commands as dictionaries

    dictionaries.convert(
        args.source,
        args.target,
        layout=args.to,
        dtype=args.dtype,
        sites=args.site,
        place=args.place,
        model=args.model,
        say=silent if args.quiet else say,
    )


def _compare(args: argparse.Namespace, say: Say) -> None:
    from . import dictionary_comparison as dictionaries

    dictionaries.compare(
        args.folders,
        sites=args.site,
        threshold=args.threshold,
        out=args.out,
        picture=args.draw,
        say=silent if args.quiet else say,
    )


# --- options ------------------------------------------------------------------------------------------------


def _add_train(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to train on")
    add_model(group)
    _add_text(group, "(default: own)")
    group.add_argument(
        "--sites", nargs="+", default=["resid.*"], metavar="SITE",
        help="names, patterns or pairs such as 'mlp_in.3->mlp.3' (default: 'resid.*')",
    )  # fmt: skip
    group.add_argument("--tokens", type=many, default=1_000_000, metavar="N", help="of text (default: 1M)")
    _add_context(group, "256, or as many as the model takes")
    group = parser.add_argument_group("the dictionaries")
    group.add_argument(
        "--recipe", choices=RECIPES, default="batchtopk", metavar="NAME",
        help=f"{', '.join(RECIPES)} (default: batchtopk)",
    )  # fmt: skip
    group.add_argument(
        "--k", type=count, metavar="N", help="active features: topk, batchtopk, matryoshka (default: 16)"
    )
    group.add_argument(
        "--l0", type=positive, metavar="N", help="active features to aim at: jumprelu (default: 16)"
    )
    group.add_argument(
        "--weight", type=positive, metavar="W", help="of the penalty: l1, gated, p-anneal (default: 0.1)"
    )
    size = group.add_mutually_exclusive_group()
    size.add_argument("--features", type=many, metavar="N", help="of each dictionary")
    size.add_argument(
        "--expansion", type=positive, default=8.0, metavar="X",
        help="features for each coordinate of the site (default: 8)",
    )  # fmt: skip
    group.add_argument("--skip", action="store_true", help="give transcoders a linear path beside")
    group.add_argument(
        "--cross-layer", action="store_true",
        help="train the transcoders as one, whose features also write at the later sites",
    )  # fmt: skip
    group.add_argument(
        "--seeds",
        type=numbers,
        default=(0,),
        metavar="N,...",
        help="one set of dictionaries each (default: 0)",
    )
    group = parser.add_argument_group("the run")
    group.add_argument("--steps", type=many, default=5000, metavar="N", help="(default: 5000)")
    group.add_argument(
        "--batch-size", type=count, default=512, metavar="N", help="positions of a step (default: 512)"
    )
    group.add_argument("--lr", type=positive, metavar="X", help="learning rate (default: the recipe's)")
    add_machine(parser, batch_size=False)
    add_results(parser, "results/dictionaries/MODEL", pictures=False)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    _add_source(parser, "source", "PATH_OR_REPO")
    group = parser.add_argument_group("which features")
    _add_site(group)
    _add_place(group)
    group.add_argument(
        "--feature", "--features", dest="features", nargs="+", metavar="N",
        help="show these: 131, or 3,17,40, or with their site resid.1/131",
    )  # fmt: skip
    group.add_argument("--top", type=count, metavar="N", help="show the N that are most often active")
    group.add_argument("--random", type=count, metavar="N", help="show N at random, of those that are active")
    group = parser.add_argument_group("seen on what")
    group.add_argument(
        "--model",
        help="the model that the dictionaries are for; without features, it is seen whether they fit it "
        "(default for features: the one they were trained on here)",
    )
    _add_text(group, "(default: own)")
    group.add_argument("--tokens", type=many, default=65_536, metavar="N", help="of text (default: 65,536)")
    _add_context(group, "128, or as many as the model takes")
    group.add_argument("--contexts", type=count, default=12, metavar="N", help="of each kind (default: 12)")
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of text and draws (default: 0)")
    add_machine(parser, batch_size=False)
    group = parser.add_argument_group("results")
    group.add_argument("--out", metavar="FILE", help="write a page of the features, .html")
    add_report(group, pictures=False)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    _add_source(parser, "source", "SRC")
    parser.add_argument("target", metavar="DST", help="a new folder")
    parser.add_argument("--to", choices=LAYOUTS, default="own", help=f"{', '.join(LAYOUTS)} (default: own)")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), metavar="NAME",
        help="of the stored weights: float32, float16, bfloat16 (default: as stored)",
    )  # fmt: skip
    _add_site(parser)
    _add_place(parser)
    parser.add_argument("--model", metavar="NAME", help="the name of the model, for files that tell it")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    add_debug(parser)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="PATH_OR_REPO",
        help="two or more sets of dictionaries, or the word `embedded`",
    )
    _add_site(parser)
    parser.add_argument(
        "--threshold", type=positive, default=0.7, metavar="X", help="cosine to be shared (default: 0.7)"
    )
    parser.add_argument("--out", metavar="FILE", help="write the numbers, .json")
    parser.add_argument("--draw", metavar="FILE", help="write a picture: .svg, .png or .pdf")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    add_debug(parser)


def _add_source(parser: Any, name: str, metavar: str) -> None:
    parser.add_argument(
        name, metavar=metavar,
        help="a folder or file of dictionaries, a repository of the hub (owner/repo[@revision][/folder]), or "
        "the word `embedded`",
    )  # fmt: skip


def _add_text(group: Any, default: str) -> None:
    group.add_argument(
        "--text", metavar="SOURCE",
        help=f"a text file, a dataset of the hub, or `own`: what the model itself writes {default}",
    )  # fmt: skip


def _add_context(group: Any, default: str) -> None:
    group.add_argument("--context", type=count, metavar="N", help=f"tokens of a row (default: {default})")


def _add_site(group: Any) -> None:
    group.add_argument(
        "--site",
        "--sites",
        nargs="+",
        metavar="SITE",
        help="only these: names or patterns, such as 'resid.*'",
    )


def _add_place(group: Any) -> None:
    group.add_argument(
        "--place", metavar="SITE",
        help="where the only dictionary belongs, if its files do not say: resid.6, or 'mlp_in.3->mlp.3'",
    )  # fmt: skip
