"""Options that several commands have, and the kinds of values that options take."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable
from typing import Any, NoReturn

from .terminal import plain

METRICS = ("logit-difference", "log-probability", "probability", "probability-difference")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"circuits: error: {plain(message)} (`{self.prog} --help` says what there is)\n")


class Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=min(100, shutil.get_terminal_size().columns - 1))
        self._action_max_length = 18  # argparse forgets that commands are indented


def adding(commands: Any) -> Callable[..., argparse.ArgumentParser]:
    """What adds a command to a parser's: called with its name, what runs it, what it is for, and examples."""

    def command(name: str, run: Any, about: str, epilog: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=epilog,
            formatter_class=Help, allow_abbrev=False,
        )  # fmt: skip
        added.set_defaults(run=run)
        return added

    return command


def command_group(
    commands: Any, name: str, about: str, epilog: str
) -> Callable[..., argparse.ArgumentParser]:
    """What adds commands to a new command that has commands of its own, and by itself says which."""
    group = adding(commands)(name, lambda _args, _say: group.print_help(), about, epilog)
    return adding(group.add_subparsers(metavar="COMMAND", title="commands"))


def silent(_text: str = "") -> None:
    """In place of what says something, where --quiet was asked for."""


def add_question(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the question")
    add_model(group)
    group.add_argument(
        "--dictionaries", metavar="FOLDER",
        help="sparse dictionaries, as interventions.dictionaries.save writes them; or the word `neurons` "
        "(default: embedded for the shipped model, else neurons)",
    )  # fmt: skip
    group.add_argument(
        "--sites", nargs="+", metavar="SITE", help="only these: names or patterns, such as 'resid.*' embed"
    )
    group.add_argument(
        "--task", default="agreement_across_rc",
        help="one that `circuits tasks` lists, or a .jsonl or .json file (default: agreement_across_rc)",
    )  # fmt: skip
    group.add_argument(
        "--metric", choices=METRICS, metavar="NAME", help=f"{', '.join(METRICS)} (default: the task's)"
    )
    group.add_argument(
        "-n", "--examples", type=count, metavar="N", help="pairs of prompts (default: 100, or all of a file)"
    )
    group.add_argument(
        "--held-out", type=portion, default=0.5, metavar="PORTION",
        help="of the pairs, kept apart to test on; 0 tests on those it was found on (default: 0.5)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the task (default: 0)")


def add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the search")
    group.add_argument(
        "--node", "--nodes", type=rule, default="100", metavar="RULE", help="nodes to keep (default: 100)"
    )
    group.add_argument(
        "--edge",
        "--edges",
        type=edge_rule,
        default="1000",
        metavar="RULE",
        help="edges to keep (default: 1000)",
    )
    group.add_argument(
        "--method", choices=("integrated-gradients", "attribution-patching", "input-integrated-gradients"),
        default="integrated-gradients", metavar="NAME",
        help="integrated-gradients (default), attribution-patching (fastest), input-integrated-gradients",
    )  # fmt: skip
    group.add_argument("--steps", type=count, metavar="N", help="of an integral (default: 6)")
    group.add_argument(
        "--per-position", action="store_true", help="nodes at each position, for prompts that are aligned"
    )


def add_trial(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the test")
    group.add_argument(
        "--ablation", choices=("mean", "zero", "resample"), default="mean", metavar="NAME",
        help="what takes the place of nodes outside: mean (default), zero, resample",
    )  # fmt: skip
    group.add_argument(
        "--errors", choices=("scored", "kept", "removed"), default="scored", metavar="NAME",
        help="error nodes inside: scored (default), those of the circuit; kept, all; removed, none",
    )  # fmt: skip
    group.add_argument(
        "--start-layer", type=natural, default=0, metavar="N", help="leave earlier layers alone (default: 0)"
    )


def add_model(group: Any) -> None:
    group.add_argument(
        "--model", default="embedded",
        help="a name on the Hugging Face hub, a folder, or a .gguf file (default: embedded, the shipped one)",
    )  # fmt: skip


def add_machine(parser: argparse.ArgumentParser, *, batch_size: bool = True) -> None:
    group = parser.add_argument_group("the machine")
    if batch_size:
        group.add_argument(
            "--batch-size", type=count, default=16, metavar="N", help="prompts at once (default: 16)"
        )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument(
        "--dtype", choices=("float32", "float64", "bfloat16", "float16"), metavar="NAME",
        help="float32, float64, bfloat16, float16 (default: as stored)",
    )  # fmt: skip


def add_results(parser: argparse.ArgumentParser, folder: str, *, pictures: bool = True) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--out", metavar="FOLDER", help=f"where to (default: {folder})")
    group.add_argument("--fresh", action="store_true", help="begin anew, whatever is in OUT")
    add_report(group, pictures=pictures)


def add_report(group: Any, *, pictures: bool = True) -> None:
    if pictures:
        group.add_argument("--no-draw", dest="draw", action="store_false", help="write no pictures")
    group.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    add_debug(group)


def add_debug(group: Any) -> None:
    group.add_argument("--debug", action="store_true", help="show where in the code an error arose")


# --- kinds of values ----------------------------------------------------------------------------------------


def rule(text: str) -> str:
    wrong = argparse.ArgumentTypeError(f"{text!r} is none of 100 (so many), 0.1 (above), 90% (a share)")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise wrong from None
    if text.endswith("%"):
        fine = 0 < value <= 100
    else:
        fine = value > 0 if text.isdigit() else 0 <= value < float("inf")
    if not fine:
        raise wrong
    return text


def edge_rule(text: str) -> str:
    return text if text == "none" else rule(text)


def natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number 0, 1, 2, ...")
    return int(text)


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number 1, 2, 3, ...")
    return int(text)


def portion(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a portion such as 0.3 or 30%")
    return value


def many(text: str) -> int:
    """A count that may end in k or M."""
    found = re.fullmatch(r"([\d_,]+|\d+\.\d+)([kKmM]?)", text)
    value = 0
    if found:
        number = float(re.sub("[_,]", "", found[1]) or 0)
        value = round(number * {"": 1, "k": 1_000, "m": 1_000_000}[found[2].lower()])
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 5000, 20k or 1M")
    return value


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} are not different numbers such as 0,1,2")
    return tuple(map(int, parts))
