"""Everything that touches a forward pass: sites, dictionaries, interventions."""

from .acts import Acts, Dictionary, Identity, Transcoder
from .dictionaries import SparseCoder
from .dictionaries.stream import activations
from .edits import Ablate, Add, Clamp, Intervention, Patch
from .model import Model
from .sites import Layout, Site
from .splice import Run, applied, run

__all__ = [
    "Ablate",
    "Acts",
    "Add",
    "Clamp",
    "Dictionary",
    "Identity",
    "Intervention",
    "Layout",
    "Model",
    "Patch",
    "Run",
    "Site",
    "SparseCoder",
    "Transcoder",
    "activations",
    "applied",
    "run",
]
