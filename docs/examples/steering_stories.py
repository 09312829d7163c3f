"""Steering a model of children's stories: she or he, happy or sad.

    python docs/examples/steering_stories.py --model FOLDER --out results/steering-stories

FOLDER is stories260K, a Llama of 260,032 parameters. docs/steering.md says what comes out.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tasks
from circuits.steering_plots import plot_dose_response, plot_layer_sweep
from interventions import Add, Model
from interventions.steering import (
    Direction,
    Divergence,
    DoseResponse,
    Each,
    Generated,
    LayerSweep,
    Measure,
    Preference,
    contrast,
    distinct,
    dose_response,
    layer_sweep,
    surprise,
)
from interventions.steering.words import occurrences
from tasks import ContrastSet

_SHARED = Path(__file__).resolve().parents[3] / "shared" / "weights"
WEIGHTS = os.environ.get("BREADBOARD_WEIGHTS", str(_SHARED))

GIRL = ("she", "her", "hers", "herself", "girl", "girls")
BOY = ("he", "him", "his", "himself", "boy", "boys")
GLAD = ("happy", "happily", "glad", "smile*", "laugh*", "joy*", "fun", "love*", "hug*", "proud", "excited",
        "best", "thank*", "cheer*")  # fmt: skip
SORRY = ("sad", "sadly", "cry", "cried", "crying", "tear*", "hurt", "scared", "afraid", "angry", "mad",
         "upset", "worried", "lonely", "alone", "sorry", "bad", "hate*")  # fmt: skip
SOMEONE = ("child", "friend", "doctor", "teacher", "baby", "bear", "bird", "cat", "dog", "fish", "duck",
           "mouse")  # fmt: skip


DOSES = {"gender": (-2, -1, -0.5, 0.5, 1, 2), "mood": (-4, -2, -1, 1, 2, 4)}
LABELS = {
    "gender": {"preference": "log-odds she, he", "words": "she less he, %"},
    "mood": {"preference": "log-odds happy, sad", "words": "glad less sad words, %"},
}


@dataclass(frozen=True)
class Behaviour:
    """What a model is steered to do, and how that is seen."""

    name: str
    pairs: ContrastSet  # the direction is found in these
    questions: Sequence[Any]  # one half to choose a site and a strength with, the other to report
    prompts: Sequence[str]  # to write after
    score: Callable[[str], float]  # of what is written
    prompting: Callable[[str], str]  # what a user would do without steering
    asked: Callable[[Sequence[Any]], Any] = Preference
    most_kl: float = 0.5  # nats per token by which the prediction of other texts may move, when choosing


@dataclass(frozen=True)
class Study:
    """What came out: directions at all sites, the site and strength that were chosen, and the numbers."""

    directions: Direction
    sweep: LayerSweep
    site: str
    multiplier: float
    response: DoseResponse


@dataclass(frozen=True)
class More:
    """How many more words of one list than of another a text has, per hundred words."""

    these: tuple[str, ...]
    those: tuple[str, ...]

    def __call__(self, text: str) -> float:
        these, those = (sum(occurrences(text, words).values()) for words in (self.these, self.those))
        return 100 * (these - those) / max(1, len(text.split()))


def study(
    model: Model, behaviour: Behaviour, texts: Sequence[str], out: Path, *, sites: Sequence[str],
    sweep: Sequence[float], doses: Sequence[float], seeds: int, new_tokens: int, options: dict[str, Any],
    n_random: int = 2, batch_size: int = 64,
) -> Study:  # fmt: skip
    """Finds directions, chooses a site on one half of the questions, and measures on the other.

    Chosen is what moves the preference most among all that moves the prediction of `texts` by less than
    `most_kl` allows. The control is a direction of the same norm found in texts that all have what
    the positive ones have. Both runs are kept in `out`, and go on there if they were ended.
    """
    found = contrast(model, behaviour.pairs, sites, folds=5, bootstrap=100, batch_size=8, progress=False)
    alike = behaviour.pairs.positive
    same = [pair for pair in zip(alike[::2], alike[1::2], strict=False) if pair[0] != pair[1]]
    nothing = contrast(model, same, sites, batch_size=8, progress=False)
    for site in found:
        print(f"  {site}: norm {found.norms[site]:.2f}, {separation(found, site)}")
    to_choose, to_report = behaviour.questions[::2], behaviour.questions[1::2]
    swept = layer_sweep(
        model, lambda site, m: Add(found.only(site), scale=m), sites, sweep,
        [behaviour.asked(to_choose), Divergence(texts)], random=n_random, folder=out / "sweep",
    )  # fmt: skip
    site, multiplier = swept.best(
        swept.measures[0], allowed=lambda s, m: swept.effect("divergence", s, m).mean < behaviour.most_kl
    )
    chosen, norm = found.only(site), found.norms[site]
    scores = {"words": Each(behaviour.score), "surprise": surprise, "distinct": Each(distinct)}
    measures: list[Measure] = [behaviour.asked(to_report), Divergence(texts)]
    if behaviour.prompts:
        measures.append(
            Generated(
                behaviour.prompts, scores, max_new_tokens=new_tokens, options=options, batch_size=batch_size
            )
        )
    response = dose_response(
        model, lambda m: Add(chosen, scale=m), doses, measures, random=seeds, prompting=behaviour.prompting,
        controls={"no contrast": lambda m: Add(nothing.only(site).normalised() * norm, scale=m)},
        folder=out / "doses",
    )  # fmt: skip
    return Study(found, swept, site, multiplier, response)


def separation(direction: Direction, site: str) -> str:
    held_out, redrawn = direction.how["separation"][site], direction.how["bootstrap"][site]
    return f"held-out AUROC {held_out['auroc']:.2f}, cosine with redrawn {redrawn['cosine']:.2f}"


def report(behaviour: Behaviour, found: Study, seconds: float) -> None:
    print(f"\n## {behaviour.name}: {found.site}, multiplier {found.multiplier:g}, {seconds:.0f} s\n")
    for measure in found.sweep.measures:
        print(found.sweep.table(measure), end="\n\n")
    print(found.response, end="\n\n")
    doses = (min(found.response.multipliers), 0.0, max(found.response.multipliers))
    if behaviour.prompts:
        for m in sorted({*doses, found.multiplier} & {*found.response.multipliers}):
            texts = found.response.texts(m)
            print(f"{m:g}: {texts[:3]}")
    print(flush=True)


def draw(behaviour: Behaviour, found: Study, out: Path, labels: Mapping[str, str]) -> None:
    """The dose response and the sweep, as pictures in `out`."""
    axes = {"divergence": "KL, nats", "surprise": "nats per token"} | dict(labels)
    shown = [measure for measure in found.response.measures if measure in axes]
    at = f"{behaviour.name}, at {found.site}"
    plot_dose_response(
        found.response, out / f"{behaviour.name}-doses.svg", measures=shown, labels=axes, title=at
    )
    label = f"change of {axes[found.sweep.measures[0]]}"
    plot_layer_sweep(found.sweep, out / f"{behaviour.name}-sweep.svg", label=label, title=behaviour.name)


def behaviours() -> list[Behaviour]:
    someone = [f"{article} {who}" for article in ("The", "One day, a") for who in SOMEONE]
    return [
        Behaviour(
            "gender", tasks.girl_boy(n=100), tasks.who(n=84),
            [f"{who} was {what}." for who in someone for what in ("in the park", "at home")],
            More(GIRL, BOY), lambda prompt: f"Once upon a time, there was a little girl named Lily. {prompt}",
            most_kl=0.3,
        ),
        Behaviour(
            "mood", tasks.happy_sad(n=100), tasks.feelings(n=80),
            [f"{who} went {to}." for who in someone for to in ("to the park", "home")],
            More(GLAD, SORRY), lambda prompt: f"Once upon a time, there was a very happy child. {prompt}",
            most_kl=0.3,
        ),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(Path(WEIGHTS) / "stories260K"))
    parser.add_argument("--out", type=Path, default=Path("results/steering-stories"))
    parser.add_argument("--seeds", type=int, default=8, help="random directions")
    parser.add_argument("--prompts", type=int, default=48, help="to write after, for each behaviour")
    parser.add_argument("--doses", type=float, nargs="+", help="for both; by default each has its own")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = Model.load(args.model)
    torch.manual_seed(0)
    sampled: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_k": 0}
    opening = "Once upon a time"
    told = model.complete([opening] * 24, max_new_tokens=100, progress=False, **sampled)
    texts = [opening + text for text in told]
    for behaviour in behaviours():
        start = time.perf_counter()
        behaviour = Behaviour(**{**vars(behaviour), "prompts": behaviour.prompts[: args.prompts]})
        found = study(
            model, behaviour, texts, args.out / behaviour.name, sites=[f"resid.{i}" for i in range(5)],
            sweep=[-2, -1, 1, 2], doses=args.doses or DOSES[behaviour.name], seeds=args.seeds,
            new_tokens=60, options=sampled,
        )  # fmt: skip
        report(behaviour, found, time.perf_counter() - start)
        draw(behaviour, found, args.out, LABELS[behaviour.name])


if __name__ == "__main__":
    main()
