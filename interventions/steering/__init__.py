"""Directions that steer: found in contrasts, read, and measured."""

from .contrast import contrast
from .controls import Separation, Stability, separation, separations
from .direction import Direction
from .features import FeatureDifference, feature_difference, feature_direction
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
from .pair_activations import PairActivations, pair_activations
from .reading import Nearest, Similarity, Tokens, nearest, promoted, similarity
from .token_choice import After, Position, Within, answer_letter, differing, every, last

__all__ = [
    "LDA",
    "PCA",
    "After",
    "CentredPCA",
    "Direction",
    "FeatureDifference",
    "LinearProbe",
    "LogisticProbe",
    "MeanDifference",
    "Moments",
    "Nearest",
    "PairActivations",
    "PairedPCA",
    "Position",
    "Separation",
    "Similarity",
    "Stability",
    "Tokens",
    "Within",
    "answer_letter",
    "centred_pca",
    "contrast",
    "differing",
    "every",
    "feature_difference",
    "feature_direction",
    "last",
    "lda",
    "linear_probe",
    "logistic_probe",
    "mean_difference",
    "nearest",
    "pair_activations",
    "paired_pca",
    "pca",
    "promoted",
    "separation",
    "separations",
    "similarity",
]
