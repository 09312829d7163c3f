"""SHIFT: features that a classifier should not use, found, judged and taken out.

`shift` is the whole; its steps are `Trial`, `ranked`, `shown`, `judged` and `reported`.
"""

from .baselines import (
    biased,
    concept_bottleneck,
    erased,
    erased_retrained,
    oracle,
    random_features,
    random_features_retrained,
    words_deleted,
)
from .dossier import Dossier, Evidence
from .evidence import evidence
from .heads import shift_head
from .judges import Judge, by_attribution, correlates, from_file, judged, rule
from .llm_judge import by_llm
from .ranking import Candidate, Ranking, ranking
from .report import Across, Report
from .scores import Row, Scores
from .shift import ablated, compared, ranked, reported, retrained, shift, shown
from .skylines import feature_skyline, feature_skyline_retrained, neuron_skyline
from .terminal import AtTerminal, in_terminal
from .trial import Trial
from .verdict_log import VerdictLog
from .verdicts import Verdict, Verdicts

__all__ = [
    "Across",
    "AtTerminal",
    "Candidate",
    "Dossier",
    "Evidence",
    "Judge",
    "Ranking",
    "Report",
    "Row",
    "Scores",
    "Trial",
    "Verdict",
    "VerdictLog",
    "Verdicts",
    "ablated",
    "biased",
    "by_attribution",
    "by_llm",
    "compared",
    "concept_bottleneck",
    "correlates",
    "erased",
    "erased_retrained",
    "evidence",
    "feature_skyline",
    "feature_skyline_retrained",
    "from_file",
    "in_terminal",
    "judged",
    "neuron_skyline",
    "oracle",
    "random_features",
    "random_features_retrained",
    "ranked",
    "ranking",
    "reported",
    "retrained",
    "rule",
    "shift",
    "shift_head",
    "shown",
    "words_deleted",
]
