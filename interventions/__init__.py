"""Everything that touches a forward pass: sites, dictionaries, interventions."""

from .acts import Acts, Dictionary, Identity, Transcoder
from .baselines import acts_of, mean_acts
from .conditions import Condition
from .dictionaries import SparseCoder
from .dictionaries.stream import activations
from .edits import Ablate, Clamp, Patch, Scale
from .intervention import Intervention
from .joined import PerRow
from .model import Model
from .schedules import Decay, Linear
from .sites import Layout, Site
from .splice import Run, applied, run
from .tensor_edits import Add, Affine, Project, rotation
from .where import Where, after, before, end_of, matching, span, within

__all__ = [
    "Ablate",
    "Acts",
    "Add",
    "Affine",
    "Clamp",
    "Condition",
    "Decay",
    "Dictionary",
    "Identity",
    "Intervention",
    "Layout",
    "Linear",
    "Model",
    "Patch",
    "PerRow",
    "Project",
    "Run",
    "Scale",
    "Site",
    "SparseCoder",
    "Transcoder",
    "Where",
    "activations",
    "acts_of",
    "after",
    "applied",
    "before",
    "end_of",
    "matching",
    "mean_acts",
    "rotation",
    "run",
    "span",
    "within",
]
