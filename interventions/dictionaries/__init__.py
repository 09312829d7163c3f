"""Sparse dictionaries: autoencoders and transcoders, their files, their training, their quality."""

from . import recipes
from .activations import (
    AbsTopK,
    Activation,
    BatchTopK,
    BatchwiseTopK,
    GroupMax,
    JumpReLU,
    ReLU,
    TopK,
)
from .coders import SparseCoder, SparseFeatures
from .cross_layer import CrossLayer, CrossLayerTranscoder
from .evaluation import Quality, quality, table
from .files import save
from .formats import export_saelens, export_sparsify, fvu, load
from .jobs import CrossLayerJob, Job
from .normalisation import LayerNorm, RescaleNorm
from .texts import own_samples
from .training import train, train_jobs
from .units import Units

__all__ = [
    "AbsTopK",
    "Activation",
    "BatchTopK",
    "BatchwiseTopK",
    "CrossLayer",
    "CrossLayerJob",
    "CrossLayerTranscoder",
    "GroupMax",
    "Job",
    "JumpReLU",
    "LayerNorm",
    "Quality",
    "ReLU",
    "RescaleNorm",
    "SparseCoder",
    "SparseFeatures",
    "TopK",
    "Units",
    "export_saelens",
    "export_sparsify",
    "fvu",
    "load",
    "own_samples",
    "quality",
    "recipes",
    "save",
    "table",
    "train",
    "train_jobs",
]
