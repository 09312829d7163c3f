"""What is to be known of a dictionary beside how well it reconstructs."""

from .angles import Geometry, Neighbours, Principal, geometry, neighbours, principal
from .shared import Matching, Overlap, hungarian, mutual, overlap

__all__ = [
    "Geometry",
    "Matching",
    "Neighbours",
    "Overlap",
    "Principal",
    "geometry",
    "hungarian",
    "mutual",
    "neighbours",
    "overlap",
    "principal",
]
