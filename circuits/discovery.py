"""From a behaviour to its circuit.

Two sweeps over the task. The first scores every node of every site and averages over examples; a rule keeps
some. The second works out the edges between those. Both take the examples batch by batch, and what a batch
yields is kept in a folder, if one is given, so that the work can be cut off anywhere and gone on with.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interventions.acts import Acts, Dictionary
from interventions.binding import Dictionaries, Splice, splices
from interventions.fingerprint import fingerprint
from interventions.model import Model
from interventions.sites import Site
from tasks import KL, Batch, Task

from .attribution import Method, integrated_gradients
from .checkpoint import Checkpoint, digest
from .effects import Effects
from .graph import ERROR, OUTPUT, Circuit, Node
from .selection import Keep, keep
from .tally import Tally
from .wiring import Edges, Wired

_PART_BUDGET = 2**26  # entries of the edge matrices that are summed up at once


def find(
    model: Model,
    task: Task,
    dictionaries: Dictionaries,
    *,
    node: Keep | float | int = 100,
    edge: Keep | float | int | None = 1000,
    method: Method = integrated_gradients,
    per_position: bool = False,
    reference: Mapping[str, Acts] | None = None,
    batch_size: int = 16,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Circuit:
    """The sparse feature circuit of a task (Marks et al. 2024, section 3).

    `node` and `edge` say what to keep: `top(100)` or 100, `above(0.1)` or 0.1, `share(0.9)`, or any
    function from scores to a mask; they see scores averaged over examples. `edge=None` leaves edges out.
    Nodes are summed over positions, or with `per_position` told apart, for tasks whose prompts are aligned.
    Unpaired tasks move nodes to `reference` (such as `means(...)`), or to zero. `progress` shows a bar; by
    default on a terminal.

    With a `checkpoint` folder the work is resumable, batch by batch, to the same result bit for bit.

    Raises:
        LookupError: a dictionary at a site that the model does not have.
        ValueError: a dictionary of another width than its site; no usable pair; activations or scores that
            are not finite; no node kept; prompts of several lengths with `per_position`; a checkpoint of
            another run.
        MemoryError: out of memory; says which batch size to try.
    """
    bound = splices(model, dictionaries)
    if not bound:
        raise ValueError("There are no dictionaries; for neurons pass {site: Identity()} for some sites.")
    if torch.is_inference_mode_enabled():
        raise ValueError("Effects are gradients, and there are none under torch.inference_mode().")
    batches = prompts(model, task, batch_size)
    if reference is not None and all(batch.patch is not None for batch in batches):
        raise ValueError("A reference is where unpaired prompts move to; those of this task are all paired.")
    settings = run_settings(model, task, batches, bound, method, reference, per_position, batch_size)
    store = None if checkpoint is None else Checkpoint(checkpoint, settings)
    tally = Tally(bound, _length(batches) if per_position else None)
    scored: dict[int, Effects] = {}

    def effects(number: int) -> Effects:
        found = store.effects(number) if store else scored.get(number)
        if found is None:
            found = method(model, batches[number], task.metric, dictionaries, reference=reference).to("cpu")
            if store:
                store.save_effects(number, found)
            elif edge is not None:
                scored[number] = found
        return found

    with memory_advice(batch_size, checkpoint):
        for number in _bar(range(len(batches)), "effects", progress):
            tally.add(effects(number))
        kept = tally.kept(keep(node))
        found = [] if edge is None else _wire(model, task, batches, bound, kept, effects, store, progress)
    about = {**settings, "examples": tally.examples, "node": str(keep(node)), "versions": versions()}
    about["metric"] = {"clean": tally.clean / tally.examples}
    if not math.isnan(tally.patch):
        about["metric"]["patch"] = tally.patch / tally.examples
    if edge is not None:
        about["edge"] = str(keep(edge))
    labels = tuple(batches[0].labels(model.tokenizer)) if per_position else None
    circuit = _circuit(tally, kept, found, bound, labels, about)
    return circuit if edge is None else circuit.kept(edge=edge)


def _wire(
    model: Model,
    task: Task,
    batches: Sequence[Batch],
    bound: Mapping[Site, Splice],
    kept: Mapping[str, Tensor],
    effects: Callable[[int], Effects],
    store: Checkpoint | None,
    progress: bool | None,
) -> list[Wired]:
    """The edges between kept nodes, part by part, so that only one part is ever held as matrices."""
    found: list[Wired] = []
    of = digest(kept)
    parts = list(_parts({site: int(mask.sum()) for site, mask in kept.items()}))
    on_device = {site: mask.to(model.device) for site, mask in kept.items()}
    for number, targets in enumerate(parts):
        edges = Edges(on_device, targets)
        done = store.restore_edges(number, edges, kept=of) if store else 0
        label = "edges" if len(parts) == 1 else f"edges {number + 1}/{len(parts)}"
        for i in _bar(range(done, len(batches)), label, progress):
            edges.add(model, batches[i], task.metric, bound, effects(i).to(model.device))
            if store:
                store.save_edges(number, edges, kept=of, batches=i + 1)
        found.extend(edges)
    return found


def _parts(counts: Mapping[str, int]) -> Iterator[dict[str, range]]:
    """Ranges of targets whose edges fit the memory that one sweep may take."""
    part: dict[str, range] = {site: range(0) for site in counts}
    room, sources = _PART_BUDGET, 0
    for site, count in counts.items():
        start = 0
        while start < count:
            take = min(count - start, max(1, room // max(1, sources)))
            part[site] = range(start, start + take)
            start += take
            room -= take * sources
            if room <= 0 or start < count:
                yield {**part, OUTPUT: range(0)}
                part, room = {site: range(0) for site in counts}, _PART_BUDGET
        sources += count
    yield {**part, OUTPUT: range(1)}


def _circuit(
    tally: Tally,
    kept: Mapping[str, Tensor],
    found: Iterable[Wired],
    bound: Mapping[Site, Splice],
    labels: tuple[str, ...] | None,
    about: Mapping[str, Any],
) -> Circuit:
    nodes: list[Node] = []
    first: dict[str, int] = {}
    for site, mask in kept.items():
        first[site] = len(nodes)
        n = mask.shape[-1] - 1
        for place in mask.nonzero().tolist():
            feature = ERROR if place[-1] == n else place[-1]
            nodes.append(Node(site, feature, place[0] if len(place) > 1 else None))
    first[OUTPUT] = len(nodes)
    chosen = {site: mask.view(tally.shapes[site]) for site, mask in kept.items()}
    effect = [tally.mean(site)[mask] for site, mask in chosen.items()]
    error = [tally.error(site)[mask] for site, mask in chosen.items()]
    change = (tally.patch - tally.clean) / tally.examples
    ends, weight, weight_error = [], [], []
    for (up, down), target, source, mean, spread in found:
        ends.append(torch.stack([source + first[up], target + first[down]]))
        weight.append(mean)
        weight_error.append(spread)
    none = torch.zeros(0, dtype=torch.float64)
    return Circuit(
        nodes=(*nodes, Node(OUTPUT, 0)),
        effect=torch.cat([*effect, torch.tensor([change], dtype=torch.float64)]),
        effect_error=torch.cat([*error, torch.tensor([torch.nan], dtype=torch.float64)]),
        edges=torch.cat([torch.zeros(2, 0, dtype=torch.long), *ends], dim=1),
        weight=torch.cat([none, *weight]),
        weight_error=torch.cat([none, *weight_error]),
        features={site.name: splice.n_features for site, splice in bound.items()},
        positions=labels,
        about=about,
    )


def _length(batches: Sequence[Batch]) -> int:
    lengths = sorted({batch.clean.shape[1] for batch in batches})
    if len(lengths) > 1:
        raise ValueError(
            f"Nodes per position need prompts of one length; this task has prompts of {lengths} tokens."
        )
    return lengths[0]


def run_settings(
    model: Model,
    task: Task,
    batches: Sequence[Batch],
    bound: Mapping[Site, Splice],
    method: Method,
    reference: Mapping[str, Acts] | None,
    per_position: bool,
    batch_size: int,
) -> dict[str, Any]:
    """What the result hangs on, in plain JSON."""
    tensors = {
        f"{i} {name}": value
        for i, batch in enumerate(batches)
        for name, value in vars(batch).items()
        if isinstance(value, Tensor)
    }
    values = {f"{s} {name}": t for s, acts in (reference or {}).items() for name, t in vars(acts).items()}
    return {
        "model": {"name": repr(model), "fingerprint": model.fingerprint},
        "dictionaries": {
            splice.site.name: {"name": _named(splice.dictionary), "fingerprint": identity(splice.dictionary)}
            for splice in bound.values()
        },
        "task": {"name": task.name, "metric": _named(task.metric), "prompts": digest(tensors)},
        "method": _named(method),
        "reference": digest(values) if values else None,
        "per_position": per_position,
        "batch_size": batch_size,
    }


def identity(dictionary: Dictionary) -> str:
    """A hash of a dictionary's weights; of one without weights, how it prints."""
    given = getattr(dictionary, "fingerprint", None)
    if isinstance(given, str):
        return given
    if isinstance(dictionary, nn.Module):
        return fingerprint(dictionary)
    tensors = {n: t for n, t in getattr(dictionary, "__dict__", {}).items() if isinstance(t, Tensor)}
    return f"{_named(dictionary)} {digest(tensors)}" if tensors else _named(dictionary)


