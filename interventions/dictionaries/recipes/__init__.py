"""How features are kept sparse while a dictionary is trained, and which activation it has afterwards."""

from .jump import L0, JumpReLU, QuadraticL0, Sparsity, TargetL0
from .penalised import L1, Gated, PAnneal
from .recipe import Recipe, Step
from .topk import AbsTopK, BatchTopK, GroupMax, Matryoshka, TopK

__all__ = [
    "L0",
    "L1",
    "AbsTopK",
    "BatchTopK",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "Matryoshka",
    "PAnneal",
    "QuadraticL0",
    "Recipe",
    "Sparsity",
    "Step",
    "TargetL0",
    "TopK",
]
