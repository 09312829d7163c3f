"""The commands `circuits steer ...` and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .options import (
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

METHODS = ("mean-difference", "pca", "paired-pca", "centred-pca", "lda", "logistic", "linear")
MEASURES = ("preference", "matching", "divergence", "keywords", "refusal", "fluency")

_ABOUT = """examples:
  circuits steer extract                            several against one, in the shipped model
  circuits steer sweep results/steering-plural_singular
  circuits steer evaluate results/steering-plural_singular
  circuits steer apply results/steering-plural_singular 'The boy near the cars'

`circuits steer COMMAND --help` says more."""
_EXTRACT = """examples:
  circuits steer extract
  circuits steer extract --model ./my-model --pairs sentiment --method lda --bootstrap 200
  circuits steer extract --model ./my-model --pairs generate_dataset.json --chat --sites 'resid.1?'
  circuits steer extract --model ./my-mamba --pairs pairs.jsonl --state

Pairs are lines of {"positive": ..., "negative": ...}, the lines of a task, a file as Contrastive
Activation Addition published them, or a built-in set: plural_singular, happy_sad, girl_boy, sentiment,
english_french, harmful_harmless, sycophancy. A scale of 1 is the distance between the means of the
two sides."""
_APPLY = """examples:
  circuits steer apply results/steering-plural_singular 'The boy near the cars' --explain
  circuits steer apply FOLDER 'Once upon a time' --scale 4 --sites resid.3 --sample --temperature 0.8
  circuits steer apply FOLDER 'How are you?' --chat --prompt-tokens last --keep-norm
  circuits steer apply FOLDER --scale 3 --export-gguf vector.gguf

Tokens are all, none, last, 3, 0,2, 0:5, or after:TEXT, before:TEXT, within:TEXT, end-of:TEXT,
matching:WORD. Without --sites, one site is steered at: that which `sweep` or else `extract` recommends."""
_SWEEP = """examples:
  circuits steer sweep results/steering-plural_singular
  circuits steer sweep FOLDER --multipliers 1 2 4 8 --sites 'resid.*'
  circuits steer sweep FOLDER --questions prompts.txt --answers ' happy' --foils ' sad'

Every site is steered at by itself. It is measured on one half of the questions, so that `evaluate`
has the other half to test on. An interrupted run goes on when the same command is given again."""
_EVALUATE = """examples:
  circuits steer evaluate results/steering-plural_singular
  circuits steer evaluate FOLDER --measure matching divergence --questions test_dataset_ab.json
  circuits steer evaluate FOLDER --measure keywords fluency --keywords 'happ*' joy --random 5

