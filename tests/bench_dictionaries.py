"""Training steps per second beside sae-lens and eai-sparsify, memory, and the speed of finished dictionaries.

PYTHONPATH=. python tests/bench_dictionaries.py --threads 1

Each library takes its own training steps on the same batches, in float32, without loading data: forward and
backward pass, clipping or projection of gradients, Adam, learning rate, the count of silent features.
sae-lens is driven by `SAETrainer.step`. sparsify has no such method: its steps are what the body of
`Trainer.fit` does for one sparse coder, with torch's Adam, its choice where bitsandbytes is not installed.
(The sparse products of sae-lens, `use_sparse_activations`, have no backward pass on the CPU in torch 2.13.)

Turns are taken in rounds, in changing order, so that what else the machine does falls on all alike. The time
of each is that of its best round; `ratio` is our steps per second over theirs: above 1 we are faster.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from interventions.dictionaries import SparseCoder, recipes
from interventions.dictionaries.activations import BatchTopK, ReLU, TopK
from interventions.sites import Site

Step = Callable[[Tensor, Tensor], Any]
SHAPES = {"small": (256, 4096, 1024, 32), "medium": (576, 8192, 2048, 32)}  # width, features, batch, k
LR = 2e-4
FIT = 10_000  # steps of the run that these are the first of


# ours


def ours(d: int, n_features: int, x: Tensor, y: Tensor, recipe: Any, **options: Any) -> Step:
    from interventions.dictionaries.learner import Learner
    from interventions.dictionaries.pool import Pool

    sites = [Site(0, "reads", "reads", width=d), Site(1, "writes", "writes", width=d)]

    class Reader:
        def read(self, tokens: Tensor, wanted: list[Site]) -> dict[Site, Tensor]:
            held = dict(zip(sites, (x, y), strict=True))
            return {site: held[site][tokens] for site in wanted}

    reader: Any = Reader()
    pair = sites if options.pop("transcode", False) else sites[:1] * 2
    read = list(dict.fromkeys(pair))
    pool = Pool(reader, torch.arange(len(x))[:, None], read, size=len(x))
    learner = Learner(pair[0], pair[1], n_features, recipe, pool, **options)
    done = itertools.count()
    return lambda a, b: learner.step(a, b, next(done) / FIT, lr=LR)


# theirs


def sae_lens(kind: str, d: int, n_features: int, x: Tensor, _y: Tensor, **options: Any) -> Step:
    from sae_lens import saes
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    options = {"normalize_activations": "none", **options}
    config = getattr(saes, f"{kind}TrainingSAEConfig")(d_in=d, d_sae=n_features, device="cpu", **options)
    setting = SAETrainerConfig(
        total_training_samples=FIT * len(x),
        train_batch_size_samples=len(x),
        lr=LR,
        lr_end=LR,
        dead_feature_window=200,
    )
    trainer = SAETrainer(setting, getattr(saes, f"{kind}TrainingSAE")(config), iter(()))

    def step(x: Tensor, _y: Tensor) -> None:
        trainer.maybe_reset_sparsity()
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def sparsify(
    d: int, n_features: int, x: Tensor, y: Tensor, *, k: int, optimizer: str = "adam", **options: Any
) -> Step:
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder as Coder
    from sparsify import SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(0)
    coder = Coder(d, SparseCoderConfig(num_latents=n_features, k=k, **options), dtype=torch.float32)
    transcodes = coder.cfg.transcode
    if transcodes:
        coder.encoder.bias.data = -x.mean(0) @ coder.encoder.weight.data.T
    coder.b_dec.data = y.mean(0) if transcodes else x.mean(0)
    schedule = None
    if optimizer == "adam":
        optim: Any = torch.optim.Adam([{"params": coder.parameters(), "lr": LR}])
        schedule = get_linear_schedule_with_warmup(optim, 1000, FIT)
    else:
        optim = ScheduleFreeWrapper(SignSGD([{"params": coder.parameters(), "lr": LR}]), momentum=0.95)
        optim.train()
    silent = torch.zeros(n_features, dtype=torch.long)
    fired = torch.zeros(n_features, dtype=torch.bool)
    running = [0.0, 0.0]

    def step(x: Tensor, y: Tensor) -> None:
        target = y if transcodes else x
        if not transcodes:
            coder.set_decoder_norm_to_unit_norm()
        variance = (target - target.mean(0)).pow(2).sum()
        out = coder(x=x, y=target, dead_mask=silent > 10_000_000, total_variance=variance)
        fired[out.latent_indices.flatten()] = True
        running[0] += float(out.fvu.detach())
        running[1] += float(out.auxk_loss.detach())
        (out.fvu + out.auxk_loss / 32 + out.multi_topk_fvu / 8).backward()
        if not transcodes:
            coder.remove_gradient_parallel_to_decoder_directions()
        optim.step()
        optim.zero_grad()
        if schedule is not None:
            schedule.step()
        with torch.no_grad():
            silent.add_(len(x))
            silent[fired] = 0
            fired.zero_()

    return step


Contestants = dict[str, dict[str, Callable[..., Step]]]


def contestants(k: int, n_features: int) -> Contestants:
    """For each architecture, who trains it; each is called with width, features, and data to begin from."""

    def lens(kind: str, **options: Any) -> Callable[..., Step]:
        return lambda *args: sae_lens(kind, *args, **options)

    def eleuther(**options: Any) -> Callable[..., Step]:
        return lambda *args: sparsify(*args, k=k, **options)

    def mine(name: str, *args: Any, transcode: bool = False, skip: bool = False, **options: Any):
        recipe = getattr(recipes, name, None)
        if recipe is None:
            return {}
        made = recipe(*args, **options)
        return {"ours": lambda *given: ours(*given, made, transcode=transcode, skip=skip)}

    widths = [n_features // 8, n_features // 4, n_features // 2]
    return {
        "TopK": {
            **mine("TopK", k),
            "sae-lens": lens("TopK", k=k),
            "sparsify": eleuther(),
            "sparsify, signum": eleuther(optimizer="signum"),
        },
        "BatchTopK": {**mine("BatchTopK", k), "sae-lens": lens("BatchTopK", k=float(k))},
        "Matryoshka": {
            **mine("Matryoshka", k, widths=widths),
            "sae-lens": lens("MatryoshkaBatchTopK", k=float(k), matryoshka_widths=widths),
        },
        "ReLU + L1": {**mine("L1", 0.1), "sae-lens": lens("Standard", l1_coefficient=0.1)},
        "Gated": {**mine("Gated", 0.1), "sae-lens": lens("Gated", l1_coefficient=0.1)},
        "JumpReLU": {**mine("JumpReLU", k), "sae-lens": lens("JumpReLU", l0_coefficient=1e-3)},
        "transcoder": {**mine("TopK", k, transcode=True), "sparsify": eleuther(transcode=True)},
        "skip transcoder": {
            **mine("TopK", k, transcode=True, skip=True),
            "sparsify": eleuther(transcode=True, skip_connection=True),
        },
    }


# measuring


def batches(d: int, batch: int, n: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Sparse sums of known directions (`tasks.superposition`), and what a known map makes of them."""
    from tasks import Superposition

    known = Superposition(d, 4 * d, active=24.0, noise=0.05).map()
    drawn = known.sample(n * batch, torch.Generator().manual_seed(0))[0]
    scale = (d / drawn.x.square().sum(-1).mean()).sqrt()
    return list(zip((drawn.x * scale).split(batch), (drawn.y * scale).split(batch), strict=True))


