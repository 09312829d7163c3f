"""Directions that steer: found in contrasts, read, and measured."""

from .direction import Direction

__all__ = ["Direction"]
