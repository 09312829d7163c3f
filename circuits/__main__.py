"""The command line, `circuits` or `python -m circuits`: options, help, and what becomes of errors."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

_ABOUT = "Find the features inside a language model that cause a behaviour, and test whether they do."
_EXAMPLES = """examples:
  circuits find                     a circuit of the small model that is shipped
  circuits find --task agreement_across_rc --node 50
  circuits find --model EleutherAI/pythia-70m-deduped --task my_task.jsonl
  circuits evaluate results/agreement_across_rc --ablation zero
  circuits draw results/agreement_across_rc --nodes 30 --format pdf
  circuits tasks pronouns --model openai-community/gpt2
  circuits models openai-community/gpt2

`circuits COMMAND --help` says more."""
_FIND = """examples:
  circuits find                     everything that is shipped: model, dictionaries, task
  circuits find --dictionaries neurons --sites 'mlp.*' --node 50
  circuits find --model ./my-model --dictionaries ./my-saes --task my_task.jsonl
  circuits find --per-position --edge 1%

--node and --edge take 100 (the 100 largest), 0.1 (all above 0.1, in units of the
metric), or 90% (the fewest that make up 90% of the total). --edge none leaves edges out.

What is done is kept in OUT/checkpoint until the circuit is tested: an interrupted run
goes on where it stopped when the same command is given again."""
_EVALUATE = """The options are those that `circuits find` left in FOLDER/settings.json, and the pairs
are those that it held out. What is given here takes their place.

examples:
  circuits evaluate results/agreement_across_rc
  circuits evaluate results/agreement_across_rc --task agreement_simple --out results/other"""
_DRAW = """examples:
  circuits draw results/agreement_across_rc --nodes 30 --edges 60
  circuits draw results/agreement_across_rc --annotations names.json --format png

Annotations are a JSON object such as {"resid.1/120": "plural subject"}. No model is loaded."""
_TASKS = """examples:
  circuits tasks
  circuits tasks greater_than -n 20
  circuits tasks agreement_simple --model embedded -n 200"""
_METRICS = ("logit-difference", "log-probability", "probability", "probability-difference")
_MISTAKES = (ValueError, OSError, MemoryError)  # and LookupError, but none of its kinds: those are bugs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; gives the exit code, 0 where all went well and 2 for a mistake in what was asked."""
    # Threads that spin while they wait make a small model many times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    args.line = shlex.join(["circuits", *argv])
    try:
        with _notes():
            args.run(args, _say)
        return 0
    except KeyboardInterrupt as stop:
        return _fail(130, " ".join(["Interrupted.", *map(str, stop.args)]))
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        out_of_memory = type(error).__name__ == "OutOfMemoryError"
        mistake = isinstance(error, _MISTAKES) or type(error) is LookupError or out_of_memory
        if args.debug or not mistake:
            print(_plain(traceback.format_exc()), file=sys.stderr, end="")
        if out_of_memory:
            return _fail(2, "Out of memory: try a smaller --batch-size.")
        text = re.sub(r"\bbatch_size=", "--batch-size ", " ".join(str(error).split()))
        return _fail(2 if mistake else 1, text or type(error).__name__)


def _fail(code: int, message: str) -> int:
    print(f"circuits: {'error: ' if code != 130 else ''}{_plain(message)}", file=sys.stderr)
    return code


def _say(text: str = "") -> None:
    text, encoding = _plain(text), sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


def _plain(text: str) -> str:
    """Text without characters that a terminal would obey: models and files could hold anything."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "�" for c in text)


@contextmanager
def _notes() -> Iterator[None]:
    """The library's warnings as single lines, each only once, and nobody else's."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            print(f"circuits: note: {_plain(' '.join(str(message).split()))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"(circuits|interventions|tasks)\b")
        warnings.showwarning = show
        yield


# --- commands -----------------------------------------------------------------------------------------------
# The library, and torch with it, is imported only when a command runs.


