"""Steering what recurrent models carry: their state, their residual stream, or both.

python docs/examples/state_steering.py --weights FOLDER --out results/state-steering

FOLDER holds ml5-charRNN-shakespeare and gr-nlp-charlstm, LSTMs over characters, and rwkv4-tiny-660K. A small
Mamba is trained on the way. docs/state-steering.md says what comes out.
"""

# ruff: noqa: RUF001  # Greek letters look like Latin ones

from __future__ import annotations

import argparse
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from pronouns import WEIGHTS, Clock
from recurrent import Characters, mamba, shakespeare
from safetensors.torch import load_file
from torch import Tensor, nn

from circuits.steering_plots import plot_dose_response
from interventions import Add, Intervention, Model, Where, applied
from interventions.recurrence import AddState, State, read_state, state_effects
from interventions.steering import DoseResponse, Generated, contrast, dose_response, surprise
from interventions.steering.preference import Preference
from tasks import LogitDifference, agreement_across_pp

LEVELS = (-1.0, -0.5, 0.5, 1.0, 2.0)
ONCE = Where(prompt=-1, generation=None)

PLACES = (
    "my lord",
    "the king",
    "the duke of york",
    "your mother",
    "the city",
    "our father",
    "the people",
    "her grace",
)
LOUD = [
    (f"{place.upper()}, AND {other.upper()}", f"{place}, and {other}")
    for place in PLACES
    for other in PLACES[:4]
]
PROSE = [
    f"{one}{two}" for one in ("I will ", "You have ", "And so ", "But then ", "He is ", "They say ")
    for two in ("seen the ", "done with ", "come to ", "been a ", "not a ")
]  # fmt: skip
ASKING = ("What, will", "Why, do", "Where do", "How can", "When will", "Who shall")
TELLING = ("Yes, we will", "So, they do", "Then we do", "Now we can", "Then he will", "They shall")
REST = (" come to the king", " not know the man", " be gone from hence", " hear me speak", " see the duke")
QUESTIONS = [(f"{a}{rest}", f"{t}{rest}") for a, t in zip(ASKING, TELLING, strict=True) for rest in REST]
STATEMENTS = [
    f"{who}{rest}" for who in ("I will", "You shall", "And he must", "They may", "We would")
    for rest in (" go with me to-night", " speak of it again", " find the way", " be a man", " love thee")
]  # fmt: skip

GREEK = ("Η Ελλάδα είναι", "Το πρόγραμμα της", "Οι άνθρωποι που", "Στην πόλη της", "Ο πρόεδρος του",
         "Με την απόφαση", "Για τα παιδιά", "Από την αρχή", "Μετά τον πόλεμο", "Σε κάθε χώρα")  # fmt: skip
GREEK_PROSE = ("και η ", "στο νέο ", "για τον ", "με τις ", "από το ", "ο πρώτος ", "μια μεγάλη ",
               "όλα τα ", "που είναι ", "στην οποία ", "κάθε ", "δεν έχει ", "μετά την ", "θα είναι ",
               "οι δύο ")  # fmt: skip


class CharLSTM(nn.Module):
    """From characters to the logits of the next one: an embedding, one LSTM layer, a linear head."""

    def __init__(self, vocabulary: int, embedding: int, width: int):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedding)
        self.layers = nn.ModuleList([nn.LSTM(embedding, width, batch_first=True)])
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers[0](self.embed(tokens))[0])


def greek(folder: Path) -> Model:
    """The Greek character model in a folder."""
    vocabulary = json.loads((folder / "config.json").read_text())["vocab"]
    weights = load_file(folder / "model.safetensors")
    names = {"lstm.": "layers.0.", "dense.": "head.", "embed.": "embed."}
    renamed = {
        new + n.removeprefix(old): x
        for n, x in weights.items()
        for old, new in names.items()
        if n.startswith(old)
    }
    module = CharLSTM(*weights["embed.weight"].shape, weights["lstm.weight_hh_l0"].shape[1])
    module.load_state_dict(renamed)
    return Model.load(module, tokenizer=Characters(vocabulary))


