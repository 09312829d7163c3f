"""Steering in generation over the same generation unsteered, and the extraction of directions, beside
steering-vectors and repeng where they are installed.

    pip install steering-vectors==0.12.2 repeng==0.4.0   # the others; without them their rows are missing
    python tests/bench_steering.py

Models have random weights and the shape of a Llama. Arms take turns in an order drawn anew for each round, in
one process on one thread, and what is measured is the processor time that they take. Ratios to the first arm
are of minima, and the median of those within rounds. Peak memory is that of a process forked for each arm,
over what it held before.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import random
import re
import statistics
import sys
import time
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interventions.model import Model
from interventions.permanent import bake
from interventions.splice import applied
from interventions.steering.contrast import contrast
from interventions.steering.methods import centred_pca, mean_difference
from interventions.tensor_edits import Add
from interventions.where import Where

np.float_ = np.float64  # gone in numpy 2, which repeng 0.4.0 does not know
try:
    import steering_vectors
except ImportError:
    steering_vectors = None
try:
    import repeng
except ImportError:
    repeng = None

VOCAB = 1000
Arms = dict[str, tuple[Callable[[], AbstractContextManager], Callable[[], object]]]


def llama(width: int, layers: int) -> Model:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=layers, intermediate_size=8 * width // 3,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=512,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Model.load(LlamaForCausalLM(config), tokenizer=words())


def words() -> PreTrainedTokenizerFast:
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="right"
    )


def rounds(arms: Arms, n: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(n + 1):
        for name in random.Random(i).sample(list(arms), len(arms)):
            around, fn = arms[name]
            with around():
                start = time.process_time()
                fn()
                if i:
                    seconds[name].append(time.process_time() - start)
    return seconds


def peak(fn: Callable[[], object]) -> float:
    """MiB that a forked process needed for `fn`, over what it held before."""

    def memory(key: str) -> int:
        return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]

    def child(pipe) -> None:
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        fn()
        pipe.send((memory("VmHWM") - before) / 1024)

    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=child, args=(theirs,))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


class Steps:
    """A streamer that notes when each token came."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, _tokens) -> None:
        self.times.append(time.process_time())

    def end(self) -> None:
        pass


def table(seconds: dict[str, list[float]], base: str, memory: dict[str, float] | None = None) -> None:
    low = min(seconds[base])
    for name, found in seconds.items():
        paired = statistics.median(x / y for x, y in zip(found, seconds[base], strict=True))
        line = (
            f"  {name:34} {1000 * min(found):7.1f} ms   {min(found) / low:.3f} of minima, {paired:.3f} paired"
        )
        print(line + (f"   {memory[name]:6.1f} MiB" if memory else ""))


def generation(n: int, new: int, batch: int) -> None:
    model = llama(256, 4)
    tokens = torch.randint(3, VOCAB, (batch, 16), generator=torch.Generator().manual_seed(1))
    vectors = {i: torch.randn(256, generator=torch.Generator().manual_seed(i)) for i in range(4)}
    written: dict[str, torch.Tensor] = {}
    steps: dict[str, list[list[float]]] = {}

    def arm(name: str, module, around=nullcontext):
        def generate() -> None:
            streamer = Steps()
            written[name] = module.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, min_new_tokens=new,
                do_sample=False, pad_token_id=0, streamer=streamer,
            )  # fmt: skip
            took = [after - before for before, after in pairwise(streamer.times)]
            steps.setdefault(name, []).append(took)

        return around, generate

    def ours(layers):
        add = Add({f"resid.{i}": vectors[i] for i in layers})
        return lambda: applied(model, add)

    @contextlib.contextmanager
    def wrapped(layers):
        control = repeng.ControlModel(model.module, list(layers))
        try:
            control.set_control(repeng.ControlVector("llama", {i: v.numpy() for i, v in vectors.items()}))
            yield
        finally:
            control.unwrap()

    arms: Arms = {
        "unsteered": arm("unsteered", model.module),
        "unsteered again": arm("unsteered again", model.module),
    }
    for layers in ((2,), range(4)):
        count = f"{len(layers)} site{'s' * (len(layers) > 1)}"
        add = {f"resid.{i}": vectors[i] for i in layers}
        arms[f"applied, {count}"] = arm(f"ours {count}", model.module, ours(layers))
        arms[f"baked, {count}"] = arm(f"baked {count}", bake(model, add).module)
        if steering_vectors is not None:
            theirs = steering_vectors.SteeringVector({i: vectors[i] for i in layers})
            around = lambda theirs=theirs: theirs.apply(model.module)  # noqa: E731
            arms[f"steering-vectors, {count}"] = arm(f"steering-vectors {count}", model.module, around)
        if repeng is not None:
            around = lambda layers=layers: wrapped(layers)  # noqa: E731
            arms[f"repeng, {count}"] = arm(f"repeng {count}", model.module, around)
    writing = Add({f"resid.{i}": vectors[i] for i in range(4)}).at(Where(prompt=None))
    arms["applied, 4 sites, what is written"] = arm(
        "ours, what is written", model.module, lambda: applied(model, writing)
    )
    print(f"{new} tokens, greedy, {batch} row{'s' * (batch > 1)}, after 16; 4 layers, width 256; {n} rounds")
    seconds = rounds(arms, n)
    table(seconds, "unsteered")
    quickest = {name: sum(map(min, zip(*took, strict=True))) for name, took in steps.items()}
    print("the same, each token at the quickest that it was in any round")
    for name, found in quickest.items():
        print(f"  {name:34} {1000 * found:7.1f} ms   {found / quickest['unsteered']:.3f}")
    for count in ("1 site", "4 sites"):
        same = [name for name in written if name.endswith(count)]
        assert all(torch.equal(written[name], written[f"ours {count}"]) for name in same), same
        assert not torch.equal(written[f"ours {count}"], written["unsteered"])
    print("  all write the same tokens")


