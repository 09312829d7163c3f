"""What `circuits evaluate-dictionary probing` does; the work is the library's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from interventions.concepts import Pooled, pooled
from interventions.sparse_probing import (
    Examples,
    KSparse,
    Method,
    Quiver,
    Situation,
    baselines,
    imbalance,
    l2_logistic,
    mean_differences,
    noise,
    normal,
    of_pooled,
    one_against_rest,
    quiver,
    scarcity,
    shift,
)
from interventions.sparse_probing.dense import log_spaced
from interventions.steering.token_choice import every, last

from .annotations import visible
from .files import writable
from .question import Say, checked_device, described, loaded_dictionaries, loaded_model, whole_path
from .record import Clock, interruptible, write_json
from .sparse_probing_plots import plot_regime, plot_sizes
from .sparse_probing_texts import Texts, texts_of

_FEW = 4  # texts of a class, in training and in testing


@dataclass(frozen=True)
class Probing:
    """What is probed, as it stands on the command line and in settings.json."""

    model: str = "embedded"
    dictionaries: str = "embedded"
    site: Sequence[str] | None = None
    train: str | None = None
    test: str | None = None
    shifted: Sequence[str] | None = None
    biographies: int | None = None
    bias_in_bios: bool = False
    each: int | None = None
    held_out: float = 0.4
    text_column: str = "text"
    labels: Sequence[str] | None = None
    pool: str = "mean"
    k: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128)
    rule: str = "sae-probes"
    trees: int = 4
    regime: Sequence[str] = ("normal",)
    points: int = 6
    seed: int = 0
    batch_size: int = 16
    device: str = "auto"
    dtype: str | None = None


def probe(
    asked: Probing,
    *,
    out: str | None,
    fresh: bool,
    pictures: bool,
    progress: bool | None,
    command: str,
    say: Say,
) -> None:
    """Probes every class at every site in every regime, and writes table, pictures and a JSON file."""
    clock = Clock()
    asked = replace(
        asked,
        model=whole_path(asked.model, "embedded"),
        dictionaries=whole_path(asked.dictionaries, "embedded"),
        device=checked_device(asked.device),
    )
    texts = texts_of(asked)
    _check(asked, texts)
    folder = writable(out or Path("results") / f"probing-{re.sub(r'[^A-Za-z0-9_.-]+', '_', texts.name)}")
    path = folder / "quiver.json"
    if fresh:
        path.unlink(missing_ok=True)
    model = loaded_model(asked.model, device=asked.device, dtype=asked.dtype)
    known = loaded_dictionaries(asked.dictionaries, model, sites=asked.site, dtype=model.dtype)
    say(f"Model         {described(model, asked.model)}")
    say(f"Dictionaries  {visible(Path(asked.dictionaries).name)}, at {', '.join(known)}")
    say(f"Texts         {texts}")
    with interruptible("Nothing was probed."):
        read = pooled(
            model, known, texts.texts, tokens=every if asked.pool == "mean" else last,
            batch_size=asked.batch_size, progress=progress,
        )  # fmt: skip
    clock.lap("reading")
    situations = [one for site, each in read.items() for one in _situations(asked, texts, each, site)]
    methods = [*baselines(seed=asked.seed, trees=asked.trees), *_sparse(asked)]
    say(f"\nProbing in {len(situations)} situations, {len(methods)} methods in each ...")
    with interruptible(f"The same command goes on from {path}."):
        found = quiver(situations, methods, path=path, seed=asked.seed, progress=progress)
    clock.lap("probing")
    say(f"\n{found.table()}\n\n{found.method_table()}")
    if pictures:
        _draw(found, folder, read)
    write_json(folder / "settings.json", {"command": command, "options": asdict(asked), **clock.record()})
    say(f"\nWritten to {folder} after {clock}.")


def _check(asked: Probing, texts: Texts) -> None:
    if "shift" in asked.regime and not texts.kinds:
        raise ValueError("--regime shift is tested on texts of another kind: give --shifted FILE.")
    if asked.shifted and "shift" not in asked.regime:
        raise ValueError("--shifted is for --regime shift, which is not asked for.")
    for column, labels in texts.labels.items():
        for name, index in (("train on", texts.train), ("test on", texts.test), *_named(texts.kinds)):
            counts = {one: sum(labels[i] == one for i in index) for one in sorted(set(labels))}
            if len([n for n in counts.values() if n]) < 2:
                raise ValueError(
                    f"All texts to {name} have the same {column!r}, {labels[index[0]]!r}: there is nothing "
                    "to tell apart."
                )
            few = min(counts, key=lambda one: counts[one])
            if counts[few] < _FEW:
                raise ValueError(
                    f"There are {counts[few]} texts to {name} whose {column!r} is {few!r}; {_FEW} are the "
                    "least."
                )


def _named(kinds: Mapping[str, Sequence[int]]) -> list[tuple[str, Sequence[int]]]:
    return [(f"test on in {name}", index) for name, index in kinds.items()]


def _sparse(asked: Probing) -> list[Method]:
    if asked.rule == "sae-probes":
        return [KSparse(k) for k in asked.k]
    return [KSparse(k, ranking=mean_differences, solve=l2_logistic, penalties=(1.0,)) for k in asked.k]


def _situations(asked: Probing, texts: Texts, read: Pooled, site: str) -> list[Situation]:
    found: list[Situation] = []
    for column, labels in texts.labels.items():
        for one, positive in one_against_rest(labels).items():
            whole = of_pooled(read, positive, name=f"{column} {one}")
            train, test = whole.of(texts.train), whole.of(texts.test)
            for regime in dict.fromkeys(asked.regime):
                if regime == "shift":
                    kinds = {name: whole.of(index) for name, index in texts.kinds.items()}
                    found += shift(train, kinds, site=site)
                else:
                    found += _varied(asked, regime, train, test, site)
    return found


def _varied(asked: Probing, regime: str, train: Examples, test: Examples, site: str) -> list[Situation]:
    points, seed = asked.points, asked.seed
    if regime == "scarcity":
        sizes = log_spaced(2, min(1024, len(train)), points)
        return scarcity(train, test, sizes=sizes, seed=seed, site=site)
    if regime == "imbalance":
        ratios = [round(x, 4) for x in torch.linspace(0.05, 0.95, points).tolist()] if points > 1 else [0.05]
        return imbalance(train, test, ratios=ratios, seed=seed, site=site)
    if regime == "noise":
        shares = [round(x, 4) for x in torch.linspace(0, 0.5, points).tolist()] if points > 1 else [0.3]
        return noise(train, test, shares=shares, seed=seed, site=site)
    return normal(train, test, site=site)


def _draw(found: Quiver, folder: Path, sites: Mapping[str, Pooled]) -> None:
    for site in sites:
        stem = re.sub(r"[^\w.-]+", "_", site)
        here = found.where(lambda one, site=site: one.site == site)
        for regime in here.regimes:
            some = here.of(regime)
            if regime in ("normal", "shift"):
                plot_sizes(some, folder / f"{stem}-{regime}.svg", title=f"{site}, {regime}")
            elif len({one.value for one in some.trials}) > 1:
                plot_regime(some, folder / f"{stem}-{regime}.svg", title=site)
