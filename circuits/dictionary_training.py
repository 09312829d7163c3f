"""The command that trains dictionaries, as the command line gives it; the work is the library's."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from interventions.dictionaries import (
    CrossLayer,
    CrossLayerJob,
    Job,
    SparseCoder,
    quality,
    recipes,
    save,
    train_jobs,
)
from interventions.dictionaries import table as quality_table
from interventions.dictionaries.recipes import Recipe
from interventions.dictionaries.texts import row_length
from interventions.model import Model

from .annotations import visible
from .files import read_json, writable, write_tensors
from .question import Say, checked_device, described, loaded_dictionaries, loaded_model, whole_path
from .record import Clock, interruptible, write_json
from .site_pairs import described_pairs, site_pairs
from .text import rows, special

_HELD_OUT = 32_768  # tokens at most
_EVERY = 500  # steps between two checkpoints
_FILES = ("settings.json", "metrics.jsonl", "quality.json", "index.json")
_OURS = re.compile(r"-[0-9a-f]{12}\.safetensors$")


@dataclass(frozen=True)
class Training:
    """How dictionaries are trained, as it stands on the command line and in settings.json."""

    model: str = "embedded"
    text: str | None = None
    sites: Sequence[str] = ("resid.*",)
    tokens: int = 1_000_000
    context: int | None = None
    recipe: str = "batchtopk"
    k: int | None = None
    l0: float | None = None
    weight: float | None = None
    features: int | None = None
    expansion: float = 8.0
    skip: bool = False
    cross_layer: bool = False
    seeds: Sequence[int] = (0,)
    steps: int = 5000
    batch_size: int = 512
    lr: float | None = None
    device: str = "auto"
    dtype: str | None = None


@dataclass(frozen=True)
class _Kind:
    """A recipe: the option that says how sparse it is, that by default, and the recipe of the library."""

    option: str
    default: float
    recipe: Callable[[Any], Recipe]


RECIPES: Mapping[str, _Kind] = {
    "topk": _Kind("k", 16, lambda k: recipes.TopK(k, start=4 * k)),
    "batchtopk": _Kind("k", 16, lambda k: recipes.BatchTopK(k, start=4 * k)),
    "matryoshka": _Kind("k", 16, lambda k: recipes.Matryoshka(k, start=4 * k)),
    "jumprelu": _Kind("l0", 16, lambda l0: recipes.JumpReLU(l0)),
    "gated": _Kind("weight", 0.4, lambda weight: recipes.Gated(weight)),
    "l1": _Kind("weight", 0.1, lambda weight: recipes.L1(weight)),
    "p-anneal": _Kind("weight", 0.1, lambda weight: recipes.PAnneal(weight)),
}


def train(
    training: Training, *, out: str | None, fresh: bool, progress: bool | None, command: str, say: Say
) -> None:
    """Trains dictionaries side by side, tests them on text held out, and writes everything into a folder."""
    clock = Clock()
    recipe = _recipe(training)
    training = replace(
        training,
        model=whole_path(training.model, "embedded"),
        text=whole_path(training.text or "own", "own"),
        device=checked_device(training.device),
    )
    name = re.sub(r"[^\w.-]+", "_", Path(training.model).name).strip("._") or "model"
    folder = writable(out or Path("results") / "dictionaries" / name)
    if fresh:
        _discard(folder)
    done = _begun(folder, training)
    model = loaded_model(training.model, device=training.device, dtype=training.dtype)
    pairs = site_pairs(model, training.sites)
    if training.skip and all(reads == writes for reads, writes in pairs):
        raise ValueError("--skip is for transcoders, --sites 'READS->WRITES', and here are none.")
    widths = _widths(model, pairs, training)
    jobs = _jobs(pairs, widths, recipe, training)
    say(f"Model         {described(model, training.model)}")
    say(f"Dictionaries  {described_pairs(pairs, widths)}, {training.recipe} with {_sparsity(training)}")
    context = row_length(model, training.context, 256)
    with interruptible("Nothing was trained."):
        text, unseen = _texts(model, training, folder, context, progress, done=done)
    tokens = f"{text.numel():,} tokens to train on, " if not done else ""
    say(f"Text          {_source(training)}: {tokens}{unseen.numel():,} to test on")
    clock.lap("loading")
    homes = {seed: folder if len(training.seeds) == 1 else folder / f"seed-{seed}" for seed in training.seeds}
    record = {"command": command, "options": _options(training)}
    if done:
        say(f"\nTrained already: the dictionaries are in {folder}; --fresh trains them anew.")
    else:
        write_json(folder / "settings.json", {"train": record})
        begun = folder / "checkpoint" / "training.json"
        step = read_json(begun).get("step", 0) if begun.exists() else 0
        steps = f"{training.steps:,} steps" if not step else f"from step {step:,} of {training.steps:,} on"
        say(f"\nTraining {len(jobs)} dictionar{'ies' if len(jobs) > 1 else 'y'}, {steps} ...")
        with interruptible(f"The same command goes on from {folder / 'checkpoint'}."):
            found = _trained(model, text, jobs, training, folder, progress)
        for seed, home in homes.items():
            save(found[seed], home)
        _remove(folder / "checkpoint")
        clock.lap("training")
        write_json(folder / "settings.json", {"train": {**record, **clock.record()}})
    with interruptible(f"The dictionaries are in {folder}; the same command tests them."):
        for home in homes.values():
            known = loaded_dictionaries(str(home), model, dtype=model.dtype)
            tested = quality(model, known, unseen, ignore=special(model))
            write_json(home / "quality.json", {site: _numbers(q) for site, q in tested.items()})
            say(f"\n{'' if home == folder else f'{home.name}, '}on text held out\n\n{quality_table(tested)}")
    clock.lap("testing")
    if not done:
        write_json(folder / "settings.json", {"train": {**record, **clock.record()}})
    say(f"\nWritten to {folder} after {clock}.")
    first = next(iter(homes.values()))
    say(f"`circuits dictionaries inspect {first} --top 20 --out page.html` shows features.")


def _widths(model: Model, pairs: Sequence[tuple[str, str]], training: Training) -> dict[str, int]:
    """The features of each dictionary, by the site that it writes."""
    return {
        writes: training.features or max(1, round(training.expansion * model.site(reads).width))
        for reads, writes in pairs
    }


def _recipe(training: Training) -> Recipe:
    kind = RECIPES[training.recipe]
    given = {name: getattr(training, name) for name in ("k", "l0", "weight")}
    wrong = [name for name, value in given.items() if value is not None and name != kind.option]
    if wrong:
        raise ValueError(f"The recipe {training.recipe} takes --{kind.option}, not --{wrong[0]}.")
    value = given[kind.option]
    return kind.recipe(kind.default if value is None else value)


def _sparsity(training: Training) -> str:
    kind = RECIPES[training.recipe]
    value = getattr(training, kind.option)
    return f"{kind.option} {kind.default if value is None else value:g}"


def _jobs(
    pairs: Sequence[tuple[str, str]], widths: Mapping[str, int], recipe: Recipe, training: Training
) -> dict[tuple[int, str], Job | CrossLayerJob]:
    """What is to be trained, by seed and by the site that it writes, or by the word `cross-layer`."""
    crossing = [pair for pair in pairs if pair[0] != pair[1]] if training.cross_layer else []
    if training.cross_layer and (training.skip or not crossing):
        raise ValueError(
            "--cross-layer takes pairs such as --sites 'mlp_in.*->mlp.*', and goes without --skip."
        )
    jobs: dict[tuple[int, str], Job | CrossLayerJob] = {}
    for seed in training.seeds:
        own: dict[str, Any] = {"lr": training.lr, "seed": seed}
        for reads, writes in pairs:
            if (reads, writes) not in crossing:
                skip = training.skip and reads != writes
                jobs[seed, writes] = Job(writes, widths[writes], recipe, reads=reads, skip=skip, **own)
        if crossing:
            jobs[seed, "cross-layer"] = CrossLayerJob(crossing, widths[crossing[0][1]], recipe, **own)
    return jobs


def _trained(
    model: Model,
    text: Tensor,
    jobs: Mapping[tuple[int, str], Job | CrossLayerJob],
    training: Training,
    folder: Path,
    progress: bool | None,
) -> dict[int, dict[str, SparseCoder | CrossLayer]]:
    """The dictionaries by seed and by the site that they write."""
    several = len(training.seeds) > 1
    names = {(seed, writes): f"seed-{seed}/{writes}" if several else writes for seed, writes in jobs}
    try:
        made = train_jobs(
            model,
            text,
            {names[key]: job for key, job in jobs.items()},
            steps=training.steps,
            batch_size=training.batch_size,
            ignore=special(model),
            checkpoint=folder / "checkpoint",
            every=_EVERY,
            keep_checkpoint=True,  # until what was learned is saved
            log=folder / "metrics.jsonl",
            progress=progress,
        )
    except ValueError:
        if not (folder / "checkpoint" / "training.json").exists():
            _discard(folder)  # nothing was begun, so other options are no other training
        raise
    found: dict[int, dict[str, SparseCoder | CrossLayer]] = {seed: {} for seed in training.seeds}
    for (seed, writes), name in names.items():
        coder = made[name]
        found[seed] |= {writes: coder} if isinstance(coder, SparseCoder) else coder.layers()
    return found


def _texts(
    model: Model, training: Training, folder: Path, context: int, progress: bool | None, *, done: bool
) -> tuple[Tensor, Tensor]:
    """Rows of tokens to train on (none where that is done), and others to test on."""
    source = training.text or "own"
    n = math.ceil(training.tokens / context)
    held_out = max(1, min(n // 10, _HELD_OUT // context))
    if source == "own":
        unseen = rows(model, source, context=context, n=held_out, seed=1, progress=progress)
        kept = folder / "checkpoint" / "text.safetensors"
        if done or kept.exists():
            return (unseen[:0] if done else load_file(kept)["tokens"].long()), unseen
        text = rows(model, source, context=context, n=n, progress=progress)
        writable(kept.parent)
        write_tensors(kept, {"tokens": text.int()})
        return text, unseen
    text = rows(model, source, context=context, n=n + held_out, progress=progress)
    held_out = min(held_out, max(1, len(text) // 10))
    if len(text) == held_out:
        raise ValueError(f"{source} holds one row of {context} tokens, and some must be held out to test on.")
    return text[:-held_out], text[-held_out:]


# --- what is in the folder ----------------------------------------------------------------------------------


def _begun(folder: Path, training: Training) -> bool:
    """Whether these dictionaries are in the folder already, finished.

    Raises:
        ValueError: a folder of something else, or of another training.
    """
    path = folder / "settings.json"
    if not path.exists():
        if (folder / "index.json").exists():
            raise ValueError(f"{folder} holds dictionaries that were not trained here: give another --out.")
        return False
    before = read_json(path).get("train")
    if not isinstance(before, dict) or not isinstance(before.get("options"), dict):
        raise ValueError(f"{path} is a file of something else: choose another folder.")
    now, then = _options(training), before["options"]
    then = {**_options(Training()), **then}  # older ones lack what could not be chosen then
    differ = [name for name in now if now[name] != then[name] and name != "device"]
    if differ:
        raise ValueError(
            f"{folder} is of a training with another --{', --'.join(differ).replace('_', '-')}; give "
            "--out, or --fresh to replace it."
        )
    return "finished" in before


def _options(training: Training) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(training)))


def _discard(folder: Path) -> None:
    """Removes what an earlier training left in the folder, and nothing else."""
    if not (folder / "settings.json").exists():
        return
    before = read_json(folder / "settings.json").get("train", {}).get("options")
    if before is None:
        raise ValueError(f"{folder / 'settings.json'} is a file of something else: choose another folder.")
    _remove(folder / "checkpoint")
    homes = [folder, *(folder / f"seed-{seed}" for seed in before.get("seeds", ()))]
    for home in homes:
        ours = [path for path in home.glob("*.safetensors") if _OURS.search(path.name)]
        for path in [home / name for name in _FILES] + ours:
            path.unlink(missing_ok=True)
        if home != folder and home.is_dir() and not any(home.iterdir()):
            home.rmdir()


def _remove(checkpoint: Path) -> None:
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)


# --- what is said -------------------------------------------------------------------------------------------


def _numbers(measured: Any) -> dict[str, Any]:
    """The numbers of a quality, those that it works out among them."""
    found = {k: v for k, v in vars(measured).items() if isinstance(v, int | float | str)}
    worked_out = (name for name, value in vars(type(measured)).items() if isinstance(value, property))
    return {**found, **{name: getattr(measured, name) for name in worked_out}}


def _source(training: Training) -> str:
    text = training.text or "own"
    return "the model's own" if text == "own" else visible(Path(text).name)
