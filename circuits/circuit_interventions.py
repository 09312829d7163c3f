"""Interventions from circuits: ablate, clamp or steer with the features that were found.

Nodes that have a position act at that token of the prompt, others at every token, generated ones too. What
comes out is refused in another model than the circuit's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interventions.acts import Acts
from interventions.binding import Dictionaries, splices
from interventions.edits import Ablate, Clamp
from interventions.features.made_with import MadeWith
from interventions.intervention import Intervention
from interventions.model import Model
from interventions.splice import run
from interventions.steering.direction import Direction
from interventions.tensor_edits import Add
from interventions.where import Where

from .discovery import identity
from .graph import ERROR, Circuit, Node

Values = float | Callable[[Node], float] | Mapping[str, Acts]


def everywhere(circuit: Circuit) -> Circuit:
    """The nodes of a circuit without their positions, and without edges; effects of a feature add up.

    For steering texts of other lengths than those that a per-position circuit was found on.
    """
    if circuit.positions is None:
        return circuit
    summed: dict[Node, tuple[float, float]] = {}
    for node, effect, error in zip(
        circuit.nodes[:-1], circuit.effect.tolist(), circuit.effect_error.tolist(), strict=False
    ):
        before = summed.get(node._replace(position=None), (0.0, 0.0))
        # Errors of the positions of one feature are of the same prompts, so they add up at most.
        summed[node._replace(position=None)] = (before[0] + effect, before[1] + error)
    last = (float(circuit.effect[-1]), float(circuit.effect_error[-1]))
    effects = circuit.effect.new_tensor([*summed.values(), last])
    none = circuit.weight[:0]
    return Circuit(
        (*summed, circuit.nodes[-1]._replace(position=None)),
        effects[:, 0],
        effects[:, 1],
        circuit.edges[:, :0],
        none,
        none,
        circuit.features,
        None,
        circuit.about,
    )


def ablation(
    circuit: Circuit,
    *,
    to: Mapping[str, Acts] | None = None,
    errors: bool = False,
    dictionaries: Dictionaries | None = None,
) -> Intervention:
    """Sets the features of a circuit to zero, or to their values in `to`.

    `to` holds means (`mean_acts`) or the activations of other prompts (`acts_of`), by site; a node with a
    position has its values there, whatever the length of the text. Error nodes of the circuit are left
    alone, or with `errors` ablated too. Where `dictionaries` are given, they are checked to be those that the
    circuit was found with; pass the same to `applied`.

    >>> from circuits import embedded, find
    >>> from interventions import applied, mean_acts
    >>> model, dictionaries = embedded.model(), embedded.dictionaries()
    >>> task = embedded.task("across_pp", n=20)
    >>> circuit = find(model, task, dictionaries, node=10, progress=False)
    >>> ablation(circuit)
    Ablate(...) of model ...

    Raises:
        ValueError: no feature in the circuit, a site or position that `to` lacks, or other dictionaries.
    """
    _check(circuit, dictionaries)
    nodes = _nodes(circuit, errors=errors)
    if to is not None and (missing := sorted({node.site for node in nodes} - to.keys())):
        raise ValueError(f"`to` has no values for {', '.join(missing)}, of which the circuit has features.")

    def at(nodes: list[Node]) -> Intervention:
        masks = {
            site: torch.zeros(circuit.features[site] + 1, dtype=torch.bool)
            for site in dict.fromkeys(node.site for node in nodes)
        }
        for node in nodes:
            masks[node.site][node.feature] = True  # the error, -1, is the last
        return Ablate(masks, None if to is None else {s: _values(to, s, nodes[0].position) for s in masks})

    return _placed(circuit, nodes, at)


def clamping(circuit: Circuit, *, to: Values = 0.0, dictionaries: Dictionaries | None = None) -> Intervention:
    """Holds the features of a circuit at a value; errors are left alone.

    `to` is one number, a function of the node, or the activations of some prompts, whose mean is taken: at
    the node's own position, or where it has none over all tokens.

    Raises:
        ValueError: no feature in the circuit, or values that do not fit it.
    """
    _check(circuit, dictionaries)

    def value(node: Node) -> float:
        if isinstance(to, Mapping):
            return _mean(to, node)
        return float(to(node)) if callable(to) else float(to)

    def at(nodes: list[Node]) -> Intervention:
        values: dict[str, dict[int, float]] = {}
        for node in nodes:
            values.setdefault(node.site, {})[node.feature] = value(node)
        return Clamp(values)

    return _placed(circuit, _nodes(circuit), at)


@torch.no_grad()
def steering(
    circuit: Circuit,
    model: Model,
    dictionaries: Dictionaries,
    *,
    toward: Int[Tensor, "row pos"],
    away: Int[Tensor, "row pos"],
    scale: float = 1.0,
) -> Intervention:
    """Adds what the circuit's features would write more on the prompts `toward` than on the prompts `away`.

    At each site the sum of the decoder rows of the circuit's features, each times the difference of its mean
    activations, times `scale`: the difference of means of the two kinds of prompts, in the circuit alone.
    What is added at early sites reaches the later ones too, so that less than scale 1 may do. The signs of
    effects would not do in place of the differences: effects are of moving from one prompt to another, and so
    the same for a feature that speaks for an answer and goes as for one that speaks against it and comes.

    A node with a position has its difference there and acts there. For one without, it is of the largest
    activation in each prompt, and acts at every token; limit it by `.at(Where(...))`.

    Raises:
        ValueError: no feature in the circuit, another model or other dictionaries, no prompts, or prompts
            of another length than a per-position circuit has.
    """
    _check(circuit, dictionaries, model)
    nodes = _nodes(circuit)
    sites = list(dict.fromkeys(node.site for node in nodes))
    bound = {site.name: splice for site, splice in splices(model, dictionaries).items()}
    if absent := [site for site in sites if site not in bound]:
        raise ValueError(f"There is no dictionary at {', '.join(absent)}, of which the circuit has features.")
    spliced = {site.name: bound[site.name].dictionary for site in map(model.site, bound)}
    means = []
    for tokens in (toward, away):
        if tokens.ndim != 2 or not tokens.numel():
            raise ValueError(f"Prompts are tokens (row pos), one row or more, not {tuple(tokens.shape)}.")
        if circuit.positions is not None and tokens.shape[1] != len(circuit.positions):
            raise ValueError(
                f"The circuit has {len(circuit.positions)} positions, but the prompts have {tokens.shape[1]} "
                "tokens; `everywhere(circuit)` has none."
            )
        means.append(_typical(model, tokens, spliced, sites, per_position=circuit.positions is not None))

    def at(nodes: list[Node]) -> Intervention:
        vectors: dict[str, Tensor] = {}
        for site in dict.fromkeys(node.site for node in nodes):
            here = [node for node in nodes if node.site == site]
            index = torch.tensor([node.feature for node in here], device=model.device)
            rows = bound[site].decoder_rows(index)
            pos = torch.tensor([node.position or 0 for node in here], device=model.device)
            amount = means[0][site][pos, index] - means[1][site][pos, index]
            vectors[site] = amount.to(rows) @ rows
        return Add(Direction(vectors, model.fingerprint, {"method": "circuit", "nodes": len(nodes)}), scale)

    return _placed(circuit, nodes, at)


def _typical(
    model: Model, tokens: Tensor, spliced: Dictionaries, sites: list[str], *, per_position: bool
) -> dict[str, Tensor]:
    """Mean features at each position (pos feature), or the mean of the largest in each prompt (1 feature)."""
    total: dict[str, Tensor] = {}
    for rows in tokens.split(16):
        found = run(model, rows, spliced).computed
        for site in sites:
            acts = found[site].features
            part = acts.sum(0) if per_position else acts.amax(1).sum(0, keepdim=True)
            total[site] = total[site] + part if site in total else part
    return {site: summed / len(tokens) for site, summed in total.items()}


def _placed(circuit: Circuit, nodes: list[Node], at: Callable[[list[Node]], Intervention]) -> Intervention:
    """An intervention for the nodes of each position, there, one after the other."""
    groups: dict[int | None, list[Node]] = {}
    for node in nodes:
        groups.setdefault(node.position, []).append(node)
    steps = [
        at(group) if position is None else at(group).at(Where(prompt=position, generation=None))
        for position, group in sorted(groups.items(), key=lambda item: item[0] or 0)
    ]
    made_with = circuit.about.get("model", {}).get("fingerprint")
    step = reduce(or_, steps)
    return step if made_with is None else MadeWith(step, made_with)


def _nodes(circuit: Circuit, *, errors: bool = False) -> list[Node]:
    """The nodes of a circuit that are features. Raises ValueError where there are none."""
    found = [node for node in circuit.nodes[:-1] if errors or node.feature != ERROR]
    if not found:
        what = "of error nodes only" if len(circuit) else "empty"
        raise ValueError(f"The circuit is {what}: it has no feature to intervene on.")
    return found


def _mean(values: Mapping[str, Acts], node: Node) -> float:
    if node.site not in values:
        raise ValueError(f"`to` has no values for {node.site}, of which the circuit has features.")
    return _values(values, node.site, node.position).features[..., node.feature].mean().item()


def _values(values: Mapping[str, Acts], site: str, position: int | None) -> Acts:
    """Those at a position, or where there is none, or one value for all, those that there are."""
    acts = values[site]
    n = acts.features.shape[1]
    if position is None or n == 1:
        return acts
    if position >= n:
        raise ValueError(f"`to` has {n} positions at {site}, but the circuit has a node at {position}.")
    return acts.map(lambda x: x[:, position : position + 1])


def _check(circuit: Circuit, dictionaries: Dictionaries | None, model: Model | None = None) -> None:
    """Raises ValueError for another model or other dictionaries than the circuit was found with."""
    made_with: Any = circuit.about.get("model", {}).get("fingerprint")
    if model is not None and made_with not in (None, model.fingerprint):
        raise ValueError(
            f"This circuit was found in another model (fingerprint {made_with[:8]}) than this one "
            f"({model.fingerprint[:8]})."
        )
    known = circuit.about.get("dictionaries", {})
    for site, dictionary in (dictionaries or {}).items():
        expected = known.get(str(site), {}).get("fingerprint")
        if expected is not None and expected != identity(dictionary):
            raise ValueError(
                f"The dictionary at {site} is not the one that this circuit was found with; its features "
                "are others."
            )