Measures: preference, log-odds of answers over foils; matching, the odds of the lettered answer that
matches, and of neither; divergence, KL from the unsteered model; and of what the model writes:
keywords, how many; refusal, whether; fluency, surprise of the unsteered model and different word pairs.
Controls: the unsteered model, random directions of the same norm, and an instruction in the prompt."""

Say = Callable[[str], None]


def add_steering(commands: Any) -> None:
    """Adds the command `steer`, which has commands of its own."""
    about = "find directions that steer a model, and measure what they do"
    command = command_group(commands, "steer", about, _ABOUT)
    _add_extract(command("extract", _RUN["extract"], "find a direction in pairs of texts", _EXTRACT))
    _add_apply(command("apply", _RUN["apply"], "continue prompts, unsteered and steered", _APPLY))
    _add_trial(command("sweep", _RUN["sweep"], "measure every site and strength", _SWEEP), sweep=True)
    _add_trial(
        command(
            "evaluate",
            _RUN["evaluate"],
            "measure the effect of every strength beside its controls",
            _EVALUATE,
        )
    )


# --- running ------------------------------------------------------------------------------------------------


def _extract(args: argparse.Namespace, say: Say) -> None:
    from . import steering_commands as steering
    from .question import part

    steering.extract(
        part(steering.Extraction, vars(args)),
        out=args.out,
        pictures=args.draw,
        progress=False if args.quiet else None,
        command=args.line,
        say=silent if args.quiet else say,
    )


def _apply(args: argparse.Namespace, say: Say) -> None:
    from . import steering_apply as steering
    from .question import part

    steering.apply(
        part(steering.Application, vars(args)),
        args.prompts,
        out=args.out,
        quiet=args.quiet,
        command=args.line,
        say=silent if args.quiet else say,
    )


def _sweep(args: argparse.Namespace, say: Say) -> None:
    _tried(args, say, "sweep")


def _evaluate(args: argparse.Namespace, say: Say) -> None:
    _tried(args, say, "evaluate")


def _tried(args: argparse.Namespace, say: Say, name: str) -> None:
    from . import steering_trials as trials
    from .question import part
    from .steering_measures import Trial

    getattr(trials, name)(
        part(Trial, vars(args)),
        out=args.out,
        fresh=args.fresh,
        pictures=args.draw,
        progress=False if args.quiet else None,
        command=args.line,
        say=silent if args.quiet else say,
    )


_RUN = {"extract": _extract, "apply": _apply, "sweep": _sweep, "evaluate": _evaluate}


# --- options ------------------------------------------------------------------------------------------------


def _add_extract(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what differs")
    add_model(group)
    group.add_argument(
        "--pairs", default="plural_singular", metavar="SOURCE",
        help="a built-in set, or a file (default: plural_singular)",
    )  # fmt: skip
    group.add_argument("-n", "--examples", type=count, metavar="N", help="pairs (default: all, or 60)")
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of pairs and draws (default: 0)")
    group.add_argument("--chat", action="store_true", help="put the texts into the model's chat template")
    group = parser.add_argument_group("the direction")
    group.add_argument(
        "--sites", nargs="+", default=["resid.*"], metavar="SITE",
        help="names or patterns (default: 'resid.*')",
    )  # fmt: skip
    group.add_argument(
        "--method", choices=METHODS, default="mean-difference", metavar="NAME",
        help=f"{', '.join(METHODS)} (default: mean-difference)",
    )  # fmt: skip
    group.add_argument(
        "--tokens", metavar="WORD",
        help="that are read: last, answer-letter, differing, every, after:TEXT, within:TEXT, position:-2 "
        "(default: last; of lettered answers, answer-letter)",
    )  # fmt: skip
    group.add_argument(
        "--bootstrap", type=natural, default=100, metavar="N", help="draws of the pairs anew (default: 100)"
    )
    group.add_argument(
        "--shuffled", type=natural, metavar="SEED", help="exchange every other pair: a control"
    )
    group.add_argument(
        "--state", action="store_true", help="the difference of recurrent states, in place of activations"
    )
    add_machine(parser)
    group = parser.add_argument_group("results")
    group.add_argument("--out", metavar="FOLDER", help="where to (default: results/steering-PAIRS)")
    add_report(group)


def _add_apply(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    prompts = parser.add_argument("prompts", nargs="+", default=(), metavar="PROMPT", help="to be continued")
    prompts.required = False  # unlike with nargs="*", they may stand after options
    _add_change(parser, scale=True)
    group = parser.add_argument_group("writing")
    group.add_argument("--max-new-tokens", type=count, default=40, metavar="N",
                       help="to write (default: 40)")  # fmt: skip
    group.add_argument("--sample", action="store_true", help="draw tokens, not the most probable one")
    group.add_argument("--temperature", type=positive, metavar="X", help="of what is drawn (default: 1)")
    group.add_argument("--top-k", type=count, metavar="N", help="draw from the N most probable")
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="of what is drawn (default: 0)")
    group.add_argument("--chat", action="store_true", default=None,
                       help="put the prompts into the chat template (default: as for the pairs)")  # fmt: skip
    group.add_argument("--explain", action="store_true", help="show first which tokens are changed")
    group.add_argument(
        "--random-control", type=natural, metavar="SEED", help="a random direction of the same norm as well"
    )
    add_machine(parser, batch_size=False)
    group = parser.add_argument_group("results")
    group.add_argument("--out", metavar="FILE", help="write the texts, .json")
    group.add_argument("--export-gguf", metavar="FILE", help="write a control vector for llama.cpp")
    add_report(group, pictures=False)


def _add_trial(parser: argparse.ArgumentParser, *, sweep: bool = False) -> None:
    _add_folder(parser)
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--measure", nargs="+", choices=MEASURES, metavar="NAME",
        help=f"{', '.join(MEASURES)} (default: that of the questions, and divergence)",
    )  # fmt: skip
    group.add_argument(
        "--questions", metavar="SOURCE",
        help="a built-in set, a task, CAA's lettered questions, or a text with a prompt on every line "
        "(default: those of the pairs)",
    )  # fmt: skip
    group.add_argument(
        "--answers", nargs="+", metavar="TEXT", help="preferred after every prompt, with a space"
    )
    group.add_argument("--foils", nargs="+", metavar="TEXT", help="what they are compared with")
    group.add_argument("--keywords", nargs="+", metavar="WORD", help="that are counted: joy, or happ*")
    group.add_argument("-n", "--examples", type=count, metavar="N", help="questions (default: all)")
    group.add_argument("--chat", action="store_true", default=None,
                       help="put the prompts into the chat template (default: as for the pairs)")  # fmt: skip
    group.add_argument("--max-new-tokens", type=count, default=24, metavar="N",
                       help="to write, for measures of texts (default: 24)")  # fmt: skip
    multipliers = (-2.0, -1.0, 1.0, 2.0) if sweep else (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
    shown = " ".join(f"{m:g}" for m in multipliers)
    group.add_argument(
        "--multipliers", nargs="+", type=float, default=multipliers, metavar="X",
        help=f"of the direction (default: {shown})",
    )  # fmt: skip
    group.add_argument(
        "--random", type=natural, default=1 if sweep else 3, metavar="N",
        help=f"directions as a control (default: {1 if sweep else 3})",
    )  # fmt: skip
    if not sweep:
        group.add_argument(
            "--instruction", metavar="TEXT",
            help="put before every prompt as a control; '' for none (default: that of the questions)",
        )  # fmt: skip
    _add_change(parser)
    add_machine(parser)
    add_results(parser, "FOLDER")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="what `circuits steer extract` wrote")
    parser.add_argument("--model", help="(default: the one that the direction was found in)")


def _add_change(parser: argparse.ArgumentParser, *, scale: bool = False) -> None:
    group = parser.add_argument_group("the change")
    group.add_argument("--sites", nargs="+", metavar="SITE", help="names or patterns (default: the best one)")
    if scale:
        group.add_argument("--scale", type=float, default=1.0, metavar="X", help="(default: 1)")
        group.add_argument("--project-out", action="store_true", help="take the direction out, add nothing")
    group.add_argument(
        "--prompt-tokens", default="all", metavar="WORD", help="that are changed (default: all)"
    )
    group.add_argument(
        "--generation-tokens", default="all", metavar="WORD", help="of those written (default: all)"
    )
    group.add_argument("--keep-norm", action="store_true", help="turn activations, and keep their norm")
