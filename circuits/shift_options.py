"""The commands `circuits shift ...` and their options."""

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
    natural,
    positive,
    silent,
)

_ABOUT = """examples:
  circuits shift run --model ./my-model --dictionaries ./my-saes --at resid.11 --biographies 300
  circuits shift judge results/shift-biographies    say yourself what is spurious
  circuits shift report results/shift-biographies

A probe is trained on texts in which a spurious label goes with the label. The features that it uses
are ranked and judged; those judged spurious are ablated, and the probe is trained again without
them (SHIFT, Marks et al. 2024). It is tested where the two labels do not go together, beside what
else could have been done.

`circuits shift COMMAND --help` says more."""
_RUN = """examples:
  circuits shift run --model ./my-model --dictionaries ./my-saes --at resid.11 --biographies 300
  circuits shift run --train ambiguous.csv --test balanced.csv --known balanced_too.csv
  circuits shift run --bias-in-bios --each 500 --judge later

--train, --test and --known are CSV (with a line of names on top) or JSON lines with text, label and
spurious label. In --train a spurious label goes with each label; in --test and --known every label
comes with every spurious one. --known is for baselines that know the spurious label, and for the
judges `attribution` and `rule`.

Judges: attribution, what does as much for a probe of the spurious label as for the biased one;
rule, what correlates with the spurious label more than with the label; terminal, you; later, which
leaves it to `circuits shift judge`; or a file of verdicts, CSV or JSON lines with site, feature and
spurious (yes or no).

What is done stays in OUT: an interrupted run goes on where it stopped when the same command is
given again."""
_JUDGE = """examples:
  circuits shift judge results/shift-biographies
  circuits shift judge results/shift-biographies --by anna

Every verdict is on the disk as soon as it is given; the next time goes on after the last one. No
model is loaded. `circuits shift report` then ablates what was judged spurious."""
_REPORT = """examples:
  circuits shift report results/shift-biographies
  circuits shift report results/shift-biographies --verdicts mine.csv --draws 0
  circuits shift report results/seed-0 results/seed-1 results/seed-2 --out results/seeds

Of several folders, the reports that these have: the mean over them, with Student's interval."""

Say = Callable[[str], None]


def add_shift(commands: Any) -> None:
    """Adds the command `shift`, which has commands of its own."""
    about = "take what it should not use out of a classifier"
    command = command_group(commands, "shift", about, _ABOUT)
    _add_run(command("run", _run, "rank, judge and ablate what a biased probe uses", _RUN))
    _add_judge(command("judge", _judge, "judge features at the terminal", _JUDGE))
    _add_report(command("report", _report, "ablate what was judged spurious, and compare", _REPORT))


# --- running ------------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace, say: Say) -> None:
    from . import shift_commands as shift
    from .question import part

    shift.run(
        part(shift.Shifting, vars(args)),
        judge=args.judge,
        contexts=args.contexts,
        out=args.out,
        fresh=args.fresh,
        reporting=part(shift.Reporting, vars(args)),
        pictures=args.draw,
        progress=False if args.quiet else None,
        command=args.line,
        say=silent if args.quiet else say,
    )


def _judge(args: argparse.Namespace, say: Say) -> None:
    from . import shift_commands as shift

    shift.judge(args.folder, contexts=args.contexts, by=args.by, say=say)


def _report(args: argparse.Namespace, say: Say) -> None:
    from . import shift_commands as shift
    from .question import part

    shift.report(
        args.folders,
        part(shift.Reporting, vars(args)),
        model=args.model,
        verdicts=args.verdicts,
        device=args.device,
        dtype=args.dtype,
        batch_size=args.batch_size,
        out=args.out,
        pictures=args.draw,
        progress=False if args.quiet else None,
        command=args.line,
        say=silent if args.quiet else say,
    )


# --- options ------------------------------------------------------------------------------------------------


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the texts")
    group.add_argument("--train", metavar="FILE", help="in which a spurious label goes with each label")
    group.add_argument("--test", metavar="FILE", help="of every pair of labels")
    group.add_argument(
        "--known", metavar="FILE", help="others of every pair of labels, to train baselines on"
    )
    group.add_argument(
        "--text-column", default="text", metavar="NAME", help="the column of texts (default: text)"
    )
    group.add_argument("--label", default="label", metavar="NAME", help="of labels (default: label)")
    group.add_argument(
        "--spurious", default="spurious", metavar="NAME", help="of spurious labels (default: spurious)"
    )
    group.add_argument(
        "--biographies", type=count, metavar="N",
        help="in place of files: so many generated biographies in each set, professors and nurses",
    )  # fmt: skip
    group.add_argument(
        "--bias-in-bios", action="store_true", help="in place of files: published biographies, from the hub"
    )
    group.add_argument(
        "--each", type=count, default=500, metavar="N",
        help="published biographies of each pair of labels (default: 500)",
    )  # fmt: skip
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of texts and draws (default: 0)")
    group = parser.add_argument_group("the classifier")
    add_model(group)
    group.add_argument("--at", metavar="SITE", help="what the probe reads (default: resid.N, 2/3 of the way)")
    group.add_argument(
        "--l2", type=positive, default=1.0, metavar="X", help="penalty of the logistic probe (default: 1)"
    )
    group = parser.add_argument_group("the features")
    group.add_argument(
        "--dictionaries", metavar="FOLDER",
        help="sparse dictionaries, as interventions.dictionaries.save writes them; or the word `neurons` "
        "(default: embedded for the shipped model, else neurons)",
    )  # fmt: skip
    group.add_argument(
        "--sites", nargs="+", metavar="SITE",
        help="only these: names or patterns (default: all up to the probe's)",
    )  # fmt: skip
    group.add_argument(
        "--ranked", type=count, metavar="N",
        help="to judge (default: 100 where you judge, else 1000)",
    )  # fmt: skip
    group.add_argument(
        "--ranked-on", type=count, default=100, metavar="N",
        help="texts to work out effects on (default: 100, as in the paper)",
    )  # fmt: skip
    group.add_argument(
        "--judge", default="attribution", metavar="JUDGE",
        help="attribution (default), rule, terminal, later, or a FILE of verdicts",
    )  # fmt: skip
    _add_contexts(group)
    _add_comparison(parser)
    add_machine(parser)
    add_results(parser, "results/shift-TEXTS")


def _add_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="what `circuits shift run` wrote")
    _add_contexts(parser)
    parser.add_argument("--by", default="", metavar="NAME", help="who judges, to be written with verdicts")
    add_debug(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="what `circuits shift run` wrote")
    parser.add_argument("--model", help="(default: the folder's, should it lie elsewhere now)")
    parser.add_argument(
        "--verdicts", metavar="FILE", help="(default: those in FOLDER, by `run` or by `judge`)"
    )
    _add_comparison(parser)
    add_machine(parser)
    group = parser.add_argument_group("results")
    group.add_argument("--out", metavar="FOLDER", help="where to (default: FOLDER)")
    add_report(group)


def _add_contexts(group: Any) -> None:
    group.add_argument(
        "--contexts", type=count, default=5, metavar="N", help="shown at the terminal at first (default: 5)"
    )


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the comparison")
    group.add_argument(
        "--draws", type=natural, default=3, metavar="N", help="of random features, 0 for none (default: 3)"
    )
    group.add_argument(
        "--words", nargs="+", metavar="WORD",
        help="of a concept bottleneck (default: the paper's, of professors and nurses)",
    )  # fmt: skip
    group.add_argument(
        "--delete", metavar="FILE",
        help="words to delete from texts as a baseline, one a line (default: gendered ones, of biographies)",
    )  # fmt: skip
