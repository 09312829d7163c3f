"""A question put to a model: prompts, and a number to explain."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .agreement import agreement_across_pp, agreement_across_rc, agreement_simple, agreement_within_rc
from .batch import Batch, Tokenizer
from .metrics import (
    KL,
    METRICS,
    LogitDifference,
    LogProbability,
    Metric,
    Probability,
    ProbabilityDifference,
)
from .names import indirect_objects, pronouns
from .pair import Pair
from .recovery import Recovery, recovery
from .sequences import induction
from .superposition import SparseMap, Superposition
from .task import Task
from .years import greater_than

TASKS: Mapping[str, Callable[..., Task]] = MappingProxyType(
    {
        make.__name__: make
        for make in (
            agreement_simple,
            agreement_across_pp,
            agreement_across_rc,
            agreement_within_rc,
            pronouns,
            indirect_objects,
            greater_than,
            induction,
        )
    }
)
"""The built-in tasks by name. Each is called with `n`, how many pairs, and `seed`."""

__all__ = [
    "KL",
    "METRICS",
    "TASKS",
    "Batch",
    "LogProbability",
    "LogitDifference",
    "Metric",
    "Pair",
    "Probability",
    "ProbabilityDifference",
    "Recovery",
    "SparseMap",
    "Superposition",
    "Task",
    "Tokenizer",
    "agreement_across_pp",
    "agreement_across_rc",
    "agreement_simple",
    "agreement_within_rc",
    "greater_than",
    "indirect_objects",
    "induction",
    "pronouns",
    "recovery",
]
