"""The commands `circuits lens ...` and their options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from .options import (
    add_machine,
    add_model,
    add_report,
    add_results,
    command_group,
    count,
    many,
    natural,
    portion,
    positive,
    silent,
)

STATISTICS = ("entropy", "kl", "cross-entropy", "probability", "rank")

_ABOUT = """examples:
  circuits lens fit                                 a tuned lens of the shipped model
  circuits lens show results/lens-embedded 'The boys near the car'
  circuits lens show logit 'The boys near the car'  the logit lens needs no fitting
  circuits lens evaluate results/lens-embedded

`circuits lens COMMAND --help` says more."""
_FIT = """examples:
  circuits lens fit
  circuits lens fit --model ./my-model --text corpus.txt --steps 1000
  circuits lens fit --model ./my-mamba --sites embed 'resid.*' 'mid.*' --start least-squares
  circuits lens fit --model ./my-model --text corpus.txt --optimizer adam --lr 0.001 --loss ce

A tuned lens (Belrose et al. 2023) is an affine map at every site, trained so that with it the
model's own unembedding says at the site what the model says in the end. A site is a name or a
pattern; `circuits models` lists them. OUT then has the lens, and how good it is on text that was
held out, beside the logit lens.

What is done is kept in OUT/checkpoint until the end: an interrupted run goes on where it stopped
when the same command is given again."""
_SHOW = """examples:
  circuits lens show results/lens-embedded 'The boys near the car'
  circuits lens show logit 'Once upon a time' --model ./my-model --statistic kl --html
  circuits lens show ./published-tuned-lens 'Once upon a time' --model ./my-model --positions 0:20

LENS is a folder that `circuits lens fit` wrote, one with the params.pt and config.json of the
tuned-lens package, or the word `logit`. Statistics: entropy of what the lens says; kl, from the
model's output to it; cross-entropy and rank of the token that comes next; probability of the
likeliest token."""
_EVALUATE = """examples:
  circuits lens evaluate results/lens-embedded
  circuits lens evaluate ./zero ./least-squares --text other.txt --out results/compared
  circuits lens evaluate results/lens-embedded --transfer

