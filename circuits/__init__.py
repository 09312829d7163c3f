"""Everything that is a graph: effects, edges, circuits, and how good they are."""

from .attribution import (
    attribution_patching,
    exact_patching,
    gauss_legendre,
    input_integrated_gradients,
    integrated_gradients,
    left_riemann,
)
from .discovery import find
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
from .selection import above, share, top
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
    "above",
    "attribution_patching",
    "completeness",
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
    "resample_ablation",
    "share",
    "top",
    "zero_ablation",
]