def single_site() -> None:
    """What steering adds to a call of one block, in microseconds, each at its quickest; no model around."""
    model, x = llama(256, 4), torch.randn(1, 1, 256)
    vector = torch.randn(256)

    def quickest(fn: Callable[[], object]) -> float:
        return 1e6 * min(timeit.repeat(fn, number=50, repeat=2000)) / 50

    block = model.blocks[2]
    block.forward = lambda x: x  # type: ignore[method-assign]
    with torch.inference_mode():
        bare = quickest(lambda: block(x))
        print("one row of width 256 through a block that does nothing")
        print(f"  {'x + vector, without a model':34} {quickest(lambda: x + vector):5.1f} us")
        with applied(model, Add({"resid.2": vector})):
            print(f"  {'applied':34} {quickest(lambda: block(x)) - bare:5.1f} us")
        if steering_vectors is not None:
            with steering_vectors.SteeringVector({2: vector}).apply(model.module):
                print(f"  {'steering-vectors':34} {quickest(lambda: block(x)) - bare:5.1f} us")
        if repeng is not None:
            control = repeng.ControlModel(model.module, [2])
            control.set_control(repeng.ControlVector("llama", {2: vector.numpy()}))
            wrapped = model.blocks[2]
            print(f"  {'repeng':34} {quickest(lambda: wrapped(x)) - bare:5.1f} us")


def extraction(n: int, n_pairs: int) -> None:
    model, drawn = llama(384, 6), random.Random(0)
    pairs = []
    for _ in range(n_pairs):
        text = [f"w{drawn.randrange(10, VOCAB)}" for _ in range(drawn.randint(8, 24))]
        pairs.append((" ".join([*text, "w5"]), " ".join([*text, "w6"])))
    sites, found = [f"resid.{i}" for i in range(6)], {}

    def kept(name: str, fn: Callable[[], dict]):
        def run() -> None:
            with contextlib.redirect_stderr(io.StringIO()):
                found[name] = fn()

        return nullcontext, run

    def ours(method):
        return dict(contrast(model, pairs, sites, method=method, batch_size=16, progress=False))

    arms: Arms = {"contrast, mean difference": kept("mean", lambda: ours(mean_difference))}
    arms["contrast, centred PCA"] = kept("pca", lambda: ours(centred_pca))
    if steering_vectors is not None:
        arms["steering-vectors, mean"] = kept(
            "steering-vectors",
            lambda: (
                steering_vectors.train_steering_vector(
                    model.module, model.tokenizer, pairs, batch_size=16
                ).layer_activations
            ),
        )
    if repeng is not None:
        entries = [repeng.DatasetEntry(*pair) for pair in pairs]
        arms["repeng, pca_diff"] = kept(
            "repeng",
            lambda: (
                repeng.ControlVector.train(
                    model.module, model.tokenizer, entries, batch_size=16, hidden_layers=list(range(6))
                ).directions
            ),
        )
    print(f"directions of {n_pairs} pairs at 6 sites; 6 layers, width 384; 16 texts in a pass; {n} rounds")
    memory = {name: peak(fn) for name, (_, fn) in arms.items()}
    table(rounds(arms, n), "contrast, mean difference", memory)
    for theirs, mine in (("steering-vectors", "mean"), ("repeng", "pca")):
        for layer, vector in sorted(found.get(theirs, {}).items()):
            cosine = torch.cosine_similarity(torch.as_tensor(vector), found[mine][f"resid.{layer}"], dim=0)
            print(f"  {theirs}, layer {layer}: cosine with ours {cosine:.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--new", type=int, default=64, help="tokens that are written")
    parser.add_argument("--rows", type=int, default=1, help="texts that are written at once")
    parser.add_argument("--pairs", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, library in (("steering-vectors", steering_vectors), ("repeng", repeng)):
        if library is None:
            print(f"{name} is not installed: its rows are missing", file=sys.stderr)
    single_site()
    extraction(max(5, args.rounds // 4), args.pairs)
    generation(args.rounds, args.new, args.rows)


if __name__ == "__main__":
    main()
