"""Why a model of children's stories says "she" after Lily and "he" after Tim.

python docs/examples/pronouns.py --weights FOLDER --out results/pronouns

FOLDER holds stories260K, a Llama of 260,032 parameters. docs/pronouns.md says what comes out.
"""

from __future__ import annotations

import argparse
import os
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import circuits
import tasks
from circuits import Circuit, Curve, Evaluation, Node, mean_ablation, resample_ablation
from circuits.curves import plot_curve
from circuits.drawing import draw
from circuits.evaluation import Ablation
from interventions.acts import Acts, Dictionary
from interventions.dictionaries import (
    SparseCoder,
    load,
    measures,
    own_samples,
    quality,
    recipes,
    save,
    table,
    train,
)
from interventions.edits import Ablate
from interventions.model import Model
from interventions.splice import applied, run
from tasks import Batch, Task
from tasks.words import BOYS, GIRLS

_SHARED = Path(__file__).resolve().parents[3] / "shared" / "weights"
WEIGHTS = os.environ.get("BREADBOARD_WEIGHTS", str(_SHARED))
SIZES = (1, 3, 10, 20, 30, 50, 100, 200, 300, 500, 1000)


def own_text(model: Model, rows: int, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 256 tokens that the model makes up, to learn from and to test on. Kept in a folder."""
    path = folder / "text.pt"
    if not path.exists():
        torch.save(own_samples(model, rows=rows, length=256), path)
    text = torch.load(path)
    return text[len(text) // 16 :], text[: len(text) // 16]


def learned(
    model: Model, text: torch.Tensor, folder: Path, *, features: int, k: int, steps: int
) -> dict[str, SparseCoder]:
    """A dictionary for all that is written: embedding, attention, MLPs and the stream. Kept in a folder."""
    if not folder.exists():
        sites = [site for site in model.sites if not site.split(".")[0].endswith("_in")]
        found = train(
            model,
            text,
            sites,
            n_features=features,
            recipe=recipes.BatchTopK(k, start=4 * k),
            steps=steps,
            pool=2**16,
        )
        save(found, folder)
    return load(folder)


def contexts(
    model: Model,
    dictionaries: Mapping[str, Dictionary],
    nodes: Sequence[Node],
    text: torch.Tensor,
    *,
    most: int = 4,
    before: int = 16,
) -> dict[Node, list[str]]:
    """Where each feature is most active, one place for each row of text: its token in brackets."""
    settings: dict[str, Any] = {"n": most, "before": before, "after": 2, "batch_size": 64}
    found = measures.contexts(model, dictionaries, text, by_site(nodes), **settings)
    return {
        node: [str(context).lstrip() for context in found[node.site, node.feature].contexts] for node in nodes
    }


def by_name(
    model: Model, dictionaries: Mapping[str, Dictionary], batches: Sequence[Batch], nodes: Sequence[Node]
) -> dict[Node, dict[str, float]]:
    """How active each feature is on prompts with each name: summed over positions, mean over prompts."""
    values: dict[Node, dict[str, list[float]]] = {node: {} for node in nodes}
    for batch in batches:
        prompts = [model.tokenizer.decode(tokens) for tokens in batch.clean]
        names = [next(name for name in GIRLS + BOYS if name in prompt) for prompt in prompts]
        acts = run(model, batch.clean, {node.site: dictionaries[node.site] for node in nodes}).computed
        for node in nodes:
            total = acts[node.site].features[..., node.feature].sum(1).tolist()
            for name, value in zip(names, total, strict=True):
                values[node].setdefault(name, []).append(value)
    return {node: {name: sum(v) / len(v) for name, v in found.items()} for node, found in values.items()}


def described(found: Mapping[str, float], most: int = 4) -> str:
    """The names on which a feature is most active, and its means over girls' and over boys' names."""
    loudest = sorted(found, key=lambda name: -found[name])[:most]
    words = [f"{name} {found[name]:.1f}" for name in loudest if found[name] > 0.05]
    for group, names in (("girls", GIRLS), ("boys", BOYS)):
        values = [found[name] for name in names if name in found]
        words.append(f"{group} {sum(values) / max(1, len(values)):.2f}")
    return ", ".join(words)


def apart(task: Task) -> tuple[Task, Task]:
    """The pairs of every other name, and the pairs that have none of those names."""
    some = {*GIRLS[::2], *BOYS[::2]}
    named = [{name in some for name in GIRLS + BOYS if name in f"{p.clean} {p.patch}"} for p in task.pairs]
    pairs = list(zip(task.pairs, named, strict=True))
    first, second = ([pair for pair, found in pairs if found == {which}] for which in (True, False))
    return replace(task, pairs=first), replace(task, pairs=second)


def chosen(circuit: Circuit, n: int) -> list[Node]:
    """The largest features of a circuit above the embedding, errors left out."""
    order = circuit.effect[:-1].abs().sort(descending=True).indices.tolist()
    nodes = [circuit.nodes[i] for i in order]
    return [node for node in nodes if node.feature >= 0 and node.site != "embed"][:n]


def like(
    nodes: Sequence[Node],
    model: Model,
    dictionaries: Mapping[str, Dictionary],
    batches: Sequence[Batch],
    seed: int,
) -> list[Node]:
    """As many other features of the same sites, drawn from those that are active on the prompts."""
    rng, drawn = random.Random(seed), []
    sites = sorted({node.site for node in nodes})
    active: dict[str, set[int]] = {site: set() for site in sites}
    for batch in batches:
        acts = run(model, batch.clean, {site: dictionaries[site] for site in sites}).computed
        for site in sites:
            active[site] |= set((acts[site].features > 0).flatten(0, 1).any(0).nonzero()[:, 0].tolist())
    for site in sites:
        taken = {node.feature for node in nodes if node.site == site}
        others = sorted(active[site] - taken)
        drawn += [Node(site, feature) for feature in rng.sample(others, min(len(taken), len(others)))]
    return drawn


@torch.no_grad()
def margins(
    model: Model,
    task: Task,
    batches: Sequence[Batch],
    dictionaries: Mapping[str, Dictionary],
    nodes: Sequence[Node],
    *,
    patched: bool = False,
) -> torch.Tensor:
    """The metric of every prompt with some features set to zero, or to their values on the patch."""
    listed = by_site(nodes)
    used = {site: dictionaries[site] for site in listed}
    found = []
    for batch in batches:
        values: Mapping[str, Acts] | None = None
        if patched and batch.patch is not None:
            values = run(model, batch.patch, used).computed
        with applied(model, Ablate(listed, values), dictionaries=used):
            found.append(task.metric(model.logits(batch.clean), batch))
    return torch.cat(found)


@torch.no_grad()
def text_loss(
    model: Model, text: torch.Tensor, dictionaries: Mapping[str, Dictionary], nodes: Sequence[Node]
) -> float:
    """Cross-entropy per token, in nats, with some features set to zero."""
    listed, total = by_site(nodes), []
    for rows in text.split(16):
        with applied(model, Ablate(listed), dictionaries={site: dictionaries[site] for site in listed}):
            logits = model.logits(rows)
        total.append(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()))
    return torch.stack(total).mean().item()


def curve_of(
    model: Model,
    task: Task,
    circuit: Circuit,
    dictionaries: Mapping[str, Dictionary],
    *,
    name: str,
    ablation: Ablation = resample_ablation,
    **settings: Any,
) -> Curve:
    """The curve of a circuit on a task, printed. What is outside goes to the patched prompt."""
    evaluation = Evaluation(model, task, dictionaries, ablation=ablation, **settings)
    sites = {str(site) for site in evaluation.dictionaries}
    curve = evaluation.curve(circuit.subgraph(lambda node: node.site in sites), SIZES)
    print(f"{name}: {len(evaluation.model_metric)} pairs, {curve.active:,} active nodes; ", end="")
    print(f"she - he is {evaluation.nothing_metric.mean():.2f} without any node\n{curve}\n")
    return curve


def by_site(nodes: Sequence[Node]) -> dict[str, list[int]]:
    listed: dict[str, list[int]] = {}
    for node in nodes:
        listed.setdefault(node.site, []).append(node.feature)
    return listed


def causal(
    model: Model,
    task: Task,
    dictionaries: Mapping[str, Dictionary],
    nodes: Sequence[Node],
    text: torch.Tensor,
    *,
    draws: int = 10,
) -> str:
    """A table: what becomes of the answer, and of other text, without these features and without others."""
    batches = task.batches(model.tokenizer)
    rows = {"nothing changed": margins(model, task, batches, {}, [])}
    loss = {"nothing changed": f"{text_loss(model, text, {}, []):.3f}"}
    mine, others = f"the {len(nodes)} features to zero", f"{len(nodes)} others to zero, {draws} draws"
    rows[mine] = margins(model, task, batches, dictionaries, nodes)
    loss[mine] = f"{text_loss(model, text, dictionaries, nodes):.3f}"
    drawn = [like(nodes, model, dictionaries, batches, seed) for seed in range(draws)]
    rows[others] = torch.stack([margins(model, task, batches, dictionaries, some) for some in drawn])
    loss[others] = f"{sum(text_loss(model, text, dictionaries, some) for some in drawn[:3]) / 3:.3f}"
    rows[f"the {len(nodes)} to their values on the patch"] = margins(
        model, task, batches, dictionaries, nodes, patched=True
    )
    rows[f"{len(nodes)} others to their values on the patch"] = torch.stack(
        [margins(model, task, batches, dictionaries, some, patched=True) for some in drawn]
    )
    lines = [f"{'':42} {'she - he, in logits':>24} {'right':>7} {'loss of text':>13}"]
    for name, values in rows.items():
        means = values.reshape(-1, values.shape[-1]).mean(1)
        spread = f" ({means.min():.2f} to {means.max():.2f})" if len(means) > 1 else ""
        right = (values > 0).double().mean()
        lines.append(f"{name:42} {f'{means.mean():.2f}{spread}':>24} {right:7.0%} {loss.get(name, ''):>13}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=Path(WEIGHTS), help="folder that holds stories260K")
    parser.add_argument("--out", type=Path, default=Path("results/pronouns"))
    parser.add_argument("--rows", type=int, default=2048, help="texts of 256 tokens to sample")
    parser.add_argument("--features", type=int, default=512, help="of each dictionary")
    parser.add_argument("--k", type=int, default=8, help="active features per token")
    parser.add_argument("--steps", type=int, default=2000, help="of training the dictionaries")
    parser.add_argument("--pairs", type=int, default=1200, help="pairs to ask for; a fifth can be used")
    parser.add_argument("--nodes", type=int, default=1500, help="of the circuit")
    parser.add_argument("--names", type=Path, help="JSON of what features are, for the picture")
    parser.add_argument("--ablate", type=int, default=20, help="features to take away in the causal check")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*do not fit this tokenizer")
    args.out.mkdir(parents=True, exist_ok=True)
    clock = Clock()

    model = Model.load(args.weights / "stories260K")
    text, unseen = own_text(model, args.rows, args.out)
    clock(f"{text.numel():,} tokens to learn from, {unseen.numel():,} to test on")

    dictionaries = learned(
        model, text, args.out / "dictionaries", features=args.features, k=args.k, steps=args.steps
    )
    clock("dictionaries")
    print(table(quality(model, dictionaries, unseen[:64])))
    clock("quality")

    found_on, tested_on = tasks.pronouns(n=args.pairs).split(0.5)
    batches = tested_on.batches(model.tokenizer)
    n = [sum(map(len, task.batches(model.tokenizer))) for task in (found_on, tested_on)]
    plain = margins(model, tested_on, batches, {}, [])
    print(f"{n[0]} pairs to find on, {n[1]} to test on; right on {(plain > 0).double().mean():.1%} of them")
    parts = {site: d for site, d in dictionaries.items() if not site.startswith("resid")}
    circuit = circuits.find(model, found_on, parts, node=args.nodes, edge=2000)
    circuit.save(args.out / "circuit")
    print(circuit.summary(most=20))
    clock("circuit")

    some_names, other_names = apart(tasks.pronouns(n=args.pairs))
    of_some = circuits.find(model, some_names, parts, node=args.nodes, edge=None)
    widest = circuits.find(model, found_on, dictionaries, node=args.nodes, edge=None)
    late: dict[str, Any] = {"start_layer": 2}
    removed, to_means = {**late, "errors": "removed"}, {**late, "ablation": mean_ablation}
    curves = {
        name: curve_of(model, asked, found, used, name=name, **settings)
        for name, asked, found, used, settings in (
            ("whole model", tested_on, circuit, parts, {}),
            ("from layer 2", tested_on, circuit, parts, late),
            ("from layer 2, errors kept", tested_on, circuit, parts, {**late, "errors": "kept"}),
            ("from layer 2, errors removed", tested_on, circuit, parts, removed),
            ("from layer 2, to means", tested_on, circuit, parts, to_means),
            ("from layer 2, stream too", tested_on, widest, dictionaries, late),
            ("from layer 2, other names", other_names, of_some, parts, late),
        )
    }
    shown = ("whole model", "from layer 2", "from layer 2, to means", "from layer 2, stream too")
    plot_curve({name: curves[name] for name in shown}, args.out / "curve.svg", title="pronouns", width=5.5)
    clock("curves")

    nodes = chosen(circuit, args.ablate)
    drawn = [node for node in circuit.top(nodes=30).nodes[:-1] if node.feature >= 0]
    named = sorted({*nodes, *drawn}, key=lambda node: -circuit.effect[circuit.index[node]].abs())
    seen = contexts(model, dictionaries, named, unseen)
    names = by_name(model, dictionaries, batches, named)
    for node in named:
        effect = circuit.effect[circuit.index[node]]
        print(f"\n{node}: effect {effect:+.3f}; on prompts: {described(names[node])}")
        print("\n".join(f"    {line}" for line in seen[node]))
    draw(circuit, args.out / "circuit.svg", annotations=args.names, most=30, most_edges=60)
    clock("contexts and picture")

    print(causal(model, tested_on, dictionaries, nodes, unseen[:32]))
    clock("causal check")


class Clock:
    """Prints what was done, how long it took, and the most memory used so far."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, what: str) -> None:
        import resource

        now, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"-- {what}: {now - self.last:.0f} s, {used:.0f} MiB\n", flush=True)
        self.last = now


if __name__ == "__main__":
    main()