The logit lens and the model's own output are always there beside. The text is by default that which
the first lens was fitted on, the part that was held out. With --transfer, what every site holds is
read with the map of every other one, too."""

Say = Callable[[str], None]


def add_lens(commands: Any) -> None:
    """Adds the command `lens`, which has commands of its own."""
    about = "read what a model would say at every layer"
    command = command_group(commands, "lens", about, _ABOUT)
    _add_fit(command("fit", _fit, "fit a tuned lens to a model, and test it", _FIT))
    _add_show(command("show", _show, "show what a lens reads in a prompt", _SHOW))
    _add_evaluate(command("evaluate", _evaluate, "measure lenses on text, layer by layer", _EVALUATE))


# --- running ------------------------------------------------------------------------------------------------


def _fit(args: argparse.Namespace, say: Say) -> None:
    from . import lens_fit as lens
    from .question import part

    lens.fit_lens(
        part(lens.Fitting, vars(args)),
        out=args.out,
        fresh=args.fresh,
        pictures=args.draw,
        progress=False if args.quiet else None,
        command=args.line,
        say=silent if args.quiet else say,
    )


def _show(args: argparse.Namespace, say: Say) -> None:
    from . import lens_commands as lens
    from .question import part

    lens.show(
        part(lens.Showing, vars(args)),
        args.lens,
        args.prompt,
        out=args.out,
        pictures=args.draw,
        say=silent if args.quiet else say,
    )


def _evaluate(args: argparse.Namespace, say: Say) -> None:
    from . import lens_commands as lens
    from .question import part

    lens.evaluate(
        part(lens.Evaluating, vars(args)),
        args.lenses,
        out=args.out,
        pictures=args.draw,
        progress=False if args.quiet else None,
        command=args.line,
        say=silent if args.quiet else say,
    )


# --- options ------------------------------------------------------------------------------------------------


def _add_fit(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to fit on")
    add_model(group)
    _add_text(group, "(default: own)")
    group.add_argument("--tokens", type=many, default=100_000, metavar="N", help="of text (default: 100k)")
    _add_context(group)
    group.add_argument(
        "--held-out", type=_share, default=0.1, metavar="PORTION",
        help="of the text, kept apart to test on (default: 0.1)",
    )  # fmt: skip
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of text and order (default: 0)")
    group = parser.add_argument_group("the lens")
    group.add_argument(
        "--sites", nargs="+", metavar="SITE",
        help="names or patterns (default: embed and resid.*, but for the last one)",
    )  # fmt: skip
    group.add_argument(
        "--start", choices=("zero", "least-squares"), default="zero", metavar="NAME",
        help="zero, the logit lens (default); least-squares, the affine maps nearest to the last layer",
    )  # fmt: skip
    group.add_argument(
        "--loss", choices=("kl", "ce"), default="kl", metavar="NAME",
        help="kl, to the model's output (default); ce, cross-entropy of the next token",
    )  # fmt: skip
    group.add_argument(
        "--optimizer", choices=("sgd", "adam"), default="sgd", metavar="NAME",
        help="sgd, with Nesterov momentum as published (default); adam",
    )  # fmt: skip
    group.add_argument(
        "--lr",
        type=positive,
        metavar="X",
        help="learning rate (default: 1 of sgd, as published, 0.001 of adam)",
    )
    group.add_argument("--steps", type=many, default=250, metavar="N", help="(default: 250)")
    group.add_argument(
        "--batch-size", type=many, default=1024, metavar="N", help="tokens of a step (default: 1024)"
    )
    add_machine(parser, batch_size=False)
    add_results(parser, "results/lens-MODEL")


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lens", metavar="LENS", help="a folder, or the word `logit`")
    parser.add_argument("prompt", metavar="PROMPT", help="text to read, in quotes")
    _add_model(parser)
    group = parser.add_argument_group("what is shown")
    group.add_argument(
        "--statistic", choices=STATISTICS, default="entropy", metavar="NAME",
        help=f"the colour: {', '.join(STATISTICS)} (default: entropy)",
    )  # fmt: skip
    group.add_argument("--sites", nargs="+", metavar="SITE", help="only these: names or patterns")
    group.add_argument(
        "--positions", type=_positions, metavar="A:B", help="only these tokens: 0:20; =-20: are the last"
    )
    group.add_argument("--top-k", type=count, default=5, metavar="N", help="tokens of a cell (default: 5)")
    add_machine(parser, batch_size=False)
    group = parser.add_argument_group("results")
    group.add_argument("--out", metavar="FOLDER", help="where to (default: LENS, or results/lens-logit)")
    group.add_argument("--format", choices=("svg", "png", "pdf"), default="svg", help="(default: svg)")
    group.add_argument("--html", action="store_true", help="write a page that shows more of every cell, too")
    add_report(group)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lenses", nargs="+", metavar="LENS", help="folders; the logit lens is always there")
    _add_model(parser)
    group = parser.add_argument_group("on what")
    _add_text(group, "(default: that of the first lens)")
    group.add_argument("--tokens", type=many, default=16_384, metavar="N", help="of text (default: 16,384)")
    _add_context(group)
    group.add_argument(
        "--seed", type=natural, default=1, metavar="N", help="of the model's own text (default: 1)"
    )
    group.add_argument("--transfer", action="store_true", help="read every site with every site's map, too")
    add_machine(parser, batch_size=False)
    group = parser.add_argument_group("results")
    group.add_argument("--out", metavar="FOLDER", help="where to (default: the first LENS)")
    add_report(group)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="(default: the one that the lens is of; for logit, embedded)")


def _add_text(group: Any, default: str) -> None:
    group.add_argument(
        "--text", metavar="SOURCE",
        help=f"a text file, a dataset of the hub, or `own`: what the model itself writes {default}",
    )  # fmt: skip


def _add_context(group: Any) -> None:
    group.add_argument(
        "--context", type=count, metavar="N",
        help="tokens of a row (default: 128, or as many as the model takes)",
    )  # fmt: skip


def _share(text: str) -> float:
    value = portion(text)
    if not value:
        raise argparse.ArgumentTypeError("0 leaves nothing to test on; 0.1 or 10% would do")
    return value


def _positions(text: str) -> slice:
    found = re.fullmatch(r"(-?\d+)?:(-?\d+)?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of tokens such as 0:20, or -20: for the last")
    return slice(*(None if part is None else int(part) for part in found.groups()))