def raced(runners: dict[str, Step], data: list[tuple[Tensor, Tensor]], rounds: int, steps: int):
    """Seconds per step of each, one list over the rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for step in runners.values():
        for pair in data[:2]:
            step(*pair)
    for turn in range(rounds):
        names = list(runners)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            for i in range(steps):
                runners[name](*data[i % len(data)])
            seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


def training(shape: str, args: argparse.Namespace) -> None:
    d, n_features, batch, k = SHAPES[shape]
    data = batches(d, batch)
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    print(f"\n{d} -> {n_features} features, {batch} tokens a step, k {k}, {args.threads} thread(s)")
    print(f"{'architecture':<16} {'library':<18} {'steps/s':>8} {'ratio':>6}  rounds from .. to")
    for name, entered in contestants(k, n_features).items():
        if (args.only and name not in args.only) or "ours" not in entered:
            continue
        runners = {library: make(d, n_features, x, y) for library, make in entered.items()}
        seconds = raced(runners, data, args.rounds, args.steps)
        for library, times in seconds.items():
            each = sorted(theirs / mine for theirs, mine in zip(times, seconds["ours"], strict=True))
            ratio = "" if library == "ours" else f"{min(times) / min(seconds['ours']):6.2f}"
            span = "" if library == "ours" else f"{each[0]:.2f} .. {median(each):.2f} .. {each[-1]:.2f}"
            print(f"{name:<16} {library:<18} {1 / min(times):8.2f} {ratio:>6}  {span}", flush=True)


def memory(shape: str, args: argparse.Namespace) -> None:
    """Peaks above what the process held before, each library in a process of its own, already imported."""
    d, n_features, *_ = SHAPES[shape]
    weights = 4 * 2 * d * n_features / 2**20
    print(f"\npeak memory, {shape}: MiB to begin, and in ten steps")
    print(f"(weights, their gradients and moments are {4 * weights:.0f} MiB, the batches not counted)")
    for name in args.only or ("TopK", "BatchTopK", "ReLU + L1", "skip transcoder"):
        for library in contestants(1, 8)[name]:
            command = [sys.executable, __file__, "--alone", name, library, shape]
            out = subprocess.run(command, capture_output=True, text=True, env=os.environ)
            print(f"{name:<16} {library:<18} {(out.stdout or out.stderr).splitlines()[-1]}", flush=True)


def alone(name: str, library: str, shape: str) -> None:
    d, n_features, batch, k = SHAPES[shape]
    data = batches(d, batch)
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    few = torch.randn(64, 8), torch.randn(64, 8)
    contestants(2, 16)[name][library](8, 16, *few)(*few)  # imports, and what torch sets up once
    before = _resident("VmRSS")
    _forget_peak()
    step = contestants(k, n_features)[name][library](d, n_features, x, y)
    begun = _resident("VmHWM") - before
    _forget_peak()
    for i in range(10):
        step(*data[i % len(data)])
    print(f"{begun:6.0f} {_resident('VmHWM') - before:6.0f}")


def _forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _resident(which: str) -> float:
    """MiB held now (VmRSS), or at most since `_forget_peak` (VmHWM)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 2**10 for line in file if line.startswith(which))