def _named(value: Any) -> str:
    """A name for a function or a value that is the same in another process."""
    if isinstance(value, partial):
        given = [*map(str, value.args), *(f"{key}={v}" for key, v in sorted(value.keywords.items()))]
        return f"{_named(value.func)}({', '.join(given)})"
    code = getattr(value, "__code__", None)
    if code is not None:
        if "<" not in value.__qualname__:
            return value.__name__
        parts = (code.co_code, code.co_names, [c for c in code.co_consts if not hasattr(c, "co_code")])
        return f"{value.__qualname__} {hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}" if kind.__repr__ is object.__repr__ else repr(value)


def prompts(model: Model, task: Task, batch_size: int) -> list[Batch]:
    """A task's batches for a model; where the metric is a divergence, it is that from the model as it is.

    Raises:
        ValueError: a token that the model does not have.
    """
    batches = task.batches(model.tokenizer, batch_size, model.device)
    embedding = getattr(model.module, "get_input_embeddings", lambda: None)()
    size = getattr(embedding, "num_embeddings", None)
    largest = max(
        int(t.max())
        for b in batches
        for t in (b.clean, b.patch, b.answers, b.foils)
        if t is not None and t.numel()
    )
    if size is not None and largest >= size:
        raise ValueError(f"The task has token {largest}, but the model's tokens go from 0 to {size - 1}.")
    if isinstance(task.metric, KL):
        with torch.no_grad():
            batches = [batch.referenced(model.logits(batch.clean)) for batch in batches]
    return batches


def versions() -> dict[str, str]:
    """Of Python and of the packages that results hang on."""
    found = {"python": platform.python_version()}
    for name in ("breadboard-circuits", "torch", "transformers", "nnsight"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _bar(numbers: range, label: str, progress: bool | None) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(numbers, desc=label, unit="batch", disable=None if progress is None else not progress)


@contextmanager
def memory_advice(batch_size: int, checkpoint: str | Path | None) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        words = str(error).lower()
        if not isinstance(error, MemoryError) and not any(
            w in words for w in ("out of memory", "allocate memory")
        ):
            raise
        advice = f"batch_size={batch_size // 2}" if batch_size > 1 else "fewer sites, or a smaller dtype"
        done = f" What was done is kept in {checkpoint}." if checkpoint else ""
        raise MemoryError(f"Out of memory at batch_size={batch_size}: try {advice}.{done}") from error
