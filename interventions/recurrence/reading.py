"""Reading a model's state after some tokens, and going on from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..model import Model
from .carrier import Carrier, Carry
from .finding import carrier
from .trees import copied, put, tensors

if TYPE_CHECKING:
    from .state import State

Rows = Int[Tensor, "batch pos"] | Sequence[Int[Tensor, " pos"]] | Sequence[Sequence[int]]


@torch.no_grad()
def read_state(
    model: Model,
    tokens: Rows,
    mask: Int[Tensor, "batch pos"] | None = None,
    *,
    batch_size: int = 64,
    progress: bool | None = None,
) -> State:
    """What the model carries after it has read these tokens.

    `tokens` is (batch pos), or a sequence of rows that may differ in length; with a `mask`, 1 at tokens and 0
    at padding on either side, padding is left out. Rows of one length are read together, and none ever sees
    padding, which would be read into the state. Where rows differ in length the state can be compared,
    averaged and patched in, but not resumed as a whole: read again those of one length.

    Raises ValueError where the model has no recurrent state, or where a row is empty.
    """
    from .state import State

    rows = _rows(tokens, mask, model)
    carrying = carrier(model)
    lengths: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        lengths.setdefault(len(row), []).append(i)
    order, parts = [], []
    batches = [some[i : i + batch_size] for some in lengths.values() for i in range(0, len(some), batch_size)]
    for some in tqdm(batches, desc="states", disable=_quiet(progress, len(batches))):
        carry = carrying.advance(torch.stack([rows[i] for i in some]))[1]
        parts.append(_state(model, carrying, carry))
        order += some
    whole = parts[0] if len(parts) == 1 else State.joined(parts)
    return whole if order == sorted(order) else whole.rows([order.index(i) for i in range(len(order))])


def states(model: Model, tokens: Int[Tensor, "batch pos"]) -> Iterator[State]:
    """What the model carries after each of these tokens, one state after the other."""
    carrying, carry = carrier(model), None
    for token in _tokens(tokens, model).split(1, dim=1):
        with torch.no_grad():
            carry = carrying.advance(token, carry)[1]
        yield _state(model, carrying, carry)


def resume(model: Model, state: State, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    """Logits at tokens that are read after those of the state: as in one pass over all of them.

    They are differentiable in the state's tensors, where these ask for gradients, and the backward pass may
    run anywhere. A state of one row goes with any number of rows of tokens.

    Raises ValueError where the state is of another model, a difference, or lacks what the model carries
    besides.
    """
    return advance(model, state, tokens)[0]


def advance(
    model: Model, state: State, tokens: Int[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos vocab"], State]:
    """Logits as of `resume`, and the state after these tokens."""
    tokens = _tokens(tokens, model)
    carrying = carrier(model)
    if state.batch == 1 and len(tokens) > 1:
        state = state.rows([0] * len(tokens))
    if state.batch != len(tokens):
        raise ValueError(f"The state has {state.batch} rows and the tokens {len(tokens)}.")
    carry = _carry(model, carrying, state)
    logits, carry = carrying.advance(tokens, carrying.with_state(carry, dict(state)))
    return logits, _state(model, carrying, carry)


def checked(model: Model, state: State) -> None:
    """Raises ValueError where a state is of another model."""
    if state.fingerprint != model.fingerprint:
        raise ValueError(
            f"The state is of another model (fingerprint {state.fingerprint[:8]}, this one has "
            f"{model.fingerprint[:8]})."
        )


def _state(model: Model, carrying: Carrier, carry: Carry) -> State:
    from .state import State

    held = tensors(carry.tree)
    named = {slot.path for slot in carrying.slots}
    rest = {_key(path): x for path, x in held.items() if path not in named}
    lengths = (carry.length,) * carry.batch
    return State(carrying.state(carry), model.fingerprint, lengths, carrying.couples, rest=rest, carry=carry)


def _carry(model: Model, carrying: Carrier, state: State) -> Carry:
    """All that is carried along with a state: its own, or from a file what was written of it."""
    checked(model, state)
    if missing := [name for name in carrying.names if name not in state]:
        raise ValueError(f"The state lacks {missing[0]}, so it cannot be resumed: it is a part of one.")
    if not state.lengths:
        raise ValueError("A difference of states cannot be resumed: add it to a state.")
    if state.length is None:
        raise ValueError("The rows of this state have read different numbers of tokens: resume them apart.")
    if state.carry is not None:
        return state.carry
    with model.apart(), torch.no_grad():
        like = torch.zeros(state.batch, state.length, dtype=torch.long, device=model.device)
        carry = carrying.advance(like)[1]
    tree = copied(carry.tree)
    for path in tensors(tree).keys() - {slot.path for slot in carrying.slots}:
        if _key(path) not in state.rest:
            raise ValueError(
                f"{state!r} has no {_key(path)}, which this model carries besides: a mean of states can be "
                "patched in, but not resumed."
            )
        put(tree, path, state.rest[_key(path)].to(model.device))
    return Carry(tree, carry.length)


def _rows(tokens: Rows, mask: Tensor | None, model: Model) -> list[Tensor]:
    if isinstance(tokens, str) or any(isinstance(row, str) for row in tokens):
        raise TypeError("A state is read after tokens, not text: encode it with `model.tokenizer`.")
    rows = [torch.as_tensor(row, device=model.device) for row in tokens]
    if mask is not None:
        if not isinstance(tokens, Tensor) or mask.shape != tokens.shape:
            raise ValueError("A mask goes with tokens (batch pos) of its own shape.")
        rows = [row[keep.bool()] for row, keep in zip(rows, mask.to(model.device), strict=True)]
    if not rows or any(row.ndim != 1 for row in rows):
        raise ValueError("Pass tokens as (batch pos), or as a sequence of rows of token ids.")
    if empty := [i for i, row in enumerate(rows) if not len(row)]:
        raise ValueError(f"Row {empty[0]} has no tokens: a state is read after at least one.")
    return rows


def _tokens(tokens: Tensor, model: Model) -> Tensor:
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(f"Pass tokens as (batch pos) with at least one position, not {tuple(tokens.shape)}.")
    return tokens.to(model.device)


def _key(path: tuple) -> str:
    return "/".join(map(str, path))


def _quiet(progress: bool | None, batches: int) -> bool | None:
    """For tqdm: None shows a bar in a terminal only."""
    return True if batches < 2 else None if progress is None else not progress
