"""Probes: labels read off activations or features at a site."""

from .activations import Activations
from .ccs import CCS
from .differences import OnDifferences, random_aurocs
from .discriminants import LDA, MeanDifference, RandomDirection
from .eigenprobes import CRC, VINC
from .leace import Eraser, Leace
from .logistic import Logistic
from .mlp_probe import MLPProbe
from .platt import platt
from .probe import Probe, Recipe
from .reading import contrast_activations, probe_activations
from .scores import accuracy, auroc, auroc_interval, calibration_error
from .selected import Selected
from .site_probes import SiteProbes
from .sites import probe_sites
from .trained import Trained

__all__ = [
    "CCS",
    "CRC",
    "LDA",
    "VINC",
    "Activations",
    "Eraser",
    "Leace",
    "Logistic",
    "MLPProbe",
    "MeanDifference",
    "OnDifferences",
    "Probe",
    "RandomDirection",
    "Recipe",
    "Selected",
    "SiteProbes",
    "Trained",
    "accuracy",
    "auroc",
    "auroc_interval",
    "calibration_error",
    "contrast_activations",
    "platt",
    "probe_activations",
    "probe_sites",
    "random_aurocs",
]
