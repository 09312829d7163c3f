"""Does the circuit do what the model does?

Everything outside a circuit is ablated, site after site: features and errors are taken anew from what the
ablations before have left, and those outside are set to a reference. With `m` the metric, averaged over
examples,

    faithfulness = (m(circuit) - m(nothing)) / (m(model) - m(nothing)),

which is 1 for a circuit that does all that the model does, and completeness is the same of the complement,
near 0 for a circuit that leaves nothing out (Marks et al. 2024, section 3.3).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interventions.acts import Acts
from interventions.binding import Dictionaries, splices
from interventions.edits import Ablate
from interventions.model import Model
from interventions.splice import applied, run
from tasks import Batch, Task

from .discovery import identity, prompts
from .effects import measured
from .graph import Circuit

_FEW = 3  # prompts whose mean is still mostly about themselves

Errors = Literal["scored", "kept", "removed"]
# Gives the values that ablated nodes take on a batch; None stands for zero.
Ablation = Callable[["Evaluation", Batch], Mapping[str, Acts] | None]


def mean_ablation(evaluation: Evaluation, batch: Batch) -> Mapping[str, Acts]:
    """What is ablated takes its mean over the patched prompts, position by position."""
    return evaluation.means(batch.clean.shape[1])


def zero_ablation(evaluation: Evaluation, batch: Batch) -> None:
    """What is ablated is set to zero."""


def resample_ablation(evaluation: Evaluation, batch: Batch) -> Mapping[str, Acts]:
    """What is ablated takes its value on the patched prompt of the same pair."""
    if batch.patch is None:
        raise ValueError("Resample ablation needs pairs, and this task has no patched prompts.")
    return evaluation.acts(batch.patch)


@dataclass(frozen=True)
class Score:
    """A ratio of metrics with a bootstrap interval over examples."""

    value: float
    low: float
    high: float
    nodes: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] with {self.nodes} nodes"


class Evaluation:
    """A task set up for testing circuits: the metric of the model and of nothing are worked out once.

    `errors` says what becomes of error nodes: "scored" keeps those in the circuit, "kept" keeps all,
    "removed" keeps none. Sites in blocks before `start_layer` are left alone, as in the paper, whose
    circuits are tested from the third layer on. `level` is the coverage of the intervals.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        dictionaries: Dictionaries,
        *,
        ablation: Ablation = mean_ablation,
        errors: Errors = "scored",
        start_layer: int = 0,
        batch_size: int = 32,
        level: float = 0.95,
    ):
        self.model = model
        self.task = task
        self.batches = prompts(model, task, batch_size)
        self.bound = splices(model, dictionaries)
        if errors not in get_args(Errors):
            raise ValueError(f"Errors are {', '.join(get_args(Errors))}; {errors!r} is none of these.")
        if not 0 < level < 1:
            raise ValueError(f"The level of an interval lies between 0 and 1; {level} does not.")
        if not 0 <= start_layer < len(model.blocks):
            raise ValueError(f"start_layer goes from 0 to {len(model.blocks) - 1}; it is {start_layer}.")
        self.dictionaries = {
            site: splice.dictionary
            for site, splice in self.bound.items()
            if not start_layer or (model.block_of(site) or 0) >= start_layer
        }
        if not self.dictionaries:
            raise ValueError(
                f"There is no dictionary at or after layer {start_layer}: nothing could be ablated."
            )
        self._ablation, self._errors, self._level = ablation, errors, level
        self._means: dict[int, dict[str, Acts]] = {}
        with torch.no_grad():
            values = [measured(model, batch.clean, task.metric, batch) for batch in self.batches]
        self.model_metric = torch.cat(values).double().cpu()
        self.nothing_metric = self.metric({})
        change = self.model_metric - self.nothing_metric
        if len(change) > 1 and change.mean().abs() < 2 * change.std() / len(change) ** 0.5:
            whole, nothing = self.model_metric.mean(), self.nothing_metric.mean()
            warnings.warn(
                f"On {task.name} the model (mean metric {whole:.3g}) is not clearly apart from one with "
                f"everything ablated ({nothing:.3g}): ratios of the two say little.",
                stacklevel=2,
            )

    def acts(self, tokens: Tensor) -> dict[str, Acts]:
        """Features and errors of the unchanged model."""
        with torch.no_grad():
            return run(self.model, tokens, self.dictionaries).computed

    def means(self, n_pos: int) -> dict[str, Acts]:
        """Mean features `(pos feature)` and errors over the task's patched prompts of one length."""
        if n_pos not in self._means:
            batches = [batch for batch in self.batches if batch.clean.shape[1] == n_pos]
            if (count := sum(map(len, batches))) < _FEW:
                warnings.warn(
                    f"The mean over prompts of {n_pos} tokens is one of {count} only; with so few, "
                    "resample_ablation says more.",
                    stacklevel=2,
                )
            self._means[n_pos] = means(self.model, batches, self.dictionaries)
        return self._means[n_pos]

    def metric(self, masks: Mapping[str, Bool[Tensor, "*pos node"]]) -> Float[Tensor, " example"]:
        """The metric of every example with all nodes ablated but those in the masks. Last node: the error."""
        names = [site.name for site in self.dictionaries]
        masks = {str(site): mask for site, mask in masks.items()}
        known = {site.name for site in self.bound}
        if unknown := [site for site in masks if site not in known]:
            raise ValueError(f"There is no dictionary at {', '.join(unknown)}; there are {', '.join(known)}.")
        n_nodes = {site.name: splice.n_features + 1 for site, splice in self.bound.items()}
        out = {}
        for name in names:
            inside = masks.get(name)
            outside = torch.ones(n_nodes[name], dtype=torch.bool) if inside is None else ~inside
            if self._errors != "scored":
                outside = outside.clone()
                outside[..., -1] = self._errors == "removed"
            out[name] = outside
        values = []
        with torch.no_grad():
            for batch in self.batches:
                edit = Ablate(out, self._ablation(self, batch))
                with applied(self.model, edit, dictionaries=self.dictionaries):
                    values.append(measured(self.model, batch.clean, self.task.metric, batch))
        return torch.cat(values).double().cpu()

    def faithfulness(self, circuit: Circuit) -> Score:
        """How much of what the model does the circuit does."""
        self.check(circuit)
        return self._score(self.metric(circuit.masks()), len(circuit))

    def completeness(self, circuit: Circuit) -> Score:
        """How much of what the model does is still done without the circuit."""
        self.check(circuit)
        return self._score(self.metric({site: ~mask for site, mask in circuit.masks().items()}), len(circuit))

    def curve(self, circuit: Circuit, sizes: Sequence[int] | None = None, *, random: int = 5) -> Curve:
        """Faithfulness of the largest so many nodes of a circuit, beside random circuits of the same sizes.

        Random circuits are drawn from the nodes that are active on the task's prompts, `random` of each size.
        Nodes at sites before `start_layer` are left out of all.
        """
        self.check(circuit)
        tested = {site.name for site in self.dictionaries}
        circuit = circuit.subgraph(lambda node: node.site in tested)
        sizes = _sizes(len(circuit)) if sizes is None else sorted({min(n, len(circuit)) for n in sizes})
        found = [self.faithfulness(circuit.top(nodes=size)) for size in sizes]
        missing = [self.completeness(circuit.top(nodes=size)) for size in sizes]
        pool = self._active(circuit.positions is not None)
        drawn = []
        for size in sizes:
            values = []
            for seed in range(random):
                masks = _random_masks(pool, size, seed)
                values.append(self._score(self.metric(masks), size).value)
            drawn.append(tuple(values))
        active = sum(int(mask.sum()) for mask in pool.values())
        return Curve(tuple(sizes), tuple(found), tuple(missing), tuple(drawn), active, self.task.name)

    def check(self, circuit: Circuit) -> None:
        """Refuses a circuit of another model, of other dictionaries, or of prompts of another length.

        Raises:
            ValueError: what differs is named.
        """
        made_of = circuit.about.get("model", {}).get("fingerprint")
        if made_of not in (None, self.model.fingerprint):
            raise ValueError(
                f"This circuit was found in another model, {circuit.about['model']['name']}, "
                f"not in {self.model}."
            )
        for name, ours in self._identities.items():
            theirs = circuit.about.get("dictionaries", {}).get(name, {}).get("fingerprint")
            if theirs not in (None, ours):
                raise ValueError(f"This circuit was found with another dictionary at {name}.")
        missing = [site for site in circuit.features if site not in {s.name for s in self.bound}]
        if missing:
            raise ValueError(f"This circuit has nodes at {', '.join(missing)}, where no dictionary is given.")
        lengths = sorted({batch.clean.shape[1] for batch in self.batches})
        if circuit.positions is not None and lengths != [len(circuit.positions)]:
            raise ValueError(
                f"This circuit has nodes at {len(circuit.positions)} positions; "
                f"the prompts have {lengths} tokens."
            )

    @cached_property
    def _identities(self) -> dict[str, str]:
        return {splice.site.name: identity(splice.dictionary) for splice in self.bound.values()}

    def _score(self, values: Float[Tensor, " example"], nodes: int) -> Score:
        columns = torch.stack([values, self.nothing_metric, self.model_metric])
        draws = torch.randint(len(values), (1000, len(values)), generator=torch.Generator().manual_seed(0))
        means = torch.cat([columns.mean(1)[:, None], columns[:, draws].mean(2)], dim=1)
        ratio = (means[0] - means[1]) / (means[2] - means[1])
        tail = (1 - self._level) / 2
        low, high = ratio[1:].quantile(torch.tensor([tail, 1 - tail], dtype=ratio.dtype)).tolist()
        return Score(ratio[0].item(), low, high, nodes)

    def _active(self, per_position: bool) -> dict[str, Bool[Tensor, "*pos node"]]:
        """The nodes that are not zero on some prompt; of errors, all."""
        pool: dict[str, Tensor] = {}
        for batch in self.batches:
            for tokens in (batch.clean, batch.patch):
                if tokens is None:
                    continue
                for site, acts in self.acts(tokens).items():
                    active = (acts.features != 0).any(0)
                    active = active if per_position else active.any(0)
                    active = torch.nn.functional.pad(active, (0, 1), value=True).cpu()
                    pool[site] = pool[site] | active if site in pool else active
        return pool


