"""Features that steer: found by how well they separate, and measured by what they do."""

from .attention import attention_patterns, attention_to
from .attention_effect import AttentionEffect, HeadEffect, attention_effect
from .made_with import MadeWith
from .mention import Mention
from .orthogonal import orthogonalised
from .separated import Separated, Separation
from .separation import densities, separation

__all__ = [
    "AttentionEffect",
    "HeadEffect",
    "MadeWith",
    "Mention",
    "Separated",
    "Separation",
    "attention_effect",
    "attention_patterns",
    "attention_to",
    "densities",
    "orthogonalised",
    "separation",
]
