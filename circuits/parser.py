"""The commands and their options. The library, and torch with it, is imported only when a command runs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from .concept_options import add_evaluate_dictionary
from .dictionary_options import add_dictionaries
from .lens_options import add_lens
from .options import (
    METRICS,
    Help,
    Parser,
    add_debug,
    add_machine,
    add_question,
    add_report,
    add_search,
    add_trial,
    adding,
    count,
    edge_rule,
    rule,
    silent,
)
from .shift_options import add_shift
from .steering_options import add_steering

_ABOUT = "Find the features inside a language model that cause a behaviour, and test whether they do."
_EXAMPLES = """examples:
  circuits find                     a circuit of the small model that is shipped
  circuits find --task agreement_across_rc --node 50
  circuits find --model EleutherAI/pythia-70m-deduped --task my_task.jsonl
  circuits evaluate results/agreement_across_rc --ablation zero
  circuits draw results/agreement_across_rc --nodes 30 --format pdf
  circuits tasks pronouns --model openai-community/gpt2
  circuits dictionaries inspect embedded
  circuits steer extract
  circuits lens fit
  circuits shift run --biographies 300 --model ./my-model --dictionaries ./my-saes
  circuits evaluate-dictionary scr
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


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="circuits", description=_ABOUT, epilog=_EXAMPLES, formatter_class=Help, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"circuits {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    command = adding(commands)

    find = command("find", _find, "find the circuit of a task, test it and draw it", _FIND)
    add_question(find)
    add_search(find)
    add_trial(find)
    add_machine(find)
    group = find.add_argument_group("results")
    group.add_argument("--out", metavar="FOLDER", help="where to (default: results/TASK)")
    group.add_argument("--annotations", metavar="FILE", help="texts to write on features, JSON")
    group.add_argument("--fresh", action="store_true", help="begin anew, whatever is in OUT/checkpoint")
    group.add_argument(
        "--keep-checkpoint", action="store_true", help="keep it, so that another --node or --edge is quick"
    )
    add_report(group)

    evaluate = command("evaluate", _evaluate, "test a saved circuit", _EVALUATE)
    evaluate.add_argument("folder", metavar="FOLDER", help="what `circuits find` wrote")
    add_question(evaluate)
    add_trial(evaluate)
    add_machine(evaluate)
    for action in evaluate._actions:
        if action.dest not in ("help", "folder"):  # what is not given is as it was
            action.default, action.help = None, re.sub(r" \(default[^)]*\)", "", action.help or "")
    group = evaluate.add_argument_group("results")
    group.add_argument("--out", metavar="FOLDER", help="where to (default: FOLDER)")
    add_report(group)

    draw = command("draw", _draw, "draw a saved circuit", _DRAW)
    draw.add_argument("folder", metavar="FOLDER", help="what `circuits find` or `Circuit.save` wrote")
    draw.add_argument("--nodes", "--node", type=rule, metavar="RULE", help="which nodes: 30, 0.1 or 90%%")
    draw.add_argument(
        "--edges", "--edge", type=edge_rule, metavar="RULE", help="which edges: 60, 0.01, 50%% or none"
    )
    draw.add_argument("--annotations", metavar="FILE", help="texts to write on features, JSON")
    draw.add_argument("--format", choices=("svg", "png", "pdf"), default="svg", help="(default: svg)")
    draw.add_argument("--out", metavar="FILE", help="(default: FOLDER/circuit.FORMAT)")
    add_report(draw, pictures=False)

    tasks = command("tasks", _tasks, "list the built-in tasks, or show one of them", _TASKS)
    tasks.add_argument("task", nargs="?", metavar="TASK", help="a built-in task, or a file")
    tasks.add_argument("--model", help="see how this model does on it; `embedded` is the shipped one")
    tasks.add_argument("--metric", choices=METRICS, metavar="NAME", help=", ".join(METRICS))
    tasks.add_argument(
        "-n", "--examples", type=count, metavar="N", help="pairs (default: 5, or all of a file)"
    )
    tasks.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    add_machine(tasks)
    add_debug(tasks)

    add_dictionaries(commands)
    add_steering(commands)
    add_lens(commands)
    add_shift(commands)
    add_evaluate_dictionary(commands)

    models = command("models", _models, "say what a model is, and which sites it has")
    models.add_argument("model", nargs="?", default="embedded", help="as for find (default: embedded)")
    add_machine(models, batch_size=False)
    add_debug(models)
    return parser


def _find(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    from . import commands, trial

    given = vars(args)
    commands.find(
        commands.part(commands.Question, given),
        commands.part(commands.Search, given),
        commands.part(trial.Trial, given),
        out=args.out,
        annotations=args.annotations,
        pictures=args.draw,
        fresh=args.fresh,
        keep_checkpoint=args.keep_checkpoint,
        progress=False if args.quiet else None,
        command=args.line,
        say=silent if args.quiet else say,
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
        say=silent if args.quiet else say,
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
        say=silent if args.quiet else say,
    )


def _tasks(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    from . import listings, question

    if args.task is None:
        return listings.list_tasks(say=say)
    given = {name: value for name, value in vars(args).items() if value is not None}
    listings.show_task(question.part(question.Question, given), measured="model" in given, say=say)


def _models(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    from . import listings, question

    listings.show_model(question.part(question.Question, vars(args)), say=say)


def _version() -> str:
    try:
        return version("breadboard-circuits")
    except PackageNotFoundError:
        return "(not installed)"
