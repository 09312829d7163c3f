"""Backward passes through models that write their state in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .trees import tensors

if TYPE_CHECKING:
    from .carrier import Carrier


@contextmanager
def differentiable(tree: Any, carrier: Carrier) -> Iterator[None]:
    """While open, what autograd keeps of the state is kept as a copy, safe from what is later written there.

    Models overwrite their state in place once they have read it, which autograd refuses. Unlike
    `torch.autograd.graph.allow_mutation_on_saved_tensors` this lets the backward pass run anywhere, later.
    """
    if not torch.is_grad_enabled():
        yield
        return
    storages = {x.untyped_storage().data_ptr() for x in tensors(tree).values()}

    def kept(x: Tensor) -> Tensor:
        state = x.untyped_storage().data_ptr() in storages or tuple(x.shape[1:]) in carrier.shapes
        return x.clone() if state else x

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
        yield