def faithfulness(model: Model, circuit: Circuit, task: Task, dictionaries: Dictionaries, **settings) -> Score:
    """How much of what the model does on a task the circuit does; `settings` are those of `Evaluation`."""
    return Evaluation(model, task, dictionaries, **settings).faithfulness(circuit)


def completeness(model: Model, circuit: Circuit, task: Task, dictionaries: Dictionaries, **settings) -> Score:
    """How much of it is still done without the circuit; `settings` are those of `Evaluation`."""
    return Evaluation(model, task, dictionaries, **settings).completeness(circuit)


@torch.no_grad()
def means(model: Model, batches: Iterable[Batch], dictionaries: Dictionaries) -> dict[str, Acts]:
    """Mean features `(pos feature)` and errors `(pos d_model)` over patched prompts.

    Over clean ones where there are no patched ones. All prompts must have the same length. The result serves
    as `reference` of `find` too.
    """
    batches = list(batches)
    lengths = sorted({batch.clean.shape[1] for batch in batches})
    if len(lengths) > 1:
        raise ValueError(
            f"A mean, position by position, is of prompts of one length; these have {lengths} tokens."
        )
    sums: dict[str, Acts] = {}
    dtypes: dict[str, torch.dtype] = {}
    count = 0
    for batch in batches:
        tokens = batch.clean if batch.patch is None else batch.patch
        count += len(tokens)
        for site, acts in run(model, tokens, dictionaries).computed.items():
            summed = acts.map(lambda t: t.sum(0, dtype=torch.float64))
            sums[site] = sums[site] + summed if site in sums else summed
            dtypes[site] = acts.features.dtype
    return {site: acts.map(lambda t, d=dtypes[site]: (t / count).to(d)) for site, acts in sums.items()}


