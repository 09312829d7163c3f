"""Tasks and models, as the command line shows them."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from interventions.model import Model
from interventions.sites import Site
from tasks import TASKS, Pair, Task

from .annotations import visible
from .question import (
    Question,
    Say,
    check_task,
    described,
    ended,
    metric_name,
    model_of,
    opening,
    shown,
    signed,
    task_of,
)

_CAN_RESUME = {
    True: "yes: passes can start at any layer, which makes integrated gradients quicker",
    False: "no: every pass runs through all layers",
}
_CAN_PAD = {True: "yes: padding on the right changes nothing", False: "no: batches have one length"}
_FEW = 10  # prompts shown
_WIDE = 40  # characters of a prompt shown


def list_tasks(*, say: Say) -> None:
    """The built-in tasks, a line each."""
    width = max(map(len, TASKS))
    for name, make in TASKS.items():
        say(f"  {name:{width}}  {make(n=1).description}")
    say("\n`circuits tasks NAME` shows prompts, and with --model how a model does on them.")
    say("A task of your own is a file of JSON lines; docs/tasks.md says what is in it.")


def show_task(question: Question, *, measured: bool, say: Say) -> None:
    """Some prompts of a task and, where a model is `measured`, how it does on them."""
    check_task(question.task)
    if question.task in TASKS and question.examples is None:
        question = replace(question, examples=5)
    question = question.resolved()
    model = model_of(question) if measured else None
    task = task_of(question, model)
    say(f"{task.name}: {task.description}" if task.description else task.name)
    say(f"{len(task)} pairs, metric {metric_name(task)}\n")
    few = task.pairs[:_FEW]
    table = [("clean", "patch", "answer", "foil")]
    table += [tuple(map(shown, (pair.clean, pair.patch, pair.answers, pair.foils))) for pair in few]
    widths = [min(_WIDE, max(map(len, column))) for column in zip(*table, strict=True)]
    scores = ["metric", *(_alone(model, task, pair) for pair in few)]
    for row, score in zip(table, scores, strict=True):
        cells = (f"{ended(cell, width):{width}}" for cell, width in zip(row, widths, strict=True))
        say("  ".join([*cells, f"{score:>6}" if model else ""]).rstrip())
    if len(task) > _FEW:
        say(f"... and {len(task) - _FEW} more")
    if model is not None:
        with torch.no_grad():
            batches = task.batches(model.tokenizer, question.batch_size, model.device)
            metric = torch.cat([task.metric(model.logits(batch.clean), batch).double() for batch in batches])
        right = f"right on {(metric > 0).double().mean():.1%} (metric above 0), " if signed(task) else ""
        say(f"\n{described(model, question.model)}")
        say(f"{len(metric)} pairs: {right}mean {metric_name(task)} {metric.mean():.3f}")


def show_model(question: Question, *, say: Say) -> None:
    """What a model is, and the sites that it has."""
    question = question.resolved()
    model = model_of(question)
    config, tokenizer = getattr(model.module, "config", None), model.tokenizer
    kind = f" ({visible(config.model_type)})" if config is not None and hasattr(config, "model_type") else ""
    count = sum(p.numel() for p in model.module.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    opens = tokenizer.decode(list(opening(tokenizer))) if tokenizer and opening(tokenizer) else ""
    say(f"{described(model, question.model)}\n")
    say(f"  family       {type(model.module).__name__}{kind}")
    say(f"  parameters   {count:,}, {dtype}")
    says = f"{len(tokenizer):,} tokens" if tokenizer else "none"
    say(f"  tokenizer    {says}{f', opens a text with {visible(opens)}' if opens else ''}")
    say(f"  fingerprint  {model.fingerprint}")
    say(f"  resumes      {_CAN_RESUME[model.resumes]}")
    say(f"  pads         {_CAN_PAD[model.pads]}\n")
    kinds = list(dict.fromkeys(map(_kind, model.sites.values())))
    wide = max(len(name) for name, _, _ in kinds)
    say(f"  {'site':{wide}}  width  what flows there")
    for name, width, where in kinds:
        say(f"  {name:{wide}}  {width:5}  {where}")
    say(f"\n  * is a layer, 0 to {len(model.blocks) - 1}; --sites takes such names and patterns.")


def _kind(site: Site) -> tuple[str, int, str]:
    """What sites have in common in all layers: name with a star, width, and place with a star."""
    stem, _, layer = site.name.partition(".")
    path = site.path
    if layer.isdigit():
        stem, path = f"{stem}.*", re.sub(rf"\b{layer}\b", "*", path, count=1)
    return stem, site.width, f"what {'enters' if site.side == 'in' else 'leaves'} {path}"


def _alone(model: Model | None, task: Task, pair: Pair) -> str:
    """The metric of one pair."""
    if model is None:
        return ""
    try:
        (batch,) = replace(task, pairs=[pair]).batches(model.tokenizer, 1, model.device)
    except ValueError:
        return "unfit"
    with torch.no_grad():
        return f"{task.metric(model.logits(batch.clean), batch).item():+.3f}"
