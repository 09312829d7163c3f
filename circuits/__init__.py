"""Everything that is a graph: effects, edges, circuits, and how good they are."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attribution import (
        attribution_patching,
        exact_patching,
        gauss_legendre,
        input_integrated_gradients,
        integrated_gradients,
        left_riemann,
        midpoint,
    )
    from .circuit_interventions import ablation, clamping, steering
    from .curves import plot_curve
    from .discovery import find
    from .drawing import draw
    from .effects import Effects, SiteEffects
    from .evaluation import (
        Curve,
        Evaluation,
        Score,
        completeness,
        faithfulness,
        mean_ablation,
        means,
        resample_ablation,
        zero_ablation,
    )
    from .graph import ERROR, OUTPUT, Circuit, Node
    from .plots import plot
    from .selection import above, share, top
    from .steering_plots import plot_dose_response, plot_layer_map, plot_layer_sweep
    from .wiring import edges

__all__ = [
    "ERROR",
    "OUTPUT",
    "Circuit",
    "Curve",
    "Effects",
    "Evaluation",
    "Node",
    "Score",
    "SiteEffects",
    "ablation",
    "above",
    "attribution_patching",
    "clamping",
    "completeness",
    "draw",
    "edges",
    "exact_patching",
    "faithfulness",
    "find",
    "gauss_legendre",
    "input_integrated_gradients",
    "integrated_gradients",
    "left_riemann",
    "mean_ablation",
    "means",
    "midpoint",
    "plot",
    "plot_curve",
    "plot_dose_response",
    "plot_layer_map",
    "plot_layer_sweep",
    "resample_ablation",
    "share",
    "steering",
    "top",
    "zero_ablation",
]

_MODULES = (
    "attribution", "discovery", "effects", "evaluation", "graph", "selection", "wiring",
    "drawing", "plots", "curves", "circuit_interventions", "steering_plots",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    # Names are looked up when they are used, so that `circuits --help` need not wait for torch.
    if name in __all__:
        for module in _MODULES:
            found = vars(import_module(f".{module}", __name__))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