@torch.no_grad()
def finished(shape: str, args: argparse.Namespace) -> None:
    """Encoding and decoding over the dense product that each is made of."""
    d, n_features, batch, k = SHAPES[shape]
    x = batches(d, batch, 1)[0][0]
    plain = SparseCoder.random(d, n_features)
    z = plain.pre_activations(x)
    cut = z.flatten().kthvalue(z.numel() - k * len(z)).values.item()
    coders = {"ReLU": ReLU(), "TopK": TopK(k), "BatchTopK": BatchTopK(k, cut)}
    print(f"\nfinished dictionaries, {shape}: seconds over those of one dense product, which takes", end=" ")
    names = ["W_enc", "W_dec"]
    for name, activation in coders.items():
        coder = SparseCoder(
            W_enc=plain.W_enc, b_enc=plain.b_enc, W_dec=plain.W_dec, b_dec=plain.b_dec, activation=activation
        )
        features, sparse = coder.encode(x), coder.encode_sparse(x)
        calls: dict[str, Callable[[], Any]] = {
            "W_enc": lambda c=coder: x @ c.W_enc,
            "W_dec": lambda c=coder, f=features: f @ c.W_dec,
            "encode": lambda c=coder: c.encode(x),
            "encode_sparse": lambda c=coder: c.encode_sparse(x),
            "decode": lambda c=coder, f=features: c.decode(f),
            "decode_sparse": lambda c=coder, s=sparse: c.decode_sparse(s),
        }
        best = {call: float("inf") for call in calls}
        for _ in range(args.rounds * 2):
            for call, fn in calls.items():
                start = time.perf_counter()
                fn()
                best[call] = min(best[call], time.perf_counter() - start)
        if name == "ReLU":
            print(", ".join(f"{best[n] * 1e3:.1f} ms ({n})" for n in names))
        ratios = [f"{c} {best[c] / best['W_enc' if 'en' in c else 'W_dec']:.2f}" for c in list(calls)[2:]]
        active = len(sparse.value) / len(x)
        print(f"{name:<10} L0 {active:6.0f}  {', '.join(ratios)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--only", nargs="+", help="architectures, all by default")
    parser.add_argument("--parts", nargs="+", default=["training", "memory", "finished"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.alone:
        alone(*args.alone)
        return
    for shape in args.shapes:
        if "training" in args.parts:
            training(shape, args)
        if "memory" in args.parts:
            memory(shape, args)
        if "finished" in args.parts:
            finished(shape, args)


if __name__ == "__main__":
    main()