class LogOdds:
    """A measure: the log-odds of some characters over others after each prompt, in nats."""

    def __init__(self, prompts: Sequence[str], one: Callable[[str], bool], other: Callable[[str], bool]):
        self.prompts, self.one, self.other = prompts, one, other

    def __call__(self, model: Model) -> Tensor:
        some, others = (
            [i for c, i in model.tokenizer.ids.items() if len(c) == 1 and kind(c)]
            for kind in (self.one, self.other)
        )
        found = torch.zeros(len(self.prompts))
        for length in sorted({len(prompt) for prompt in self.prompts}):
            rows = [i for i, prompt in enumerate(self.prompts) if len(prompt) == length]
            tokens = torch.tensor([model.tokenizer.encode(self.prompts[i]) for i in rows])
            with torch.no_grad():
                odds = model.logits(tokens)[:, -1].log_softmax(-1)
            found[rows] = odds[:, some].logsumexp(1) - odds[:, others].logsumexp(1)
        return found


def plain(text: str) -> str:
    """Letters without accents, as capitals are written in Greek."""
    return unicodedata.normalize(
        "NFC", "".join(c for c in unicodedata.normalize("NFD", text) if c != "\u0301")
    )


def difference(model: Model, pairs: Sequence[tuple[str, str]]) -> State:
    """The mean difference of the states after the positive and the negative texts."""
    one, other = (
        read_state(model, [model.tokenizer.encode(pair[i]) for pair in pairs]).mean() for i in (0, 1)
    )
    return one - other


def compared(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    sites: Sequence[str],
    measures: Mapping[str, object],
    *,
    always: bool,
    read: Sequence[tuple[str, str]] | None = None,
) -> dict[str, DoseResponse]:
    """Dose responses of the residual stream, the state and both, each with three random controls."""
    direction = contrast(model, pairs, sites, progress=False)
    delta = difference(model, read or pairs)
    where = Where.writing() if always else ONCE

    def residual(m: float) -> Intervention:
        return Add(direction, m).at(where)

    def state(m: float) -> Intervention:
        return AddState(delta, m)

    steers = {"residual stream": residual, "state": state, "both": lambda m: residual(m) | state(m)}
    return {
        name: dose_response(model, steer, LEVELS, measures, random=3, progress=False)
        for name, steer in steers.items()
    }


def reported(found: Mapping[str, DoseResponse], measure: str) -> None:
    """The change at each multiplier against the unsteered model, with 95 % intervals."""
    first = next(iter(found.values()))
    print(f"\n{measure}: unsteered {first.estimate(measure).mean:.2f}; change at")
    print(f"{'':24}" + "".join(f"{m:>24g}" for m in LEVELS))
    for name, each in found.items():
        for arm in ("steered", "random"):
            cells = [each.effect(measure, m, arm) for m in LEVELS]
            shown = "".join(f"{f'{e.mean:+.2f} [{e.low:+.2f}, {e.high:+.2f}]':>24}" for e in cells)
            print(f"{name + (' (random)' if arm == 'random' else ''):24}{shown}")


def agreement(folder: Path, steps: int, out: Path) -> None:
    model = mamba(folder, steps=steps)
    task = agreement_across_pp(n=120)
    found_on, tested_on = task.split(0.5)
    plural = [
        (p.clean, p.patch) if p.case.startswith("plural") else (p.patch, p.clean) for p in found_on.pairs
    ]
    before_last = [tuple(text.rsplit(" ", 1)[0] for text in pair) for pair in plural]
    items = [
        (p.clean, p.answers, p.foils) if p.case.startswith("plural") else (p.clean, p.foils, p.answers)
        for p in tested_on.pairs
    ]
    measures = {"plural verb": Preference(items)}
    for sites in (["resid.0"], ["resid.1"]):
        found = compared(model, plural, sites, measures, always=False, read=before_last)
        print(f"\nMamba, agreement across a phrase; residual stream at {sites[0]}")
        reported(found, "plural verb")
        plot_dose_response(
            found,
            out / f"state-mamba-{sites[0]}.svg",
            labels={"plural verb": "log-odds of a plural verb (nats)"},
        )
    delta = difference(model, before_last)
    parts = {"convolutions": delta.only("conv.*"), "recurrent": delta.only("recurrent.*")}
    parts |= {f"layer {i}": delta.only(f"*.{i}") for i in range(2)}
    found = {
        name: dose_response(
            model, lambda m, part=part: AddState(part, m), LEVELS, measures, random=3, progress=False
        )
        for name, part in parts.items()
    }
    print("\nMamba, parts of the state")
    reported(found, "plural verb")

    (batch, *_) = tested_on.batches(model.tokenizer)
    effects = state_effects(model, batch, LogitDifference())
    print("\nMean effect of each state after each token on right minus wrong, by attribution:")
    print(f"{'':14}" + "".join(f"{word:>10}" for word in ("<bos>", "The", "noun", "prep.", "the")))
    for name, each in effects.summed().items():
        print(f"{name:14}" + "".join(f"{x:10.2f}" for x in each.mean(0).tolist()))