def _find(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    from . import commands

    given = vars(args)
    commands.find(
        commands.part(commands.Question, given),
        commands.part(commands.Search, given),
        commands.part(commands.Trial, given),
        out=args.out,
        annotations=args.annotations,
        pictures=args.draw,
        fresh=args.fresh,
        keep_checkpoint=args.keep_checkpoint,
        progress=False if args.quiet else None,
        command=args.line,
        say=_silent if args.quiet else say,
    )


def _evaluate(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    from . import commands

    commands.evaluate(
        args.folder,
        vars(args),
        out=args.out,
        pictures=args.draw,
        progress=False if args.quiet else None,
        command=args.line,
        say=_silent if args.quiet else say,
    )


def _draw(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    from . import commands

    commands.draw(
        args.folder,
        nodes=args.nodes,
        edges=args.edges,
        annotations=args.annotations,
        format=args.format,
        out=args.out,
        command=args.line,
        say=_silent if args.quiet else say,
    )


def _tasks(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    from . import question

    if args.task is None:
        return question.list_tasks(say=say)
    given = {name: value for name, value in vars(args).items() if value is not None}
    question.show_task(question.part(question.Question, given), measured="model" in given, say=say)


def _models(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    from . import question

    question.show_model(question.part(question.Question, vars(args)), say=say)


def _silent(_text: str = "") -> None:
    pass


# --- options ------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"circuits: error: {_plain(message)} (`{self.prog} --help` says what there is)\n")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=min(100, shutil.get_terminal_size().columns - 1))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="circuits", description=_ABOUT, epilog=_EXAMPLES, formatter_class=_Help, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"circuits {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    def command(name: str, run: Any, about: str, epilog: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=epilog,
            formatter_class=_Help, allow_abbrev=False,
        )  # fmt: skip
        added.set_defaults(run=run)
        return added

    find = command("find", _find, "find the circuit of a task, test it and draw it", _FIND)
    _add_question(find)
    _add_search(find)
    _add_trial(find)
    _add_machine(find)
    group = find.add_argument_group("results")
    group.add_argument("--out", metavar="FOLDER", help="where to (default: results/TASK)")
    group.add_argument("--annotations", metavar="FILE", help="texts to write on features, JSON")
    group.add_argument("--fresh", action="store_true", help="begin anew, whatever is in OUT/checkpoint")
    group.add_argument(
        "--keep-checkpoint", action="store_true", help="keep it, so that another --node or --edge is quick"
    )
    _add_report(group)

    evaluate = command("evaluate", _evaluate, "test a saved circuit", _EVALUATE)
    evaluate.add_argument("folder", metavar="FOLDER", help="what `circuits find` wrote")
    _add_question(evaluate)
    _add_trial(evaluate)
    _add_machine(evaluate)
    for action in evaluate._actions:
        if action.dest not in ("help", "folder"):  # what is not given is as it was
            action.default, action.help = None, re.sub(r" \(default[^)]*\)", "", action.help or "")
    group = evaluate.add_argument_group("results")
    group.add_argument("--out", metavar="FOLDER", help="where to (default: FOLDER)")
    _add_report(group)

    draw = command("draw", _draw, "draw a saved circuit", _DRAW)
    draw.add_argument("folder", metavar="FOLDER", help="what `circuits find` or `Circuit.save` wrote")
    draw.add_argument("--nodes", "--node", type=_rule, metavar="RULE", help="which nodes: 30, 0.1 or 90%%")
    draw.add_argument(
        "--edges", "--edge", type=_edge_rule, metavar="RULE", help="which edges: 60, 0.01, 50%% or none"
    )
    draw.add_argument("--annotations", metavar="FILE", help="texts to write on features, JSON")
    draw.add_argument("--format", choices=("svg", "png", "pdf"), default="svg", help="(default: svg)")
    draw.add_argument("--out", metavar="FILE", help="(default: FOLDER/circuit.FORMAT)")
    _add_report(draw, pictures=False)

    tasks = command("tasks", _tasks, "list the built-in tasks, or show one of them", _TASKS)
    tasks.add_argument("task", nargs="?", metavar="TASK", help="a built-in task, or a file")
    tasks.add_argument("--model", help="see how this model does on it; `embedded` is the shipped one")
    tasks.add_argument("--metric", choices=_METRICS, metavar="NAME", help=", ".join(_METRICS))
    tasks.add_argument(
        "-n", "--examples", type=_count, metavar="N", help="pairs (default: 5, or all of a file)"
    )
    tasks.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    _add_machine(tasks)
    _add_debug(tasks)

    models = command("models", _models, "say what a model is, and which sites it has")
    models.add_argument("model", nargs="?", default="embedded", help="as for find (default: embedded)")
    _add_machine(models, batch_size=False)
    _add_debug(models)
    return parser


def _add_question(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the question")
    group.add_argument(
        "--model", default="embedded",
        help="a name on the Hugging Face hub, a folder, or a .gguf file (default: embedded, the shipped one)",
    )  # fmt: skip
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
        "--metric", choices=_METRICS, metavar="NAME", help=f"{', '.join(_METRICS)} (default: the task's)"
    )
    group.add_argument(
        "-n", "--examples", type=_count, metavar="N", help="pairs of prompts (default: 100, or all of a file)"
    )
    group.add_argument(
        "--held-out", type=_portion, default=0.5, metavar="PORTION",
        help="of the pairs, kept apart to test on; 0 tests on those it was found on (default: 0.5)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the task (default: 0)")


def _add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the search")
    group.add_argument(
        "--node", "--nodes", type=_rule, default="100", metavar="RULE", help="nodes to keep (default: 100)"
    )
    group.add_argument(
        "--edge",
        "--edges",
        type=_edge_rule,
        default="1000",
        metavar="RULE",
        help="edges to keep (default: 1000)",
    )
    group.add_argument(
        "--method", choices=("integrated-gradients", "attribution-patching", "input-integrated-gradients"),
        default="integrated-gradients", metavar="NAME",
        help="integrated-gradients (default), attribution-patching (fastest), input-integrated-gradients",
    )  # fmt: skip
    group.add_argument("--steps", type=_count, metavar="N", help="of an integral (default: 6)")
    group.add_argument(
        "--per-position", action="store_true", help="nodes at each position, for prompts that are aligned"
    )


def _add_trial(parser: argparse.ArgumentParser) -> None:
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
        "--start-layer", type=_natural, default=0, metavar="N", help="leave earlier layers alone (default: 0)"
    )


def _add_machine(parser: argparse.ArgumentParser, *, batch_size: bool = True) -> None:
    group = parser.add_argument_group("the machine")
    if batch_size:
        group.add_argument(
            "--batch-size", type=_count, default=16, metavar="N", help="prompts at once (default: 16)"
        )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument(
        "--dtype", choices=("float32", "float64", "bfloat16", "float16"), metavar="NAME",
        help="float32, float64, bfloat16, float16 (default: as stored)",
    )  # fmt: skip


def _add_report(group: Any, *, pictures: bool = True) -> None:
    if pictures:
        group.add_argument("--no-draw", dest="draw", action="store_false", help="write no pictures")
    group.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    _add_debug(group)


def _add_debug(group: Any) -> None:
    group.add_argument("--debug", action="store_true", help="show where in the code an error arose")


def _rule(text: str) -> str:
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


def _edge_rule(text: str) -> str:
    return text if text == "none" else _rule(text)


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number 0, 1, 2, ...")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number 1, 2, 3, ...")
    return int(text)


def _portion(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a portion such as 0.3 or 30%")
    return value


def _version() -> str:
    try:
        return version("breadboard-circuits")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
