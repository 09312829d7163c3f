"""Features that steer: found by how well they separate, and measured by what they do."""

from .attention import attentions
from .attention_effect import AttentionEffect, HeadTests, attention_effect
from .made_with import MadeWith
from .orthogonal import orthogonalised
from .separated import Separated, Separation
from .separation import densities, separation

__all__ = [
    "AttentionEffect",
    "HeadTests",
    "MadeWith",
    "Separated",
    "Separation",
    "attention_effect",
    "attentions",
    "densities",
    "orthogonalised",
    "separation",
]
