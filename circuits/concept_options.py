"""The commands `circuits evaluate-dictionary ...` and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .labelled_options import add_some_sites, add_source
from .options import (
    add_machine,
    add_model,
    add_results,
    command_group,
    count,
    natural,
    numbers,
    portion,
    silent,
)
from .sparse_probing_options import add_probing

PROBES = ("logistic", "selected", "trained")

_ABOUT = """examples:
  circuits evaluate-dictionary scr                  those shipped, on generated biographies
  circuits evaluate-dictionary tpp --train texts.csv --label topic
  circuits evaluate-dictionary scr --model ./my-model --dictionaries ./sae-4k ./sae-16k
  circuits evaluate-dictionary probing --biographies 300

`circuits evaluate-dictionary COMMAND --help` says more."""
_SCR = """examples:
  circuits evaluate-dictionary scr --model ./my-model --dictionaries ./sae --biographies 600
  circuits evaluate-dictionary scr --train texts.csv --label job --spurious gender --seeds 0,1,2
  circuits evaluate-dictionary scr --dictionaries ./k8 ./k32 ./k96 --site resid.11 --sizes 2,20,200

Spurious correlation removal (Karvonen et al. 2024): a probe is fitted where two labels go together.
The features of one label, found by attribution to a probe of that label alone, are ablated. The
score is how much of the way the probe then goes to one of the other label: 1 is all of it, 0 none.

Texts are files (CSV with a line of names on top, or JSON lines), biographies that are written by
rules, or published ones. Several dictionaries are scored in one pass of the model. What is done
stays in OUT: the same command goes on from there, and one with more dictionaries adds them."""
_TPP = """examples:
  circuits evaluate-dictionary tpp --model ./my-model --dictionaries ./sae --train topics.jsonl
  circuits evaluate-dictionary tpp --train train.csv --test test.csv --label topic --probe selected
  circuits evaluate-dictionary tpp --dictionaries ./k8 ./k32 ./k96 --site resid.11

Targeted probe perturbation (Karvonen et al. 2024): the features of each class, found by attribution
to its probe, are ablated. The score is how much accuracy that costs its own probe, in the mean over
classes, less what it costs those of the other classes.

Texts, dictionaries and what stays in OUT are as for `circuits evaluate-dictionary scr`."""

Say = Callable[[str], None]


def add_evaluate_dictionary(commands: Any) -> None:
    """Adds the command `evaluate-dictionary`, which has commands of its own."""
    about = "score dictionaries by what they know of labelled texts"
    command = command_group(commands, "evaluate-dictionary", about, _ABOUT)
    scr = command("scr", _scr, "score how features free a probe from a spurious label", _SCR)
    _add_all(scr, sets=_add_pairs)
    tpp = command("tpp", _tpp, "score how features of a class harm its probe alone", _TPP)
    _add_all(tpp, sets=_add_label)
    add_probing(command)


# --- running ------------------------------------------------------------------------------------------------


def _scr(args: argparse.Namespace, say: Say) -> None:
    from . import concept_commands as concepts

    _run(concepts.scr, args, say)


def _tpp(args: argparse.Namespace, say: Say) -> None:
    from . import concept_commands as concepts

    _run(concepts.tpp, args, say)


def _run(command: Callable[..., None], args: argparse.Namespace, say: Say) -> None:
    from .concept_commands import Evaluating
    from .question import part

    command(
        part(Evaluating, vars(args)),
        out=args.out,
        fresh=args.fresh,
        pictures=args.draw,
        progress=False if args.quiet else None,
        command=args.line,
        say=silent if args.quiet else say,
    )


# --- options ------------------------------------------------------------------------------------------------


def _add_all(parser: argparse.ArgumentParser, *, sets: Callable[[Any], None]) -> None:
    group = parser.add_argument_group("the dictionaries")
    add_model(group)
    group.add_argument(
        "--dictionaries", nargs="+", default=["embedded"], metavar="PATH_OR_REPO",
        help="one or several folders, or repositories of the hub (default: embedded, the shipped ones)",
    )  # fmt: skip
    add_some_sites(group)
    group = parser.add_argument_group("the texts")
    add_source(group, "written by rules, half of them to train on: profession and gender (default: 400)")
    group.add_argument(
        "--held-out", type=portion, default=0.3, metavar="PORTION",
        help="of --train, to test on where there is no --test (default: 0.3)",
    )  # fmt: skip
    group.add_argument("--text-column", default="text", metavar="NAME", help="(default: text)")
    sets(group)
    group.add_argument(
        "--context", type=count, default=128, metavar="N", help="tokens read of each text (default: 128)"
    )
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of the texts (default: 0)")
    group = parser.add_argument_group("the score")
    group.add_argument(
        "--sizes", type=numbers, default=(2, 5, 10, 20, 50, 100, 500), metavar="N,...",
        help="features ablated (default: 2,5,10,20,50,100,500)",
    )  # fmt: skip
    group.add_argument(
        "--probe", choices=PROBES, default="logistic", metavar="NAME",
        help="logistic (default); selected, its penalty chosen on held-out texts; trained, by minibatches "
        "as in SAEBench, its epoch chosen on held-out texts",
    )  # fmt: skip
    group.add_argument(
        "--seeds", type=numbers, default=(0,), metavar="N,...",
        help="draw the texts of the probes anew for each; the score is the mean (default: 0)",
    )  # fmt: skip
    add_machine(parser)
    add_results(parser, "results/SCORE-DATA")


def _add_label(group: Any) -> None:
    group.add_argument("--label", default="label", metavar="NAME", help="column of classes (default: label)")


def _add_pairs(group: Any) -> None:
    group.add_argument(
        "--label", default="label", metavar="NAME", help="column, of two values (default: label)"
    )
    group.add_argument(
        "--spurious", default="spurious", metavar="NAME",
        help="column of the other label, of two values too (default: spurious)",
    )  # fmt: skip
    group.add_argument(
        "--together", nargs=2, metavar="LABEL=SPURIOUS",
        help="which values the spurious probe tells apart, such as professor=male nurse=female (default: "
        "as is more frequent in the texts, or alphabetical)",
    )  # fmt: skip