@dataclass(frozen=True)
class Curve:
    """Faithfulness and completeness by size of the circuit, and the faithfulness of random circuits."""

    sizes: tuple[int, ...]
    faithfulness: tuple[Score, ...]
    completeness: tuple[Score, ...]
    random: tuple[tuple[float, ...], ...]
    active: int  # how many nodes are active on the task's prompts
    task: str = ""

    def __str__(self) -> str:
        lines = [f"{'nodes':>6} {'of active':>9}  {'faithfulness':^22} {'completeness':^22} {'random':>7}"]
        for size, good, bad, random in zip(
            self.sizes, self.faithfulness, self.completeness, self.random, strict=True
        ):
            mean = sum(random) / len(random) if random else float("nan")
            lines.append(
                f"{size:6d} {size / self.active:9.1%}  "
                f"{good.value:6.3f} [{good.low:6.3f},{good.high:6.3f}] "
                f"{bad.value:6.3f} [{bad.low:6.3f},{bad.high:6.3f}] {mean:7.3f}"
            )
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        import json

        from interventions.writing import write

        write(Path(path), json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> Curve:
        """Reads what `save` wrote."""
        from .files import read_json

        raw = read_json(Path(path))
        scores = {key: tuple(Score(**s) for s in raw[key]) for key in ("faithfulness", "completeness")}
        random = tuple(tuple(values) for values in raw["random"])
        return cls(tuple(raw["sizes"]), **scores, random=random, active=raw["active"], task=raw["task"])


def _sizes(largest: int) -> list[int]:
    """About a dozen sizes, evenly spaced on a logarithmic scale."""
    if largest < 1:
        raise ValueError("An empty circuit has no curve.")
    return sorted({round(largest ** (k / 11)) for k in range(12)})


def _random_masks(pool: Mapping[str, Tensor], size: int, seed: int) -> dict[str, Tensor]:
    flat = torch.cat([mask.flatten() for mask in pool.values()])
    places = flat.nonzero()[:, 0]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros_like(flat)
    chosen[places[order[:size]]] = True
    parts = chosen.split([mask.numel() for mask in pool.values()])
    return {site: part.view(pool[site].shape) for site, part in zip(pool, parts, strict=True)}
