"""What dictionaries know of labelled concepts: targeted probe perturbation, spurious correlation removal."""

from .held import Held, held
from .perturbation import TPP, tpp
from .pooled import Pooled, pool, pooled
from .removal import SCR, scr
from .sweep import scr_sweep, tpp_sweep
from .sweep_result import Scored, Sweep

__all__ = [
    "SCR",
    "TPP",
    "Held",
    "Pooled",
    "Scored",
    "Sweep",
    "held",
    "pool",
    "pooled",
    "scr",
    "scr_sweep",
    "tpp",
    "tpp_sweep",
]
