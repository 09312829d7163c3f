"""Circuits of recurrent models, by the calls that find those of transformers.

python docs/examples/recurrent.py --weights FOLDER --out results/recurrent

FOLDER holds ml5-charRNN-shakespeare, an LSTM over characters. A small Mamba is trained on the way.
docs/recurrent.md says what comes out.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pronouns import WEIGHTS, Clock, contexts
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

import circuits
from circuits import Circuit, Curve, Evaluation, resample_ablation
from circuits.curves import plot_curve
from circuits.drawing import draw
from circuits.embedded import train_model
from interventions.acts import Dictionary, Identity
from interventions.dictionaries import load, quality, recipes, save, table, train
from interventions.model import Model
from tasks import Pair, Task, agreement_across_pp
from tasks.grammar import texts, tokenizer

SIZES = (1, 3, 10, 20, 30, 50, 100, 200, 300)
OPENINGS = (
    "But ", "If ", "For ", "When ", "What ", "Sir, ", "My lord, ", "O, ", "\n", "I say, ", "While ", "Ay, ",
    "Since ", "Till ", "Why ", "Where ",
)  # fmt: skip
SUBJECTS = (("thou", "they"), ("who", "you"), ("he", "we"), ("he", "ye"))  # they have, he has, thou hast


class CharRNN(nn.Module):
    """From characters to the logits of the next one: an embedding, LSTM layers, a linear head."""

    def __init__(self, vocabulary: int, width: int, layers: int):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x)

    @torch.no_grad()
    def sampled(self, rows: int, length: int, *, first: int, seed: int = 0) -> Tensor:
        """Text (row pos) that the model makes up after the token `first`."""
        random = torch.Generator().manual_seed(seed)
        tokens = [torch.full((rows, 1), first)]
        states: list[tuple[Tensor, Tensor] | None] = [None] * len(self.layers)
        for _ in tqdm(range(length - 1), desc="text", unit="character", disable=None):
            x = self.embed(tokens[-1])
            for i, layer in enumerate(self.layers):
                x, states[i] = layer(x, states[i])
            tokens.append(torch.multinomial(self.head(x)[:, -1].softmax(-1), 1, generator=random))
        return torch.cat(tokens, dim=1)


class Characters:
    """A tokenizer with a token for each character."""

    def __init__(self, ids: Mapping[str, int]):
        self.ids, self.characters = dict(ids), {i: character for character, i in ids.items()}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [self.ids[character] for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.characters[int(i)] for i in ids)


def shakespeare(folder: Path) -> Model:
    """The character model in a folder. Its file has one LSTM of two layers; here each is a module."""
    config = json.loads((folder / "config.json").read_text())
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.startswith("lstm."):  # lstm.weight_ih_l1 -> layers.1.weight_ih_l0
            kind, layer = name.removeprefix("lstm.").rsplit("_l", 1)
            name = f"layers.{layer}.{kind}_l0"
        weights[name] = tensor
    module = CharRNN(len(config["vocab"]), config["hidden"], config["layers"])
    module.load_state_dict(weights)
    return Model.load(module, tokenizer=Characters(config["vocab"]))


def has_or_have() -> Task:
    """After "he ha" comes s (has, hast), after "we ha" comes v (have)."""
    pairs = []
    for opening in OPENINGS:
        for one, many in SUBJECTS:
            one_ha, many_ha = f"{opening}{one} ha", f"{opening}{many} ha"
            pairs.append(Pair(one_ha, many_ha, ("s",), ("v",), case="has"))
            pairs.append(Pair(many_ha, one_ha, ("v",), ("s",), case="have"))
    return Task("has_or_have", pairs, description="After the subject: thou has(t), they hav(e)")


def mamba(folder: Path, *, steps: int) -> Model:
    """A Mamba of two layers, trained on sentences whose verbs agree with their subjects."""
    if not folder.exists():
        module = train_model.untrained("mamba", layers=2)
        train_model.train(module, steps=steps, batch=32)
        module.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return Model.load(folder)


def learned(
    model: Model, text: Tensor, folder: Path, *, features: int, k: int, steps: int
) -> dict[str, Dictionary]:
    """A dictionary for all that is written in a model. Kept in a folder."""
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
    return dict(load(folder))


def circuit_of(
    model: Model, task: Task, dictionaries: Mapping[str, Dictionary], *, nodes: int, **settings: Any
) -> tuple[Circuit, Curve]:
    """A circuit found on one half of a task, and its curve on the other; nodes outside go to the patch."""
    found_on, tested_on = task.split(0.5)
    circuit = circuits.find(model, found_on, dictionaries, node=nodes, edge=2000)
    evaluation = Evaluation(model, tested_on, dictionaries, ablation=resample_ablation, **settings)
    whole, nothing = evaluation.model_metric, evaluation.nothing_metric
    print(
        f"{len(whole)} pairs to test on, right on {(whole > 0).double().mean():.1%}; "
        f"mean of the metric {whole.mean():.2f}, {nothing.mean():.2f} without any node"
    )
    return circuit, evaluation.curve(circuit, SIZES)


def shown(
    model: Model, dictionaries: Mapping[str, Dictionary], circuit: Circuit, text: Tensor, *, most: int = 20
) -> str:
    """Where the largest features of a circuit are most active."""
    nodes = [node for node in circuit.top(nodes=most).nodes[:-1] if node.feature >= 0]
    found = contexts(model, dictionaries, nodes, text)
    return "\n".join("\n".join([f"\n{node}", *(f"    {line}" for line in found[node])]) for node in nodes)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path(WEIGHTS), help="folder that holds the LSTM's")
    parser.add_argument("--out", type=Path, default=Path("results/recurrent"))
    parser.add_argument("--rows", type=int, default=2048, help="texts of 200 characters to sample")
    parser.add_argument("--steps", type=int, default=3000, help="of training dictionaries")
    parser.add_argument("--mamba-steps", type=int, default=800, help="of training the Mamba")
    parser.add_argument("--names", type=Path, help="JSON of what features are, for the pictures")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*do not fit this tokenizer")
    names = json.loads(args.names.read_text()) if args.names else {}
    clock = Clock()

    model = shakespeare(args.weights / "ml5-charRNN-shakespeare")
    print(model, list(model.sites))
    text = model.module.sampled(args.rows, 200, first=model.tokenizer.ids["\n"])
    text, unseen = text[256:], text[:256]
    print(model.tokenizer.decode(unseen[0, 1:].tolist()))
    clock("text of the LSTM")
    features = learned(model, text, args.out / "lstm", features=1024, k=32, steps=args.steps)
    print(table(quality(model, features, unseen)))
    clock("dictionaries of the LSTM")
    neurons = {site: Identity() for site in features}
    curves = {}
    for name, dictionaries, settings in (
        ("features", features, {}),
        ("features, errors removed", features, {"errors": "removed"}),
        ("neurons", neurons, {}),
    ):
        print(name)
        circuit, curves[name] = circuit_of(model, has_or_have(), dictionaries, nodes=400, **settings)
        print(f"{circuit.summary(most=12)}\n{curves[name]}\n")
        if name == "features":
            circuit.save(args.out / "lstm-circuit")
            draw(circuit, args.out / "lstm.svg", annotations=names.get("lstm"), most=30, most_edges=60)
            print(shown(model, features, circuit, unseen))
    plot_curve(curves, args.out / "lstm-curve.svg", title="has or have, LSTM")
    clock("circuits of the LSTM")

    model = mamba(args.out / "mamba", steps=args.mamba_steps)
    print(model, list(model.sites))
    clock("training of the Mamba")
    rows = torch.stack(list(islice(texts(1), 8000 + 256)))
    features = learned(model, rows[256:], args.out / "mamba-features", features=256, k=6, steps=args.steps)
    print(table(quality(model, features, rows[:256])))
    clock("dictionaries of the Mamba")
    circuit, curve = circuit_of(model, agreement_across_pp(n=300), features, nodes=400)
    circuit.save(args.out / "mamba-circuit")
    print(f"{circuit.summary(most=12)}\n{curve}\n")
    print(shown(model, features, circuit, rows[:256]))
    draw(circuit, args.out / "mamba.svg", annotations=names.get("mamba"), most=30, most_edges=60)
    plot_curve(curve, args.out / "mamba-curve.svg", title="agreement across a phrase, Mamba")
    clock("circuit of the Mamba")


if __name__ == "__main__":
    main()
