"""Probes of a few features, beside the best that can be done with the activations themselves."""

from .dense import DenseLogistic, Neighbours, OfRecipes, PrincipalLogistic, Trees, baselines
from .examples import Examples, features_of, of_pooled, one_against_rest
from .k_sparse import KSparse, SparseProbe, sparse_probes
from .method import Method
from .penalised import l1_logistic, l2_logistic
from .quivers import Comparison, Quiver
from .ranking import mean_differences, scaled_mean_differences
from .regimes import Situation, imbalance, noise, normal, scarcity, shift
from .running import quiver
from .trials import Trial, Tried, trial

__all__ = [
    "Comparison",
    "DenseLogistic",
    "Examples",
    "KSparse",
    "Method",
    "Neighbours",
    "OfRecipes",
    "PrincipalLogistic",
    "Quiver",
    "Situation",
    "SparseProbe",
    "Trees",
    "Trial",
    "Tried",
    "baselines",
    "features_of",
    "imbalance",
    "l1_logistic",
    "l2_logistic",
    "mean_differences",
    "noise",
    "normal",
    "of_pooled",
    "one_against_rest",
    "quiver",
    "scaled_mean_differences",
    "scarcity",
    "shift",
    "sparse_probes",
    "trial",
]
