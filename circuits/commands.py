"""The commands that make and test circuits, as the command line gives them; the work is the library's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .annotations import texts
from .attribution import (
    Method,
    attribution_patching,
    input_integrated_gradients,
    integrated_gradients,
    midpoint,
)
from .circuit_folder import advised, discard, fingerprints, read_settings, stem, written_in
from .curves import plot_curve
from .discovery import find as circuit_of
from .evaluation import Curve
from .files import writable
from .graph import Circuit
from .question import Question, Say, asked_for, part
from .record import Clock, interruptible, whole, write_json
from .selection import Keep, above, share, top
from .trial import Trial, conclude, tested

METHODS: Mapping[str, Any] = {
    "attribution-patching": attribution_patching,
    "integrated-gradients": integrated_gradients,
    "input-integrated-gradients": input_integrated_gradients,
}


@dataclass(frozen=True)
class Search:
    """How a circuit is found."""

    node: str = "100"
    edge: str = "1000"
    method: str = "integrated-gradients"
    steps: int | None = None
    per_position: bool = False


def find(
    question: Question,
    search: Search,
    trial: Trial,
    *,
    out: str | None,
    annotations: str | None,
    pictures: bool,
    fresh: bool,
    keep_checkpoint: bool,
    progress: bool | None,
    command: str,
    say: Say,
) -> None:
    """Finds a circuit, tests it, draws it, and writes everything into a folder."""
    clock = Clock()
    method, question = _method(search), question.resolved()
    texts(annotations)  # a mistake in the file should show now, not at the end
    folder = writable(out or Path("results") / stem(question.task))
    before = read_settings(folder).get("find", {}).get("options", {})
    asks = ("model", "dictionaries", "task")
    others = " and ".join(name for name in asks if before.get(name) != getattr(question, name))
    if before and others and not fresh:
        raise ValueError(
            f"{folder} holds a circuit of another {others}; give --out, or --fresh to replace it."
        )
    checkpoint = folder / "checkpoint"
    done = len(list(checkpoint.glob("effects-*.safetensors")))
    if fresh or not done:
        discard(checkpoint)
        done = 0
    asked = asked_for(question, say)
    clock.lap("loading")
    say(f"\nFinding the circuit{f'; {done} batches are in {checkpoint}' if done else ''} ...")
    with interruptible(f"The same command goes on from {checkpoint}."), advised(checkpoint):
        circuit = circuit_of(
            asked.model,
            asked.first,
            asked.dictionaries,
            node=_keep(search.node),
            edge=None if search.edge == "none" else _keep(search.edge),
            method=method,
            per_position=search.per_position,
            batch_size=question.batch_size,
            checkpoint=checkpoint,
            progress=progress,
        )
    clock.lap("finding")
    options = {**asdict(question), **asdict(search), **asdict(trial), "annotations": whole(annotations)}
    record = {"command": command, "options": options, "fingerprints": fingerprints(circuit)}
    for stale in written_in(folder):
        stale.unlink()
    circuit.save(folder)
    write_json(folder / "settings.json", {"find": {**record, **clock.record()}})
    say(f"\n{circuit.summary(most=12)}\n")
    with interruptible(f"The circuit is in {folder}; `circuits evaluate {folder}` tests it."):
        curve = tested(asked, circuit, question, trial, folder, pictures, progress, say)
        clock.lap("testing")
        if pictures:
            _draw(circuit, folder / "circuit.svg", annotations)
            clock.lap("drawing")
    if not keep_checkpoint:
        discard(checkpoint)
    write_json(folder / "settings.json", {"find": {**record, **clock.record()}})
    conclude(curve, written_in(folder), clock, say)


def evaluate(
    folder: str,
    given: Mapping[str, Any],
    *,
    out: str | None,
    pictures: bool,
    progress: bool | None,
    command: str,
    say: Say,
) -> None:
    """Tests a saved circuit, by default as `find` did; `given` are the options to be different."""
    clock = Clock()
    circuit = Circuit.load(folder)
    source, target = Path(folder), writable(out or folder)
    read_settings(target)
    options = {**read_settings(source).get("find", {}).get("options", {})}
    if not options:
        say(f"{source} has no settings.json of `circuits find`; the defaults are taken.")
    options.pop("device", None)
    if given.get("task"):
        options |= {"examples": None, "metric": None}
    if any(given.get(name) is not None for name in ("task", "examples", "seed")):
        options |= {"held_out": 0.0}  # other pairs: they did not all serve to find this circuit
    options |= {name: value for name, value in given.items() if value is not None}
    question, trial = part(Question, options).resolved(), part(Trial, options)
    asked = asked_for(question, say, found=circuit)
    clock.lap("loading")
    say("")
    with interruptible("Nothing was written."):
        curve = tested(asked, circuit, question, trial, target, pictures, progress, say)
    clock.lap("testing")
    record = {"options": {**asdict(question), **asdict(trial)}, **clock.record()}
    record = {"command": command, "circuit": whole(folder), **record}
    write_json(target / "settings.json", {**read_settings(target), "evaluate": record})
    names = ("evaluation.json", "curve.json", "settings.json", *(["curve.svg"] if pictures else []))
    conclude(curve, [target / name for name in names], clock, say)


def draw(
    folder: str,
    *,
    nodes: str | None,
    edges: str | None,
    annotations: str | None,
    format: str,
    out: str | None,
    command: str,
    say: Say,
) -> None:
    """Draws a saved circuit, and its curve where there is one; needs no model."""
    clock = Clock()
    source, target = Path(folder), Path(out or folder)
    circuit = Circuit.load(source)
    smaller = circuit.kept(
        node=None if nodes is None else _keep(nodes),
        edge=None if edges is None else top(0) if edges == "none" else _keep(edges),
    )
    if not len(smaller):
        raise ValueError(f"--nodes {nodes} leaves none of the {len(circuit)} nodes.")
    if target.is_dir() or not target.suffix:
        target = target / f"circuit.{format}"
    saved = read_settings(source).get("find", {}).get("options", {}).get("annotations")
    annotations = annotations or (saved if saved and Path(saved).exists() else None)
    limits = {"most": len(smaller)} if nodes else {}
    limits |= {"most_edges": smaller.edges.shape[1]} if edges else {}
    written = _draw(smaller, target, annotations, **limits)
    if out is None and (source / "curve.json").exists():
        written.append(plot_curve(Curve.load(source / "curve.json"), source / f"curve.{format}"))
    options = {"nodes": nodes, "edges": edges, "annotations": whole(annotations), "format": format}
    if target.parent.resolve() == source.resolve():
        record = {"command": command, "options": options, **clock.record()}
        write_json(source / "settings.json", {**read_settings(source), "draw": record})
    say(f"{smaller!r}, of {len(circuit)} nodes and {circuit.edges.shape[1]} edges")
    for path in written:
        say(f"  {path}")


def _draw(circuit: Circuit, path: Path, annotations: str | None, **limits: Any) -> list[Path]:
    from .drawing import draw

    return draw(circuit, path, annotations=annotations, **limits)


def _keep(rule: str) -> Keep:
    if rule.endswith("%"):
        return share(float(rule[:-1]) / 100)
    return top(int(rule)) if rule.isdigit() else above(float(rule))


def _method(search: Search) -> Method:
    method = METHODS[search.method]
    if search.steps is None:
        return method
    if method is attribution_patching:
        raise ValueError("--steps are those of an integral, and attribution patching has none.")
    return partial(method, rule=midpoint(search.steps))
