"""The commands that make and test circuits, as the command line gives them; the work is the library's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from .curves import plot_curve
from .discovery import find as circuit_of
from .evaluation import (
    Curve,
    Errors,
    Evaluation,
    Score,
    mean_ablation,
    resample_ablation,
    zero_ablation,
)
from .files import read_json, writable
from .graph import Circuit
from .question import Asked, Question, Say, asked_for, metric_name, part, signed
from .record import Clock, interruptible, whole, write_json
from .selection import Keep, above, share, top

METHODS: Mapping[str, Any] = {
    "attribution-patching": attribution_patching,
    "integrated-gradients": integrated_gradients,
    "input-integrated-gradients": input_integrated_gradients,
}
ABLATIONS = {"mean": mean_ablation, "zero": zero_ablation, "resample": resample_ablation}
_INSTEAD = {"mean": "its mean", "zero": "the value 0", "resample": "its value on the patched prompt"}


@dataclass(frozen=True)
class Search:
    """How a circuit is found."""

    node: str = "100"
    edge: str = "1000"
    method: str = "integrated-gradients"
    steps: int | None = None
    per_position: bool = False


@dataclass(frozen=True)
class Trial:
    """How a circuit is tested."""

    ablation: str = "mean"
    errors: Errors = "scored"
    start_layer: int = 0


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
    folder = writable(out or Path("results") / _stem(question.task))
    before = _settings(folder).get("find", {}).get("options", {})
    asks = ("model", "dictionaries", "task")
    others = " and ".join(name for name in asks if before.get(name) != getattr(question, name))
    if before and others and not fresh:
        raise ValueError(
            f"{folder} holds a circuit of another {others}; give --out, or --fresh to replace it."
        )
    checkpoint = folder / "checkpoint"
    done = len(list(checkpoint.glob("effects-*.safetensors")))
    if fresh or not done:
        _discard(checkpoint)
        done = 0
    asked = asked_for(question, say)
    clock.lap("loading")
    say(f"\nFinding the circuit{f'; {done} batches are in {checkpoint}' if done else ''} ...")
    with interruptible(f"The same command goes on from {checkpoint}."), _advised(checkpoint):
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
    record = {"command": command, "options": options, "fingerprints": _fingerprints(circuit)}
    for stale in _written(folder):
        stale.unlink()
    circuit.save(folder)
    write_json(folder / "settings.json", {"find": {**record, **clock.record()}})
    say(f"\n{circuit.summary(most=12)}\n")
    with interruptible(f"The circuit is in {folder}; `circuits evaluate {folder}` tests it."):
        curve = _tested(asked, circuit, question, trial, folder, pictures, progress, say)
        clock.lap("testing")
        if pictures:
            _draw(circuit, folder / "circuit.svg", annotations)
            clock.lap("drawing")
    if not keep_checkpoint:
        _discard(checkpoint)
    write_json(folder / "settings.json", {"find": {**record, **clock.record()}})
    _conclude(curve, _written(folder), clock, say)


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
    _settings(target)
    options = {**_settings(source).get("find", {}).get("options", {})}
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
        curve = _tested(asked, circuit, question, trial, target, pictures, progress, say)
    clock.lap("testing")
    record = {"options": {**asdict(question), **asdict(trial)}, **clock.record()}
    record = {"command": command, "circuit": whole(folder), **record}
    write_json(target / "settings.json", {**_settings(target), "evaluate": record})
    names = ("evaluation.json", "curve.json", "settings.json", *(["curve.svg"] if pictures else []))
    _conclude(curve, [target / name for name in names], clock, say)


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
    saved = _settings(source).get("find", {}).get("options", {}).get("annotations")
    annotations = annotations or (saved if saved and Path(saved).exists() else None)
    limits = {"most": len(smaller)} if nodes else {}
    limits |= {"most_edges": smaller.edges.shape[1]} if edges else {}
    written = _draw(smaller, target, annotations, **limits)
    if out is None and (source / "curve.json").exists():
        written.append(plot_curve(Curve.load(source / "curve.json"), source / f"curve.{format}"))
    options = {"nodes": nodes, "edges": edges, "annotations": whole(annotations), "format": format}
    if target.parent.resolve() == source.resolve():
        record = {"command": command, "options": options, **clock.record()}
        write_json(source / "settings.json", {**_settings(source), "draw": record})
    say(f"{smaller!r}, of {len(circuit)} nodes and {circuit.edges.shape[1]} edges")
    for path in written:
        say(f"  {path}")


class _Watched(Evaluation):
    """An evaluation that moves a bar on with every circuit that it tests."""

    def __init__(self, *nouns: Any, bar: Any, **settings: Any):
        self._bar = bar
        super().__init__(*nouns, **settings)

    def metric(self, masks: Any) -> Any:
        values = super().metric(masks)
        self._bar.update()
        return values


def _tested(
    asked: Asked,
    circuit: Circuit,
    question: Question,
    trial: Trial,
    folder: Path,
    pictures: bool,
    progress: bool | None,
    say: Say,
) -> Curve:
    """Tests a circuit, says how it does, and writes evaluation.json, curve.json and curve.svg."""
    from tqdm import tqdm

    settings = {**asdict(trial), "ablation": ABLATIONS[trial.ablation], "batch_size": question.batch_size}
    sizes = _round_sizes(len(circuit))
    off = None if progress is None else not progress
    with tqdm(total=1 + 7 * len(sizes), desc="testing", unit="circuit", disable=off) as bar:
        evaluation = _Watched(asked.model, asked.second, asked.dictionaries, bar=bar, **settings)
        _check_positions(circuit, evaluation)
        curve = evaluation.curve(circuit, sizes)
    metric, nothing = evaluation.model_metric, evaluation.nothing_metric
    right = (metric > 0).double().mean().item() if signed(asked.second) else None
    apart = "held-out pairs" if question.held_out else "pairs"
    say(f"Tested on {len(metric)} {apart}; what is outside the circuit takes {_INSTEAD[trial.ablation]}.")
    says = f"The model: mean {metric_name(asked.second)} {metric.mean():.3f}"
    says += "" if right is None else f", right on {right:.0%}"
    say(f"{says}. With everything ablated: {nothing.mean():.3f}.\n\n{curve}")
    if not metric.mean() > nothing.mean():
        say("\nThe model does no better at this than with everything ablated: these ratios mean little.")
    draws = curve.random[-1]
    results = {
        "task": asked.second.name,
        "metric": metric_name(asked.second),
        "examples": len(metric),
        "held_out": bool(question.held_out),
        **asdict(trial),
        "model": metric.mean().item(),
        "accuracy": right,
        "nothing": nothing.mean().item(),
        "nodes": len(circuit),
        "active": curve.active,
        "faithfulness": asdict(curve.faithfulness[-1]),
        "completeness": asdict(curve.completeness[-1]),
        "random": {"mean": sum(draws) / len(draws), "low": min(draws), "high": max(draws)},
    }
    write_json(folder / "evaluation.json", results)
    curve.save(folder / "curve.json")
    if pictures:
        plot_curve(curve, folder / "curve.svg")
    return curve


def _check_positions(circuit: Circuit, evaluation: Evaluation) -> None:
    lengths = sorted({batch.clean.shape[1] for batch in evaluation.batches})
    if circuit.positions is not None and lengths != [len(circuit.positions)]:
        raise ValueError(
            f"This circuit has nodes at each of {len(circuit.positions)} positions; "
            f"{evaluation.task.name} has prompts of {', '.join(map(str, lengths))} tokens."
        )


def _draw(circuit: Circuit, path: Path, annotations: str | None, **limits: Any) -> list[Path]:
    from .drawing import draw

    return draw(circuit, path, annotations=annotations, **limits)


def _conclude(curve: Curve, written: Sequence[Path], clock: Clock, say: Say) -> None:
    good, bad, draws = curve.faithfulness[-1], curve.completeness[-1], curve.random[-1]
    at_random = f"{sum(draws) / len(draws):.3f} with as many at random"
    say(f"\nFaithfulness {_interval(good)} with {good.nodes:,} of {curve.active:,} active nodes; {at_random}")
    say(f"Completeness {_interval(bad)} without them")
    say(f"\nWritten to {written[0].parent} after {clock}:")
    for names, about in _FILES.items():
        there = [path.name for path in written if path.name in names]
        if there:
            say(f"  {', '.join(there):34}{about}")


def _interval(score: Score) -> str:
    return f"{score.value:6.3f} [{score.low:.3f}, {score.high:.3f}]"


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


# --- files --------------------------------------------------------------------------------------------------

_FILES = {
    ("circuit.json", "circuit.safetensors"): "the circuit, for Circuit.load",
    ("circuit.svg", "circuit.png", "circuit.pdf", "circuit.dot"): "its picture, and the source for graphviz",
    ("curve.json", "curve.svg", "curve.png", "curve.pdf"): "faithfulness and completeness by size",
    ("evaluation.json",): "the numbers above",
    ("settings.json",): "how this was made",
}


def _written(folder: Path) -> list[Path]:
    """The files that runs have written into a folder."""
    return [folder / name for names in _FILES for name in names if (folder / name).exists()]


def _fingerprints(circuit: Circuit) -> dict[str, Any]:
    about = circuit.about
    dictionaries = {site: known["fingerprint"] for site, known in about["dictionaries"].items()}
    prompts = about["task"]["prompts"]
    return {"model": about["model"]["fingerprint"], "dictionaries": dictionaries, "prompts": prompts}


def _settings(folder: Path) -> dict[str, Any]:
    """What is noted in a folder of the runs that wrote there, by command.

    Raises:
        ValueError: a settings.json of something else.
    """
    path = folder / "settings.json"
    found = read_json(path) if path.exists() else {}
    if not all(name in ("find", "evaluate", "draw") and isinstance(of, dict) for name, of in found.items()):
        raise ValueError(f"{path} is a file of something else: choose another folder.")
    return found


def _stem(task: str) -> str:
    """A folder's name for a task."""
    return re.sub(r"[^\w.-]+", "_", Path(task).stem).strip("._") or "task"


def _round_sizes(largest: int) -> list[int]:
    """1, 2, 5, 10, 20, ... and the largest."""
    sizes = [m * 10**e for e in range(len(str(largest))) for m in (1, 2, 5)]
    return [size for size in sizes if size < largest] + [largest]


def _discard(checkpoint: Path) -> None:
    """Removes what a checkpoint holds, and nothing else."""
    for pattern in ("effects-*.safetensors", "edges-*.safetensors", "settings.json", ".*.safetensors.*"):
        for path in checkpoint.glob(pattern):
            path.unlink()
    if checkpoint.is_dir() and not any(checkpoint.iterdir()):
        checkpoint.rmdir()


@contextmanager
def _advised(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        _, known, differs = str(error).partition("is the checkpoint of another run, which ")
        if not known:
            raise
        differs = differs.partition(".")[0]
        raise ValueError(
            f"{checkpoint} holds the beginning of another run, which {differs}. --fresh removes it; --out "
            "gives another folder."
        ) from None
