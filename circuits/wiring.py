"""How much of a node's effect runs through each later node, directly.

For a kept node d of an example, the edge from an earlier node u is

    (dm/dd) * (dd/du with every other site held) * (u_patch - u_clean),

summed over positions unless nodes are kept per position, and averaged over examples (Marks et al. 2024, 2.3).
One *cut* pass, in which gradients stop at every site, serves all of them:

- which sites are joined is read off autograd: a backward pass from one site reaches the sites it reads
  directly;
- a target enters as its *covector* in activation space, the encoder row times dm/dd, so that no tensor of the
  dictionary's size is differentiated;
- examples do not touch each other, and where the path between two sites does not mix positions (found by
  probing it), positions neither: one backward *slot* carries a target of every example, or of every token;
- a source leaves as a dot product with its decoder row, for those nodes only that differ from clean to patch.

All of it is the chain rule; nothing is approximated. For every node, its edges to all others add up to its
effect where that is its change times its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from interventions.binding import Dictionaries, Splice, splices
from interventions.model import Model
from interventions.sites import Site
from interventions.splice import splicing
from tasks import Batch

from .effects import Effects, Metric, SiteEffects, measured
from .graph import OUTPUT
from .ragged import padded
from .slots import Kept, Targets, pulled, slots
from .tally import standard_error

Pair = tuple[str, str]  # upstream, downstream
# A joined pair: rows of its targets, rows of their sources, mean weights over examples, and standard errors.
Wired = tuple[Pair, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Source:
    """The kept nodes of one site that change, in one batch."""

    splice: Splice
    n_rows: int
    token: Int[Tensor, " n"]
    feature: Int[Tensor, " n"]
    column: Int[Tensor, " n"]
    delta: Float[Tensor, " n"]
    error_column: Int[Tensor, " token"]  # -1 where the error is not kept
    error_delta: Float[Tensor, "token d_model"]

    @classmethod
    def of(cls, splice: Splice, effects: SiteEffects, kept: Kept, pos: Int[Tensor, " token"]) -> _Source:
        column = kept.at(pos[effects.token], effects.feature)
        chosen = (column >= 0) & (effects.delta != 0)
        return cls(
            splice, len(kept), effects.token[chosen], effects.feature[chosen], column[chosen],
            effects.delta[chosen], kept.at(pos, splice.n_features), effects.error_delta.flatten(0, 1),
        )  # fmt: skip

    def scores(
        self, covector: Float[Tensor, "token slot d_model"], at: Site
    ) -> Iterator[tuple[Int[Tensor, " t"], Int[Tensor, "t m"], Float[Tensor, "t slot m"]]]:
        """Tokens, columns of their sources (-1 for none), and each covector times what each writes `at`."""
        n_tokens, n_slots, width = covector.shape
        decoder = self.splice.decoder(at)
        for some, entry, inside in padded(self.token, n_tokens, max(width, n_slots)):
            scores = decoder.readout(covector[some], self.feature[entry]) * self.delta[entry][:, None]
            yield some, torch.where(inside, self.column[entry], -1), scores
        if at == self.splice.site and bool((self.error_column >= 0).any()):
            scores = torch.einsum("tsd,td->ts", covector, self.error_delta.to(covector.dtype))[..., None]
            yield torch.arange(n_tokens, device=covector.device), self.error_column[:, None], scores


class Edges:
    """Sums up direct effects over batches, for targets and sources among kept nodes.

    `kept` maps a site to a mask over its nodes, of shape `(node)` or `(pos node)`; `targets` restricts the
    downstream ends to a range of each site's kept nodes, so that a large circuit can be wired in parts.
    Memory is the number of targets times the number of sources, for each pair of sites that are joined.
    """

    def __init__(self, kept: Mapping[str, Tensor], targets: Mapping[str, range] | None = None):
        self.kept = {site: Kept.of(mask) for site, mask in kept.items()}
        self.targets = dict(targets or {site: range(len(k)) for site, k in self.kept.items()})
        self.targets.setdefault(OUTPUT, range(1))
        self.sums: dict[Pair, Tensor] = {}
        self.squares: dict[Pair, Tensor] = {}
        self.examples = 0

    def add(
        self, model: Model, batch: Batch, metric: Metric, bound: Mapping[Site, Splice], effects: Effects
    ) -> None:
        """Adds the edges of one batch, whose nodes have these effects."""
        n_batch, n_pos = batch.clean.shape
        for site, kept in self.kept.items():
            kept.check(site, n_pos)
        cut = _CutPass.of(model, batch, metric, bound)
        example = torch.arange(n_batch, device=model.device).repeat_interleave(n_pos)
        pos = torch.arange(n_pos, device=model.device).repeat(n_batch)
        sources: dict[Site, list[_Source]] = {site: [] for site in bound}  # by the site that they write
        for site, splice in bound.items():
            if len(self.kept[site.name]):
                source = _Source.of(splice, effects[site.name], self.kept[site.name], pos)
                for written in (site, *splice.later):
                    sources[written].append(source)
        sources = {site: writing for site, writing in sources.items() if writing}
        for site, splice in bound.items():
            rows, read = self.targets[site.name], cut.reads[site]
            if not rows or not read.requires_grad:
                continue
            kept = self.kept[site.name]
            targets = Targets.of(splice, read, effects, kept, rows, pos)
            found = _Blocks(n_batch, len(rows))
            upstream = [up for up in sources if up < site]
            leaves = [cut.leaves[up] for up in upstream]
            for cotangent, row in slots(targets, read, leaves, example):
                for up, covector in zip(upstream, pulled(read, leaves, cotangent), strict=True):
                    if covector is not None:
                        by_token = covector.flatten(1, 2).transpose(0, 1)
                        for source in sources[up]:
                            found.add(source, up, by_token, row, example)
            self._sum(found, site.name)
        if self.targets[OUTPUT]:
            found = _Blocks(n_batch, 1)
            leaves = [cut.leaves[up] for up in sources]
            reached = torch.autograd.grad(cut.metric.sum(), leaves, allow_unused=True)
            row = torch.zeros_like(example)[:, None]
            for up, covector in zip(sources, reached, strict=True):
                for source in sources[up] if covector is not None else ():
                    found.add(source, up, covector.flatten(0, 1)[:, None], row, example)
            self._sum(found, OUTPUT)
        self.examples += n_batch

    def _sum(self, found: _Blocks, site: str) -> None:
        for up, block in found.blocks.items():
            pair = (up, site)
            for total, value in ((self.sums, block.sum(0)), (self.squares, block.square().sum(0))):
                value = value.cpu().double()
                total[pair] = total[pair] + value if pair in total else value

    def tensors(self) -> dict[str, Tensor]:
        """What has been summed up so far, by names that `restore` knows."""
        parts = (("sum", self.sums), ("square", self.squares))
        return {f"{part} {up} {down}": x for part, sums in parts for (up, down), x in sums.items()}

    def restore(self, tensors: Mapping[str, Tensor], examples: int) -> None:
        """Goes on from what `tensors` gave after so many examples."""
        self.examples = examples
        for name, value in tensors.items():
            part, up, down = name.split(" ")
            (self.sums if part == "sum" else self.squares)[up, down] = value

    def __iter__(self) -> Iterator[Wired]:
        """The edges that are not zero, for each joined pair."""
        n = self.examples
        for pair, total in sorted(self.sums.items()):
            down, up = total.nonzero(as_tuple=True)
            mean = total[down, up] / n
            error = standard_error(mean, self.squares[pair][down, up], n)
            yield pair, down + self.targets[pair[1]].start, up, mean, error


def edges(
    model: Model,
    batch: Batch,
    metric: Metric,
    dictionaries: Dictionaries,
    effects: Effects,
    kept: Mapping[str, Bool[Tensor, "*pos node"]],
) -> dict[Pair, Float[Tensor, "*down *up"]]:
    """Direct effects between kept nodes: a sparse matrix (down, up) for each pair of sites that are joined.

    Both ends are indexed as in `kept`: `(node node)`, or `(pos node pos node)` where nodes are kept per
    position; the last node of a site is its error. The metric is a site of one node, named `output`.
    Averaged over examples.
    """
    wires = Edges(kept)
    wires.add(model, batch, metric, splices(model, dictionaries), effects)
    places = {site: kept[site].nonzero().T.cpu() for site in kept} | {OUTPUT: torch.zeros(1, 1).long()}
    shapes = {site: mask.shape for site, mask in kept.items()} | {OUTPUT: (1,)}
    found = {}
    for (up, down), target, source, mean, _ in wires:
        index = torch.cat([places[down][:, target], places[up][:, source]])
        found[up, down] = torch.sparse_coo_tensor(
            index, mean, (*shapes[down], *shapes[up]), check_invariants=True
        ).coalesce()
    return found


@dataclass(frozen=True)
class _CutPass:
    """A pass on the clean prompts whose gradients stop at every site."""

    reads: dict[Site, Tensor]  # what the dictionary of each site reads
    leaves: dict[Site, Tensor]  # what flows on from their sites
    metric: Float[Tensor, " batch"]

    @classmethod
    def of(cls, model: Model, batch: Batch, metric: Metric, bound: Mapping[Site, Splice]) -> _CutPass:
        reads: dict[Site, Tensor] = {}
        leaves: dict[Site, Tensor] = {}

        def rewrite(splice: Splice, entered: Tensor, left: Tensor) -> Tensor:
            reads[splice.site] = entered
            leaves[splice.site] = left.detach().requires_grad_()
            skip = splice.skip(entered)
            return leaves[splice.site] + (0 if skip is None else skip - skip.detach())

        # Fused attention has no rule for batched gradients; plain products and softmax do.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), splicing(model, bound, rewrite):
            value = measured(model, batch.clean, metric, batch)
        return cls(reads, leaves, value)


class _Blocks:
    """Per-example edges from each upstream site to one downstream site."""

    def __init__(self, n_batch: int, n_rows: int):
        self.shape = (n_batch, n_rows)
        self.blocks: dict[str, Float[Tensor, "batch down up"]] = {}

    def add(
        self,
        source: _Source,
        at: Site,
        covector: Float[Tensor, "token slot d_model"],
        row: Int[Tensor, "token slot"],
        example: Int[Tensor, " token"],
    ) -> None:
        n_batch, n_rows = self.shape
        name = source.splice.site.name
        if name not in self.blocks:
            self.blocks[name] = covector.new_zeros(n_batch, n_rows, source.n_rows)
        flat = self.blocks[name].view(-1)
        for some, column, scores in source.scores(covector, at):
            inside = (row[some] >= 0)[:, :, None] & (column >= 0)[:, None, :]
            line = example[some][:, None] * n_rows + row[some]
            index = line[:, :, None] * source.n_rows + column[:, None, :]
            flat.index_add_(0, index[inside], scores[inside].to(flat.dtype))
