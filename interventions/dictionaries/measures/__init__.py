"""What is to be known of a dictionary beside how well it reconstructs."""

from .angles import Geometry, Neighbours, Principal, geometry, neighbours, principal
from .meta import MetaDictionary, meta_dictionary
from .profiles import Context, Profile, contexts
from .shared import Matching, Overlap, hungarian, mutual, overlap
from .stitches import Stitching, stitched, stitching
from .unembedding import Promoted, promoted

__all__ = [
    "Context",
    "Geometry",
    "Matching",
    "MetaDictionary",
    "Neighbours",
    "Overlap",
    "Principal",
    "Profile",
    "Promoted",
    "Stitching",
    "contexts",
    "geometry",
    "hungarian",
    "meta_dictionary",
    "mutual",
    "neighbours",
    "overlap",
    "principal",
    "promoted",
    "stitched",
    "stitching",
]
