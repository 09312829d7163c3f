"""The command `circuits evaluate-dictionary probing` and its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .options import add_machine, add_report, count, natural, portion, silent

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
    group.add_argument(
        "--model", default="embedded",
        help="a name on the Hugging Face hub, a folder, or a .gguf file (default: embedded, the shipped one)",
    )  # fmt: skip
    group.add_argument(
        "--dictionaries", default="embedded", metavar="PATH_OR_REPO",
        help="a folder or a repository of the hub (default: embedded, the shipped ones)",
    )  # fmt: skip
    group.add_argument(
        "--site", "--sites", dest="site", nargs="+", metavar="SITE",
        help="only these: names or patterns, such as 'resid.*'",
    )  # fmt: skip
    _add_texts(parser)
    _add_trials(parser)
    add_machine(parser)
    group = parser.add_argument_group("results")
    group.add_argument("--out", metavar="FOLDER", help="where to (default: results/probing-DATA)")
    group.add_argument("--fresh", action="store_true", help="begin anew, whatever is in OUT")
    add_report(group)


def _add_texts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the texts")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--train", metavar="FILE", help="texts with labels")
    source.add_argument(
        "--biographies",
        type=count,
        metavar="N",
        help="written by rules: profession and gender (default: 300)",
    )
    source.add_argument(
        "--bias-in-bios", action="store_true", help="published ones, from the hub (needs `datasets`)"
    )
    group.add_argument("--each", type=count, metavar="N", help="published ones of each pair of labels")
    group.add_argument("--test", metavar="FILE", help="texts to test on (default: a part of --train)")
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
