"""Directions that steer: found in contrasts, read, and measured."""

from .choices import Matching
from .confidence import Estimate, bootstrap
from .contrast import contrast
from .controls import Separation, Stability, separation, separations
from .direction import Direction
from .divergence import Divergence
from .dose_response import DoseResponse, dose_response
from .features import FeatureDifference, feature_difference, feature_direction
from .fluency import Each, Score, distinct, perplexity, surprise
from .generated import Generated
from .judges import Judge, Judged, KeywordJudge, LikelihoodJudge, Marks, harmonic_mean
from .logistic import LogisticProbe, logistic_probe
from .methods import (
    LDA,
    PCA,
    CentredPCA,
    LinearProbe,
    MeanDifference,
    PairedPCA,
    centred_pca,
    lda,
    linear_probe,
    mean_difference,
    paired_pca,
    pca,
)
from .moments import Moments
from .outcomes import Measure
from .pair_activations import PairActivations, pair_activations
from .preference import Preference
from .randomised import randomised
from .reading import Nearest, Similarity, Tokens, nearest, promoted, similarity
from .refusal import REFUSALS, UNKNOWN, opens_with_refusal, refuses
from .sweep import LayerSweep, layer_sweep
from .token_choice import After, Position, Within, answer_letter, differing, every, last
from .words import occurrences

__all__ = [
    "LDA",
    "PCA",
    "REFUSALS",
    "UNKNOWN",
    "After",
    "CentredPCA",
    "Direction",
    "Divergence",
    "DoseResponse",
    "Each",
    "Estimate",
    "FeatureDifference",
    "Generated",
    "Judge",
    "Judged",
    "KeywordJudge",
    "LayerSweep",
    "LikelihoodJudge",
    "LinearProbe",
    "LogisticProbe",
    "Marks",
    "Matching",
    "MeanDifference",
    "Measure",
    "Moments",
    "Nearest",
    "PairActivations",
    "PairedPCA",
    "Position",
    "Preference",
    "Score",
    "Separation",
    "Similarity",
    "Stability",
    "Tokens",
    "Within",
    "answer_letter",
    "bootstrap",
    "centred_pca",
    "contrast",
    "differing",
    "distinct",
    "dose_response",
    "every",
    "feature_difference",
    "feature_direction",
    "harmonic_mean",
    "last",
    "layer_sweep",
    "lda",
    "linear_probe",
    "logistic_probe",
    "mean_difference",
    "nearest",
    "occurrences",
    "opens_with_refusal",
    "pair_activations",
    "paired_pca",
    "pca",
    "perplexity",
    "promoted",
    "randomised",
    "refuses",
    "separation",
    "separations",
    "similarity",
    "surprise",
]
