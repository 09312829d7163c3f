"""How the command line tests a circuit, and what it says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .circuit_folder import FILES
from .curves import plot_curve
from .evaluation import (
    Curve,
    Errors,
    Evaluation,
    Score,
    mean_ablation,
    resample_ablation,
    zero_ablation,
)
from .graph import Circuit
from .question import Asked, Question, Say, metric_name, signed
from .record import Clock, write_json

ABLATIONS = {"mean": mean_ablation, "zero": zero_ablation, "resample": resample_ablation}
_INSTEAD = {"mean": "its mean", "zero": "the value 0", "resample": "its value on the patched prompt"}


@dataclass(frozen=True)
class Trial:
    """How a circuit is tested."""

    ablation: str = "mean"
    errors: Errors = "scored"
    start_layer: int = 0


class _Watched(Evaluation):
    """An evaluation that moves a bar on with every circuit that it tests."""

    def __init__(self, *nouns: Any, bar: Any, **settings: Any):
        self._bar = bar
        super().__init__(*nouns, **settings)

    def metric(self, masks: Any) -> Any:
        values = super().metric(masks)
        self._bar.update()
        return values


def tested(
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


def conclude(curve: Curve, written: Sequence[Path], clock: Clock, say: Say) -> None:
    good, bad, draws = curve.faithfulness[-1], curve.completeness[-1], curve.random[-1]
    at_random = f"{sum(draws) / len(draws):.3f} with as many at random"
    say(f"\nFaithfulness {_interval(good)} with {good.nodes:,} of {curve.active:,} active nodes; {at_random}")
    say(f"Completeness {_interval(bad)} without them")
    say(f"\nWritten to {written[0].parent} after {clock}:")
    for names, about in FILES.items():
        there = [path.name for path in written if path.name in names]
        if there:
            say(f"  {', '.join(there):34}{about}")


def _check_positions(circuit: Circuit, evaluation: Evaluation) -> None:
    lengths = sorted({batch.clean.shape[1] for batch in evaluation.batches})
    if circuit.positions is not None and lengths != [len(circuit.positions)]:
        raise ValueError(
            f"This circuit has nodes at each of {len(circuit.positions)} positions; "
            f"{evaluation.task.name} has prompts of {', '.join(map(str, lengths))} tokens."
        )


def _interval(score: Score) -> str:
    return f"{score.value:6.3f} [{score.low:.3f}, {score.high:.3f}]"


def _round_sizes(largest: int) -> list[int]:
    """1, 2, 5, 10, 20, ... and the largest."""
    sizes = [m * 10**e for e in range(len(str(largest))) for m in (1, 2, 5)]
    return [size for size in sizes if size < largest] + [largest]
