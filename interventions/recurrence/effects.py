"""The recurrent state as a site: what each of its entries, after each token, does to a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..model import Model
from .carrier import Carrier, Carry
from .couples import common
from .finding import carrier


class Prompts(Protocol):
    """What is compared: tokens (batch pos), clean and patch, position by position. A `tasks.Batch` is one."""

    @property
    def clean(self) -> Int[Tensor, "batch pos"]: ...

    @property
    def patch(self) -> Int[Tensor, "batch pos"] | None: ...


Metric: TypeAlias = Callable[..., Float[Tensor, " batch"]]  # of logits (batch pos vocab) and the prompts


@dataclass(frozen=True, eq=False, repr=False)
class StateEffects(Mapping[str, Tensor]):
    """Effects of the entries of a state: names to tensors (batch pos ...), in units of the metric.

    Position p is the boundary after token p; after the last token, from which nothing is read, there is none.
    """

    effects: Mapping[str, Float[Tensor, "batch pos ..."]]
    clean: Float[Tensor, " batch"]  # the metric on the clean prompts
    patch: Float[Tensor, " batch"]  # on the patch prompts

    def __getitem__(self, name: str) -> Tensor:
        return self.effects[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.effects)

    def __len__(self) -> int:
        return len(self.effects)

    def __repr__(self) -> str:
        batch, pos = next(iter(self.effects.values())).shape[:2]
        return f"StateEffects(batch {batch}, after {pos} tokens: {', '.join(self.effects)})"

    def summed(self) -> dict[str, Float[Tensor, "batch pos"]]:
        """Per tensor and boundary: the sum over its entries."""
        return {name: x.flatten(2).sum(-1) for name, x in self.effects.items()}

    def whole(self) -> Float[Tensor, "batch pos"]:
        """Per boundary: the sum over the whole state."""
        return torch.stack(list(self.summed().values())).sum(0)


def state_effects(model: Model, prompts: Prompts, metric: Metric) -> StateEffects:
    """What the metric would change by, to first order, if an entry of the state were the patch prompt's.

    Attribution patching (Nanda 2023) with the state after each token as the site: the gradient of the metric
    with respect to it, through all that is read later, times the difference. The clean prompt is read token
    by token in one pass with gradients. Numbers kept as `part * exp(scale)` are taken at the larger of both
    scales, so that the parts carry the whole effect and the scale none. `metric(logits, prompts)` gives one
    number for each row.

    Raises ValueError where the model has no recurrent state, or the prompts are not of one shape.
    """
    carrying = carrier(model)
    clean, patch = _both(model, prompts)
    states, patched = _read(carrying, patch)
    leaves: list[dict[str, Tensor]] = []
    with torch.enable_grad():
        logits, carry = [], None
        for at, token in enumerate(clean.split(1, dim=1)):
            out, carry = carrying.advance(token, carry)
            logits.append(out)
            if at < len(states):
                here, _ = common([carrying.state(carry), states[at]], carrying.couples)
                leaf = {name: x.detach().requires_grad_() for name, x in here.items()}
                through = {name: leaf[name] + (x - x.detach()) for name, x in here.items()}
                carry = carrying.with_state(carry, through)
                leaves.append(leaf)
        measured = metric(torch.cat(logits, dim=1), prompts)
        grads = _gradients(measured, leaves)
    effects = []
    for leaf, grad, there in zip(leaves, grads, states, strict=True):
        here, there = common([leaf, there], carrying.couples)
        effects.append({name: grad[name] * (there[name] - here[name]).detach() for name in leaf})
    return _effects(effects, measured, metric(patched, prompts))


def integrated_state_effects(
    model: Model, prompts: Prompts, metric: Metric, *, points: int = 8, progress: bool | None = None
) -> StateEffects:
    """The same with the gradient averaged along the line from the clean to the patch state.

    Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365): at each boundary the effects of all
    entries add up to what patching the whole state there does to the metric, the closer the more `points`
    (Gauss-Legendre nodes) there are. Each boundary costs `points` passes over the tokens after it.
    """
    carrying = carrier(model)
    clean, patch = _both(model, prompts)
    states, patched = _read(carrying, patch)
    carry, carries, before = None, [], []
    with torch.no_grad():
        for token in clean.split(1, dim=1):
            out, carry = carrying.advance(token, carry)
            before.append(out)
            carries.append(carry)
        measured = metric(torch.cat(before, dim=1), prompts)
    nodes, weights = _gauss_legendre(points)
    effects = []
    for at, there in enumerate(tqdm(states, desc="boundaries", disable=_quiet(progress))):
        here, there = common([carrying.state(carries[at]), there], carrying.couples)
        total = {name: torch.zeros_like(x) for name, x in here.items()}
        for node, weight in zip(nodes, weights, strict=True):
            with torch.enable_grad():
                leaf = {name: (x + node * (there[name] - x)).requires_grad_() for name, x in here.items()}
                after, _ = carrying.advance(clean[:, at + 1 :], carrying.with_state(carries[at], leaf))
                logits = torch.cat([*before[: at + 1], after], dim=1)
                grad = _gradients(metric(logits, prompts), [leaf])[0]
            total = {name: x + weight * grad[name] for name, x in total.items()}
        effects.append({name: x * (there[name] - here[name]) for name, x in total.items()})
    return _effects(effects, measured, metric(patched, prompts))


def patched_state_effects(
    model: Model, prompts: Prompts, metric: Metric, *, names: Sequence[str] | None = None
) -> dict[str, Float[Tensor, "batch pos"]]:
    """What the metric does change by if one tensor of the state is the patch prompt's, for each boundary.

    Exact, at a pass for each tensor and boundary. Of a couple, the parts are patched at a common scale; under
    `""` stands what patching the whole state does.
    """
    carrying = carrier(model)
    clean, patch = _both(model, prompts)
    states, _ = _read(carrying, patch)
    chosen = list(names) if names is not None else carrying.names
    if unknown := [name for name in chosen if name not in carrying.names]:
        raise LookupError(f"No {unknown[0]!r} in the state; it has {', '.join(carrying.names)}.")
    found: dict[str, list[Tensor]] = {name: [] for name in [*chosen, ""]}
    with torch.no_grad():
        carry, before = None, []
        plain = metric(carrying.advance(clean)[0], prompts)
        for at, there in enumerate(states):
            out, carry = carrying.advance(clean[:, at : at + 1], carry)
            before.append(out)
            here, there = common([carrying.state(carry), there], carrying.couples)
            for name in found:
                new = there if not name else {**here, name: there[name]}
                after, _ = carrying.advance(clean[:, at + 1 :], carrying.with_state(carry, new))
                found[name].append(metric(torch.cat([*before, after], dim=1), prompts) - plain)
    return {name: torch.stack(each, dim=1) for name, each in found.items()}


def _both(model: Model, prompts: Prompts) -> tuple[Tensor, Tensor]:
    clean, patch = prompts.clean, prompts.patch
    if patch is None or clean.shape != patch.shape or clean.ndim != 2 or clean.shape[1] < 2:
        raise ValueError(
            "Effects compare clean and patch tokens (batch pos) of one shape, two tokens or more."
        )
    return clean.to(model.device), patch.to(model.device)


@torch.no_grad()
def _read(carrying: Carrier, tokens: Tensor) -> tuple[list[dict[str, Tensor]], Tensor]:
    """The state after each token but the last, and the logits."""
    carry: Carry | None = None
    states, logits = [], []
    for token in tokens.split(1, dim=1):
        out, carry = carrying.advance(token, carry)
        states.append(carrying.state(carry))
        logits.append(out)
    return states[:-1], torch.cat(logits, dim=1)


def _gradients(measured: Tensor, leaves: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    flat = [x for leaf in leaves for x in leaf.values()]
    grads = iter(torch.autograd.grad(measured.sum(), flat, materialize_grads=True))
    return [{name: next(grads) for name in leaf} for leaf in leaves]


def _effects(each: Sequence[Mapping[str, Tensor]], clean: Tensor, patch: Tensor) -> StateEffects:
    stacked = {name: torch.stack([x[name] for x in each], dim=1).detach() for name in each[0]}
    return StateEffects(stacked, clean.detach(), patch.detach())


def _gauss_legendre(points: int) -> tuple[list[float], list[float]]:
    import numpy

    nodes, weights = numpy.polynomial.legendre.leggauss(points)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def _quiet(progress: bool | None) -> bool | None:
    return None if progress is None else not progress
