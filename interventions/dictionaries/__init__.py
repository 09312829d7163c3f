"""Sparse dictionaries: autoencoders and transcoders, their files, their training, their quality."""

from . import recipes
from .activations import Activation, BatchTopK, JumpReLU, ReLU, TopK
from .coders import SparseCoder
from .evaluation import Quality, quality, table
from .files import save
from .formats import export_saelens, export_sparsify, fvu, load
from .training import train

__all__ = [
    "Activation",
    "BatchTopK",
    "JumpReLU",
    "Quality",
    "ReLU",
    "SparseCoder",
    "TopK",
    "export_saelens",
    "export_sparsify",
    "fvu",
    "load",
    "quality",
    "recipes",
    "save",
    "table",
    "train",
]
