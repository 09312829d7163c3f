"""TPP in closed form beside explicit ablation: seconds, their ratio, and the largest difference.

PYTHONPATH=. python tests/bench_concepts.py
PYTHONPATH=. python tests/bench_concepts.py --rows FILE --features 4096 16384
PYTHONPATH=. python tests/bench_concepts.py --model FOLDER --site resid.11 --texts 600 500 --write FILE

Explicit ablation is that of SAEBench: for each class and each number of features, all test tokens are
encoded, decoded, set to zero, decoded again and pooled, and every probe is asked. Padding is left out, which
favours it. Both get the same activations and the same probes' texts, in float32; seconds are of the
processor, one thread. Encoding the texts to fit on is counted for both; fitting probes for ours alone.

Without `--rows` and `--model`, activations are random ones with classes planted in them. `--model` reads
generated biographies, whose classes are pairs of profession and gender, and `--rows` what it read before.
Dictionaries are random, of 32 active features.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from interventions import SparseCoder
from interventions.concepts import Held, Pooled, held, pool, tpp
from interventions.concepts.perturbation import _against, _members
from interventions.concepts.pooled import bind
from interventions.concepts.scores import SIZES, Ablation, ablated_logits, differences, fitted, strongest
from interventions.dictionaries.activations import TopK
from interventions.model import Model
from interventions.probing import Logistic
from tasks import biographies

SIDES = ("train", "test")


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    rows, labels = data(options)
    width = rows["train.rows"].shape[1]
    model = host(width)
    for features in options.features:
        coder = SparseCoder.random(width, features, activation=TopK(32), seed=1)
        splice = bind(model, {"resid.0": coder})["resid.0"]
        sides = [Held(splice.site, rows[f"{s}.rows"], rows[f"{s}.text"], len(labels[s])) for s in SIDES]
        began = time.process_time()
        pools = [pool(splice, side) for side in sides]
        encoded = time.process_time() - began
        found = tpp(pools[0], labels["train"], pools[1], labels["test"])
        ours = time.process_time() - began
        tokens = sum(len(side.rows) for side in sides)
        print(
            f"{features:,} features, {len(found.classes)} classes, {sum(map(len, sides)):,} texts, "
            f"{tokens:,} tokens of width {width}\n"
            f"  closed form  {ours:8.1f} s, of which {ours - encoded:.1f} s after encoding"
        )
        if not options.alone:
            explicit(coder, sides, pools, labels, found, ours)


def host(width: int, dtype: torch.dtype = torch.float32) -> Model:
    """A model with a site of some width, for dictionaries to be bound to."""
    config = GPT2Config(vocab_size=8, n_embd=width, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    return Model.load(GPT2LMHeadModel(config).to(dtype))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, nargs="+", default=[4096])
    parser.add_argument("--texts", type=int, nargs=2, default=[200, 200], help="to fit, and to test on")
    parser.add_argument("--width", type=int, default=576, help="of random activations")
    parser.add_argument("--rows", help="activations that --write wrote")
    parser.add_argument("--model", help="a folder")
    parser.add_argument("--site", default="resid.11")
    parser.add_argument("--write", help="a file for the activations of --model")
    parser.add_argument("--alone", action="store_true", help="the closed form alone")
    return parser.parse_args()


def data(options: argparse.Namespace) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Tokens of both sides, the text of each, and the classes of the texts."""
    n = dict(zip(SIDES, options.texts, strict=True))
    if options.model or options.rows:
        texts = {s: biographies(n[s], unseen=s == "test", seed=i) for i, s in enumerate(SIDES)}
        labels = {s: ["/".join(one.group) for one in texts[s]] for s in SIDES}
        if options.rows:
            rows = load_file(options.rows)
            return {key: cut(rows, key, n[key.split(".")[0]]) for key in rows}, labels
        model, rows = Model.load(options.model, dtype=torch.float32), {}
        for s in SIDES:
            found = held(model, [options.site], [one.text for one in texts[s]], batch_size=32)[options.site]
            rows |= {f"{s}.rows": found.rows, f"{s}.text": found.text}
        if options.write:
            save_file(rows, options.write)
        return rows, labels
    generator, rows, labels = torch.Generator().manual_seed(0), {}, {}
    means = 0.25 * torch.randn(5, options.width, generator=generator)
    for s in SIDES:
        text = torch.arange(n[s]).repeat_interleave(torch.randint(20, 60, (n[s],), generator=generator))
        rows[f"{s}.text"] = text
        rows[f"{s}.rows"] = torch.randn(len(text), options.width, generator=generator) + means[text % 5]
        labels[s] = ["abcde"[i % 5] for i in range(n[s])]
    return rows, labels


