"""A question put to a model: prompts, and a number to explain."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .agreement import agreement_across_pp, agreement_across_rc, agreement_simple, agreement_within_rc
from .batch import Batch, Tokenizer
from .choice import Choice, ChoiceSet
from .contrast import ContrastSet
from .contrast_instructions import english_french, harmful_harmless, opinions, sentiment, sycophancy
from .contrast_stories import feelings, girl_boy, happy_sad, who
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

CONTRASTS: Mapping[str, Callable[..., ContrastSet]] = MappingProxyType(
    {make.__name__: make for make in (happy_sad, girl_boy, sentiment, english_french, harmful_harmless)}
)
"""The built-in contrast sets by name. Each is called with `n`, how many pairs, and `seed`."""

__all__ = [
    "CONTRASTS",
    "KL",
    "METRICS",
    "TASKS",
    "Batch",
    "Choice",
    "ChoiceSet",
    "ContrastSet",
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
    "english_french",
    "feelings",
    "girl_boy",
    "greater_than",
    "happy_sad",
    "harmful_harmless",
    "indirect_objects",
    "induction",
    "opinions",
    "pronouns",
    "recovery",
    "sentiment",
    "sycophancy",
    "who",
]
