"""The circuit: a weighted graph over features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .selection import Keep, above, keep, top

if TYPE_CHECKING:
    import networkx

ERROR = -1
OUTPUT = "output"


class Node(NamedTuple):
    """One feature of one site, at one position or summed over all. Feature -1 is the site's error.

    >>> str(Node("mlp.3", 120)), str(Node("mlp.3", ERROR, position=4))
    ('mlp.3/120', 'mlp.3/error@4')
    """

    site: str
    feature: int
    position: int | None = None

    def __str__(self) -> str:
        feature = "error" if self.feature == ERROR else str(self.feature)
        place = self.site if self.site == OUTPUT else f"{self.site}/{feature}"
        return place if self.position is None else f"{place}@{self.position}"

    @classmethod
    def parse(cls, text: str) -> Node:
        """The node that prints as `text`.

        >>> Node.parse("mlp.3/error@4")
        Node(site='mlp.3', feature=-1, position=4)
        """
        place, _, position = text.partition("@")
        site, _, feature = place.partition("/")
        try:
            index = ERROR if feature == "error" else int(feature or 0)
            return cls(site, index, int(position) if position else None)
        except ValueError:
            raise ValueError(f"Not a node: {text!r}. Nodes look like 'mlp.3/120', 'mlp.3/error@4'.") from None


@dataclass(frozen=True, eq=False)
class Circuit:
    """Features and errors that carry a metric from the input to the output, and the edges between them.

    Immutable; methods give smaller circuits. The last node is the output, whose effect is the change of the
    metric from clean to patch. Effects and weights are means over examples, in units of the metric, of moving
    from clean to patch; each has a standard error.
    """

    nodes: tuple[Node, ...]
    effect: Float[Tensor, " node"]
    effect_error: Float[Tensor, " node"]
    edges: Int[Tensor, "2 edge"]  # indices of nodes: upstream, downstream
    weight: Float[Tensor, " edge"]
    weight_error: Float[Tensor, " edge"]
    features: Mapping[str, int]  # how many features each site's dictionary has; sites in the model's order
    positions: tuple[str, ...] | None = None  # what stands at each position, where nodes have positions
    about: Mapping[str, Any] = field(default_factory=dict)  # task, model, dictionaries, settings, versions

    def __post_init__(self) -> None:
        n, m = len(self.nodes), self.edges.shape[1]
        if not self.nodes or self.nodes[-1].site != OUTPUT:
            raise ValueError("The last node of a circuit is its output.")
        if len(self.effect) != n or len(self.effect_error) != n or len(self.weight) != m:
            raise ValueError(f"{n} nodes and {m} edges do not fit the effects and weights given.")
        if m and not 0 <= int(self.edges.min()) <= int(self.edges.max()) < n:
            raise ValueError(f"An edge ends at a node that does not exist; there are {n} nodes.")

    def __len__(self) -> int:
        """How many nodes there are besides the output."""
        return len(self.nodes) - 1

    def __repr__(self) -> str:
        task = self.about.get("task", {}).get("name", "")
        nodes, edges = len(self), self.edges.shape[1]
        counts = f"{nodes} node{'s' * (nodes != 1)}, {edges} edge{'s' * (edges != 1)}"
        return f"Circuit({f'{task!r}, ' if task else ''}{counts})"

    @cached_property
    def index(self) -> Mapping[Node, int]:
        """Where each node stands in `nodes`."""
        return {node: i for i, node in enumerate(self.nodes)}

    def __contains__(self, node: Node) -> bool:
        return node in self.index

    # --- smaller circuits -----------------------------------------------------------------------------------

    def kept(
        self, *, node: Keep | float | int | None = None, edge: Keep | float | int | None = None
    ) -> Circuit:
        """The nodes and edges that a rule keeps; an edge goes where an end of it goes."""
        chosen = self._everything()
        if node is not None:
            chosen[:-1] = keep(node)(self.effect[:-1])
        smaller = self._with(chosen)
        return smaller if edge is None else smaller._with_edges(keep(edge)(smaller.weight))

    def above(self, node: float, edge: float = 0.0) -> Circuit:
        """The nodes whose effect, and the edges whose weight, exceeds a threshold in size."""
        return self.kept(node=above(node), edge=above(edge))

    def top(self, nodes: int | None = None, edges: int | None = None) -> Circuit:
        """The largest so many nodes, and the largest so many edges among them."""
        return self.kept(
            node=None if nodes is None else top(nodes), edge=None if edges is None else top(edges)
        )

    def subgraph(self, nodes: Iterable[Node] | Callable[[Node], bool]) -> Circuit:
        """Some nodes, listed or chosen by a predicate, the output, and the edges among them."""
        if callable(nodes):
            wanted = {node for node in self.nodes if nodes(node)}
        else:
            wanted = set(nodes)
            missing = [str(node) for node in wanted if node not in self.index]
            if missing:
                raise KeyError(f"Not in this circuit: {', '.join(sorted(missing)[:5])}.")
        chosen = torch.tensor([node in wanted for node in self.nodes])
        chosen[-1] = True
        return self._with(chosen)

    def connected(self) -> Circuit:
        """The nodes from which edges lead to the output."""
        chosen = torch.zeros(len(self.nodes), dtype=torch.bool)
        chosen[-1] = True
        up, down = self.edges
        while True:
            more = chosen.clone()
            more[up[chosen[down]]] = True
            if torch.equal(more, chosen):
                return self._with(chosen)
            chosen = more

    def _everything(self) -> Tensor:
        return torch.ones(len(self.nodes), dtype=torch.bool)

    def _with(self, chosen: Bool[Tensor, " node"]) -> Circuit:
        number = chosen.cumsum(0) - 1
        inside = chosen[self.edges].all(0) if self.edges.numel() else self.edges.new_zeros(0).bool()
        return replace(
            self,
            nodes=tuple(node for node, kept in zip(self.nodes, chosen.tolist(), strict=True) if kept),
            effect=self.effect[chosen],
            effect_error=self.effect_error[chosen],
            edges=number[self.edges[:, inside]],
            weight=self.weight[inside],
            weight_error=self.weight_error[inside],
        )

    def _with_edges(self, chosen: Bool[Tensor, " edge"]) -> Circuit:
        return replace(
            self,
            edges=self.edges[:, chosen],
            weight=self.weight[chosen],
            weight_error=self.weight_error[chosen],
        )

    # --- other forms ----------------------------------------------------------------------------------------

    def masks(self) -> dict[str, Bool[Tensor, "*pos node"]]:
        """For every site, which nodes are in the circuit; the last is the error."""
        shape = () if self.positions is None else (len(self.positions),)
        masks = {site: torch.zeros(*shape, n + 1, dtype=torch.bool) for site, n in self.features.items()}
        for site, feature, position in self.nodes[:-1]:
            masks[site][feature if position is None else (position, feature)] = True
        return masks

    def to_networkx(self) -> networkx.DiGraph:
        """A directed graph over `Node`s with `effect` on nodes and `weight` on edges, and their errors."""
        import networkx

        graph = networkx.DiGraph(**{key: value for key, value in self.about.items()})
        values = zip(self.nodes, self.effect.tolist(), self.effect_error.tolist(), strict=True)
        for node, effect, error in values:
            graph.add_node(node, effect=effect, effect_error=error, error_node=node.feature == ERROR)
        values = zip(self.edges.T.tolist(), self.weight.tolist(), self.weight_error.tolist(), strict=True)
        for (up, down), weight, error in values:
            graph.add_edge(self.nodes[up], self.nodes[down], weight=weight, weight_error=error)
        return graph

    def summary(self, *, most: int = 10) -> str:
        """A table of the largest nodes, with where each of them sends its effect."""
        lines = [repr(self)]
        out: dict[int, list[tuple[float, int]]] = {}
        for (up, down), weight in zip(self.edges.T.tolist(), self.weight.tolist(), strict=True):
            out.setdefault(up, []).append((weight, down))
        order = self.effect[:-1].abs().sort(descending=True, stable=True).indices[:most].tolist()
        width = max([4, *(len(str(self.nodes[i])) for i in order)])
        lines.append(f"{'node':{width}}  {'effect':>17}  sends most to")
        for i in order:
            value = f"{self.effect[i]:+.3f} ± {self.effect_error[i]:.3f}"
            sends = sorted(out.get(i, []), key=lambda e: -abs(e[0]))[:2]
            to = ", ".join(f"{self.nodes[down]} ({weight:+.3f})" for weight, down in sends)
            lines.append(f"{self.nodes[i]!s:{width}}  {value:>17}  {to}")
        if len(self) > most:
            lines.append(f"... and {len(self) - most} more")
        return "\n".join(lines)

    def save(self, folder: str | Path) -> Path:
        """Writes a folder of safetensors and JSON that loads without the model."""
        from .files import save_circuit

        return save_circuit(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Circuit:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: nothing is there.
            ValueError: files that are cut off, changed, or of another format.
        """
        from .files import load_circuit

        return load_circuit(folder)