def cut(rows: dict[str, Tensor], key: str, n: int) -> Tensor:
    """Of the first texts alone."""
    return rows[key][rows[f"{key.split('.')[0]}.text"] < n]


@torch.no_grad()
def explicit(
    coder: SparseCoder, sides: list[Held], pools: list[Pooled], labels: dict[str, list[str]], found: Any,
    ours: float,
) -> None:  # fmt: skip
    """The same by encoding, setting to zero, decoding and pooling, and how far the two are apart."""
    n, generator = len(found.classes), torch.Generator().manual_seed(0)
    texts = [
        [_against(_members(pools[i], labels[s], found.classes), c, generator) for c in range(n)]
        for i, s in enumerate(SIDES)
    ]
    probes = [fitted(Logistic(), pools[0], *some) for some in texts[0]]
    chosen = [
        strongest(differences(pools[0], *some).clamp(min=0) * pools[0].slopes(p.direction), max(SIZES))
        for p, some in zip(probes, texts[0], strict=True)
    ]
    began = time.process_time()
    pool(pools[0].splice, sides[0])
    after = torch.zeros_like(found.after)
    for a, features in enumerate(chosen):
        for i, size in enumerate(SIZES):
            means = ablated(coder, sides[1], features[:size])
            for c, (probe, (some, y)) in enumerate(zip(probes, texts[1], strict=True)):
                after[i, a, c] = ((probe.logits(means[some]) > 0) == y).double().mean()
    theirs = time.process_time() - began
    apart = (after - found.after).abs().max().item()
    print(f"  explicit     {theirs:8.1f} s\n  ratio        {theirs / ours:8.1f}")
    print(f"  accuracies differ by {apart:.1e} at most, in float32")
    exact = copy.deepcopy(coder).double()
    part = sides[1].text < 50
    few = Held(sides[1].site, sides[1].rows[part].double(), sides[1].text[part], min(50, len(sides[1])))
    model = Model.load(
        GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=coder.d_in, n_layer=1, n_head=1)).double()
    )
    precise = pool(bind(model, {"resid.0": exact})["resid.0"], few)
    worst, largest, every = 0.0, 0.0, torch.arange(len(few))
    for features in chosen:
        for size in (2, 50, 500):
            expected = probes[0].logits(ablated(exact, few, features[:size]))
            logits = ablated_logits(precise, probes[0], every, Ablation.of(precise, features), (size,))[0]
            worst = max(worst, (logits - expected).abs().max().item())
            largest = max(largest, expected.abs().max().item())
    print(f"  logits differ by {worst:.1e} at most, in float64, the largest being {largest:.1f}")
    if worst > 1e-6 or apart > 1e-6:
        print("  These are not the same numbers.")


def ablated(coder: SparseCoder, at: Held, features: Tensor) -> Tensor:
    """The mean over the tokens of each text with features at zero, the error kept."""
    means = torch.zeros(len(at), coder.d_in, dtype=torch.float64)
    for rows, text in zip(at.rows.split(512), at.text.split(512), strict=True):
        acts = coder.encode(rows)
        error = rows - coder.decode(acts)
        acts[:, features] = 0
        means.index_add_(0, text, (coder.decode(acts) + error).double())
    return means / torch.bincount(at.text, minlength=len(at))[:, None]


if __name__ == "__main__":
    main()
