"""The command `circuits evaluate-dictionary probing` and its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .labelled_options import add_some_sites, add_source
from .options import add_machine, add_model, add_results, count, natural, portion, silent

REGIMES = ("normal", "scarcity", "imbalance", "noise", "shift")

_PROBING = """examples:
  circuits evaluate-dictionary probing --model ./my-model --dictionaries ./my-saes --biographies 400
  circuits evaluate-dictionary probing --train train.csv --test test.csv --label topic --text-column body
  circuits evaluate-dictionary probing --bias-in-bios --each 500 --regime normal scarcity noise --pool last
  circuits evaluate-dictionary probing --train a.jsonl --shifted b.jsonl c.jsonl --regime normal shift

Texts are CSV (with a line of names on top) or JSON lines. Every class is told from all others. Probes of
the K features in which the classes differ most stand beside dense baselines: logistic regression, PCA,
nearest neighbours, difference of means, a perceptron, and boosted trees where scikit-learn is installed.
Of each kind the best is chosen by validation on training texts, and compared on test texts (quiver of
arrows, Kantamneni et al. 2025). Regimes: scarcity, few texts; imbalance, one class rare; noise, wrong
labels; shift, test texts of another kind.

What is done is kept in OUT: an interrupted run goes on where it stopped when the same command is given
again."""

Say = Callable[[str], None]


def add_probing(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command `probing` to those of a group."""
    parser = command("probing", _probing, "probe few features beside strong dense baselines", _PROBING)
    group = parser.add_argument_group("the dictionaries")
    add_model(group)
    group.add_argument(
        "--dictionaries", default="embedded", metavar="PATH_OR_REPO",
        help="a folder or a repository of the hub (default: embedded, the shipped ones)",
    )  # fmt: skip
    add_some_sites(group)
    _add_texts(parser)
    _add_trials(parser)
    add_machine(parser)
    add_results(parser, "results/probing-DATA")


def _add_texts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the texts")
    add_source(group, "written by rules: profession and gender (default: 300)")
    group.add_argument(
        "--held-out", type=portion, default=0.4, metavar="PORTION",
        help="of the texts, to test on where there is no --test (default: 0.4)",
    )  # fmt: skip
    group.add_argument(
        "--shifted", nargs="+", metavar="FILE", help="texts of other kinds, for the regime `shift`"
    )
    group.add_argument("--text-column", default="text", metavar="NAME", help="(default: text)")
    group.add_argument(
        "--label", dest="labels", nargs="+", metavar="NAME",
        help="columns of labels, each probed (default: label, and spurious where there is one)",
    )  # fmt: skip
    group.add_argument(
        "--pool", choices=("mean", "last"), default="mean",
        help="mean over the tokens of a text, or its last one (default: mean)",
    )  # fmt: skip


def _add_trials(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the probes")
    group.add_argument(
        "--k", nargs="+", type=count, default=[1, 2, 4, 8, 16, 32, 64, 128], metavar="N",
        help="features of a probe (default: 1 2 4 8 16 32 64 128)",
    )  # fmt: skip
    group.add_argument(
        "--rule", choices=("sae-probes", "saebench"), default="sae-probes", metavar="NAME",
        help="sae-probes: features by mean difference over their mean where active, L1 with "
        "cross-validation; saebench: by mean difference, L2 of penalty 1 (default: sae-probes)",
    )  # fmt: skip
    group.add_argument(
        "--trees", type=natural, default=4, metavar="N", help="settings of trees to try, or 0 (default: 4)"
    )
    group.add_argument(
        "--regime", nargs="+", choices=REGIMES, default=["normal"], metavar="NAME",
        help=f"{', '.join(REGIMES)} (default: normal)",
    )  # fmt: skip
    group.add_argument(
        "--points", type=count, default=6, metavar="N",
        help="numbers of texts, ratios or shares of a regime (default: 6)",
    )  # fmt: skip
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of texts and draws (default: 0)")


def _probing(args: argparse.Namespace, say: Say) -> None:
    from . import sparse_probing_commands as probing
    from .question import part

    probing.probe(
        part(probing.Probing, vars(args)),
        out=args.out,
        fresh=args.fresh,
        pictures=args.draw,
        progress=False if args.quiet else None,
        command=args.line,
        say=silent if args.quiet else say,
    )
