"""The command that trains dictionaries, as the command line gives it; the work is the library's."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from interventions.dictionaries import SparseCoder, load, quality, recipes, save
from interventions.dictionaries import table as quality_table
from interventions.dictionaries.recipes import Recipe
from interventions.model import Model

from .annotations import visible
from .dictionary_commands import fitting
from .files import read_json, writable
from .question import Say, checked_device, described, loaded_dictionaries, loaded_model, whole_path
from .record import Clock, interruptible, write_json
from .text import rows

_HELD_OUT = 32_768  # tokens at most
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
    "gated": _Kind("weight", 0.1, lambda weight: recipes.Gated(weight)),
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
    widths = _widths(model, pairs, training)
    say(f"Model         {described(model, training.model)}")
    say(f"Dictionaries  {_said(pairs, widths)}, {training.recipe} with {_sparsity(training)}")
    context = training.context or fitting(model, 256)
    with interruptible("Nothing was trained."):
        n = math.ceil(training.tokens / context)
        text = rows(
            model, training.text or "own", context=context, n=n + _held_out(n, context), progress=progress
        )
    held_out = min(_held_out(n, context), max(1, len(text) // 10))
    text, unseen = text[:-held_out], text[-held_out:]
    if not len(text):
        raise ValueError(
            f"{training.text} holds one row of {context} tokens, and some must be held out to test on."
        )
    tokens = f"{text.numel():,} tokens to train on, {unseen.numel():,} to test on"
    say(f"Text          {_source(training)}: {tokens}")
    clock.lap("loading")
    homes = {seed: folder if len(training.seeds) == 1 else folder / f"seed-{seed}" for seed in training.seeds}
    record = {"command": command, "options": _options(training)}
    if done:
        say(f"\nTrained already: the dictionaries are in {folder}; --fresh trains them anew.")
    else:
        write_json(folder / "settings.json", {"train": record})
        count = len(pairs) * len(homes)
        say(f"\nTraining {count} dictionar{'ies' if count > 1 else 'y'}, {training.steps:,} steps ...")
        with interruptible(f"The same command goes on from {folder / 'checkpoint'}."):
            found = _trained(model, text, pairs, widths, recipe, training, folder, progress)
        for seed, home in homes.items():
            save(found[seed], home)
        _remove(folder / "checkpoint")
        clock.lap("training")
        write_json(folder / "settings.json", {"train": {**record, **clock.record()}})
    with interruptible(f"The dictionaries are in {folder}; the same command tests them."):
        for home in homes.values():
            tested = quality(model, loaded_dictionaries(str(home), model, dtype=model.dtype), unseen)
            write_json(home / "quality.json", {site: _numbers(q) for site, q in tested.items()})
            say(f"\n{'' if home == folder else f'{home.name}, '}on text held out\n\n{quality_table(tested)}")
    clock.lap("testing")
    if not done:
        write_json(folder / "settings.json", {"train": {**record, **clock.record()}})
    say(f"\nWritten to {folder} after {clock}.")
    first = next(iter(homes.values()))
    say(f"`circuits dictionaries inspect {first} --top 20 --out page.html` shows features.")


def site_pairs(model: Model, sites: Sequence[str]) -> list[tuple[str, str]]:
    """What each dictionary reads and writes, from names, patterns and pairs of them.

    In a pair of patterns, the stars on the right stand for what those on the left stand for.

    Raises:
        LookupError: no such site.
        ValueError: two dictionaries that would write the same site.
    """
    pairs: list[tuple[str, str]] = []
    for given in sites:
        reads, arrow, writes = (part.strip() for part in given.partition("->"))
        named = [name for name in model.sites if fnmatchcase(name, reads)]
        if not named:
            named = [model.site(reads).name]  # also those that have a name without being listed
        for name in named:
            pairs.append((name, _filled(reads, name, writes) if arrow else name))
    for _, writes in pairs:
        model.site(writes)
    written = [writes for _, writes in pairs]
    twice = next((name for name in written if written.count(name) > 1), None)
    if len(set(pairs)) < len(pairs):
        pairs = list(dict.fromkeys(pairs))
    elif twice:
        raise ValueError(f"Two dictionaries would write {twice}; train them into different folders.")
    return pairs


def _filled(pattern: str, name: str, other: str) -> str:
    """`other` with its stars filled in as those of `pattern` are in `name`."""
    match = re.fullmatch(re.escape(pattern).replace(r"\*", "(.*)"), name)
    for part in match.groups() if match else ():
        other = other.replace("*", part, 1)
    return other


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


def _trained(
    model: Model, text: Tensor, pairs: Sequence[tuple[str, str]], widths: Mapping[str, int], recipe: Recipe,
    training: Training, folder: Path, progress: bool | None,
) -> dict[int, dict[str, SparseCoder]]:  # fmt: skip
    from interventions.dictionaries import train as learned

    found: dict[int, dict[str, SparseCoder]] = {}
    for seed in training.seeds:
        found[seed] = {}
        for width in dict.fromkeys(widths.values()):
            kept = folder / "checkpoint" / f"seed-{seed}-{width}"
            if (kept / "index.json").exists():
                found[seed] |= load(kept, device=model.device)
                continue
            made = learned(
                model,
                text,
                [pair for pair in pairs if widths[pair[1]] == width],
                n_features=width,
                recipe=recipe,
                steps=training.steps,
                batch_size=training.batch_size,
                lr=training.lr,
                skip=training.skip,
                ignore=getattr(model.tokenizer, "all_special_ids", ()),
                seed=seed,
            )
            save(made, kept)
            found[seed] |= made
    return found


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
    differ = [name for name in now if now[name] != then.get(name) and name != "device"]
    if differ:
        raise ValueError(
            f"{folder} is of a training with another {' and '.join(differ)}; give --out, or --fresh to "
            "replace it."
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


def _said(pairs: Sequence[tuple[str, str]], widths: Mapping[str, int]) -> str:
    names = [writes if reads == writes else f"{reads}->{writes}" for reads, writes in pairs]
    stems = list(dict.fromkeys(re.sub(r"\.\d+(?=$|->)", ".*", visible(name)) for name in names))
    sizes = sorted(set(widths.values()))
    features = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    where = names[0] if len(names) == 1 else f"{len(names)} sites: {', '.join(stems)}"
    return f"at {where}; {features} features"


def _source(training: Training) -> str:
    text = training.text or "own"
    return "the model's own" if text == "own" else visible(Path(text).name)


def _held_out(n: int, context: int) -> int:
    return max(1, min(n // 10, _HELD_OUT // context))
