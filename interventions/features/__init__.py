"""Features that steer: found by how well they separate, and measured by what they do."""

from .made_with import MadeWith
from .separated import Separated, Separation
from .separation import densities, separation

__all__ = ["MadeWith", "Separated", "Separation", "densities", "separation"]