def characters(weights: Path, out: Path) -> None:
    model = shakespeare(weights / "ml5-charRNN-shakespeare")
    quiet, ends = lambda c: c.islower(), lambda c: c in ".,;:!"
    measures = {
        "capitals": LogOdds(PROSE, str.isupper, quiet),
        "written": Generated(
            PROSE[::5], {"surprise": surprise, "share": share_of_capitals}, max_new_tokens=30
        ),
    }
    found = compared(model, LOUD, ["resid.0", "resid.1"], measures, always=True)
    print("\nShakespeare LSTM, capitals")
    for measure in found["state"].measures:
        reported(found, measure)
    for m in (0.0, 1.0, 2.0):
        print(f"state at {m:g}: {PROSE[0]}|{found['state'].texts(m, name='written texts')[0]!r}")
    plot_dose_response(
        found,
        out / "state-capitals.svg",
        measures=["capitals", "written surprise"],
        labels={"capitals": "log-odds of a capital (nats)", "written surprise": "surprise (nats)"},
    )
    found = compared(
        model,
        QUESTIONS,
        ["resid.0", "resid.1"],
        {"question": LogOdds(STATEMENTS, "?".__eq__, ends)},
        always=True,
    )
    print("\nShakespeare LSTM, questions")
    reported(found, "question")
    plot_dose_response(
        found, out / "state-questions.svg", labels={"question": "log-odds of ? over other marks (nats)"}
    )

    model = greek(weights / "gr-nlp-charlstm")
    loud = [(plain(text).upper(), text) for text in GREEK]
    found = compared(
        model, loud, ["resid.0"], {"capitals": LogOdds(GREEK_PROSE, str.isupper, str.islower)}, always=True
    )
    print("\nGreek LSTM, capitals")
    reported(found, "capitals")
    plot_dose_response(found, out / "state-greek.svg", labels={"capitals": "log-odds of a capital (nats)"})


def share_of_capitals(_model: Model, _prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
    letters = [[c for c in text if c.isalpha()] for text in texts]
    return torch.tensor([sum(c.isupper() for c in some) / max(len(some), 1) for some in letters])


def plumbing(folder: Path) -> None:
    """RWKV-4 in small: what is written under a changed state is what a single pass over it gives."""
    model = Model.load(folder)
    one, other = (torch.tensor([[*text]]) for text in (b"The king of France ", b"Some people never "))
    edit = AddState(read_state(model, one) - read_state(model, other), 0.5)
    with applied(model, edit, prompt=one.shape[1]):
        written = model.generate(one, max_new_tokens=8, do_sample=False)
        again = model.logits(written)[:, one.shape[1] - 1 : -1].argmax(-1)
    same = torch.equal(written[:, one.shape[1] :], again)
    print(f"\nRWKV-4: {edit}; written and read alike: {same}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=Path("results/state-steering"))
    parser.add_argument("--mamba-steps", type=int, default=800)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    agreement(args.out / "mamba", args.mamba_steps, args.out)
    clock("Mamba")
    characters(args.weights, args.out)
    clock("LSTMs")
    plumbing(args.weights / "rwkv4-tiny-660K")
    clock("RWKV")


if __name__ == "__main__":
    main()
