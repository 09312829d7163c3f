"""The command that finds a direction, as the command line gives it; the work is the library's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from interventions.model import Model
from interventions.recurrence import State, read_state
from interventions.steering import (
    Direction,
    contrast,
    linear_probe,
    logistic_probe,
    mean_difference,
    paired_pca,
    pca,
    promoted,
)
from interventions.steering.controls import bootstrapped, cross_validated
from interventions.steering.likelihood import prompt_ids
from interventions.steering.methods import Method, centred_pca, lda
from interventions.steering.pair_activations import flips
from tasks import ContrastSet

from .annotations import visible
from .files import writable
from .question import Say, checked_device, chosen, described, loaded_model, whole_path
from .record import Clock, interruptible, write_json
from .steering_folder import FOLDERS, SETTINGS, discard, read_settings
from .steering_sets import SETS, chat, pairs
from .token_words import choice

_FOLDS = 5
_TOKENS = 5  # of those that a direction speaks for
METHODS: Mapping[str, Method] = {
    "mean-difference": mean_difference,
    "pca": pca,
    "paired-pca": paired_pca,
    "centred-pca": centred_pca,
    "lda": lda,
    "logistic": logistic_probe,
    "linear": linear_probe,
}


@dataclass(frozen=True)
class Extraction:
    """How a direction is found, as it stands on the command line and in settings.json."""

    model: str = "embedded"
    pairs: str = "plural_singular"
    examples: int | None = None
    seed: int = 0
    chat: bool = False
    sites: tuple[str, ...] = ("resid.*",)
    method: str = "mean-difference"
    tokens: str | None = None
    bootstrap: int = 100
    shuffled: int | None = None
    state: bool = False
    batch_size: int = 16
    device: str = "auto"
    dtype: str | None = None


def extract(
    asked: Extraction, *, out: str | None, pictures: bool, progress: bool | None, command: str, say: Say
) -> None:
    """Finds a direction at every site, says how well it separates pairs that were held out, and writes it."""
    clock = Clock()
    if asked.tokens is not None:
        choice(asked.tokens)
    asked = replace(
        asked,
        model=whole_path(asked.model, "embedded"),
        pairs=whole_path(asked.pairs, *SETS),
        device=checked_device(asked.device),
    )
    pairs(asked.pairs, n=asked.examples, seed=asked.seed, ask=None)  # mistakes show before the model loads
    name = re.sub(r"[^\w.-]+", "_", Path(asked.pairs).stem).strip("._") or "pairs"
    folder = writable(out or Path("results") / f"steering-{name}")
    _check_folder(folder)
    model = loaded_model(asked.model, device=asked.device, dtype=asked.dtype)
    say(f"Model         {described(model, asked.model)}")
    ask = chat(model) if asked.chat else None
    found, word = pairs(asked.pairs, n=asked.examples, seed=asked.seed, ask=ask)
    asked = replace(asked, tokens=asked.tokens or word)
    positive, negative = (_short(text) for text in found[0])
    say(f"Pairs         {visible(found.name)}, {len(found)}: {positive} / {negative}")
    clock.lap("loading")
    with interruptible("Nothing was written."):
        held, site = (_state if asked.state else _direction)(model, found, asked, progress, say)
    clock.lap("finding")
    for trials in FOLDERS.values():
        discard(folder / trials)  # what was measured of an earlier direction
    held.save(folder)
    for other in {"state.json", "direction.json"} - {"state.json" if asked.state else "direction.json"}:
        (folder / other).unlink(missing_ok=True)
    written = [*_pictures(held, folder)] if pictures and isinstance(held, Direction) else []
    clock.lap("drawing")
    record = {"command": command, "options": asdict(asked), "site": site, "model": model.fingerprint}
    write_json(folder / SETTINGS, {"steer extract": {**record, **clock.record()}})
    names = ["state.json" if asked.state else "direction.json", *written, SETTINGS]
    say(f"\nWritten to {folder} after {clock}: {', '.join(names)}.")
    say(f"`circuits steer {'evaluate' if asked.state else 'sweep'} {folder}` measures what it does.")


def _check_folder(folder: Path) -> None:
    settings = read_settings(folder)
    if settings and "steer extract" not in settings:
        raise ValueError(f"{folder / SETTINGS} is a file of something else: choose another folder.")


def _direction(
    model: Model, found: ContrastSet, asked: Extraction, progress: bool | None, say: Say
) -> tuple[Direction, str]:
    """The direction, and the site at which it separates pairs best."""
    sites = [*chosen(dict.fromkeys(model.sites), asked.sites)]  # type: ignore[type-var]
    folds = min(_FOLDS, len(found)) if len(found) >= 4 else 0
    direction = contrast(
        model,
        found,
        sites,
        method=METHODS[asked.method],
        tokens=choice(asked.tokens or "last"),
        batch_size=asked.batch_size,
        shuffled=asked.shuffled,
        bootstrap=asked.bootstrap if len(found) > 1 else 0,
        folds=folds,
        seed=asked.seed,
        progress=progress,
    )
    said = _said(model, direction)
    best = _best(direction)
    shuffled = "" if asked.shuffled is None else ", labels shuffled"
    say(f"Direction     {asked.method} at {len(sites)} sites, tokens: {asked.tokens}{shuffled}\n")
    say(_table(direction, said, best))
    if folds:
        say(f"\nAUROC and d' are of pairs held out, in {folds} parts; * separates them best.")
    else:
        say("\nNo pairs were held out: that takes at least four.")
    return direction, best


def _best(direction: Direction) -> str:
    separation = direction.how.get("separation")
    if not separation:
        return [*direction][-1]
    return max(direction, key=lambda site: (round(separation[site]["auroc"], 3), separation[site]["d"]))


def _said(model: Model, direction: Direction) -> dict[str, str]:
    """The tokens that each vector speaks for; none where it is not of the residual stream's width."""
    try:
        found = promoted(model, direction, k=_TOKENS)
    except ValueError:  # no site of that width, or no unembedding
        return {}
    if model.tokenizer is None:
        return {}
    return {site: " ".join(visible(text) for text, _ in each.raised) for site, each in found.items()}


def _table(direction: Direction, said: Mapping[str, str], best: str) -> str:
    how, drawn = direction.how.get("separation"), direction.how.get("bootstrap")
    head = ["site", "norm", *(["AUROC", "d'"] if how else []), *(["redrawn"] if drawn else [])]
    rows = []
    for site in direction:
        row = [f"{site}{' *' if site == best and how else ''}", f"{direction.norms[site]:.3g}"]
        row += [f"{how[site]['auroc']:.3f}", f"{how[site]['d']:.2f}"] if how else []
        row += ["{cosine:.3f} [{low:.3f}, {high:.3f}]".format(**drawn[site])] if drawn else []
        rows.append(row)
    return aligned([head, *rows], ["promotes", *(said.get(site, "") for site in direction)] if said else None)


def aligned(rows: list[list[str]], last: list[str] | None = None) -> str:
    """Columns, the first flush left and the others right; and one more that may be of any width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for i, row in enumerate(rows):
        cells = [f"{row[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells + ([last[i]] if last else [])).rstrip())
    return "\n".join(lines)


def _pictures(direction: Direction, folder: Path) -> Iterator[str]:
    from .direction_plots import plot_separation, plot_similarity

    if "separation" in direction.how:
        yield plot_separation(direction, folder / "separation.svg").name
    widths = {len(direction[site]) for site in direction}
    if len(direction) > 1 and len(widths) == 1:
        yield plot_similarity(direction, folder / "similarity.svg").name


def _short(text: str, most: int = 50) -> str:
    """The end of a text on one line, which is where a pair mostly differs."""
    line = visible(text)
    return line if len(line) <= most else "…" + line[1 - most :]


# --- state --------------------------------------------------------------------------------------------------


def _state(
    model: Model, found: ContrastSet, asked: Extraction, progress: bool | None, say: Say
) -> tuple[State, None]:
    """The mean difference of the states after the two texts of each pair."""
    if asked.method != "mean-difference":
        raise ValueError(f"--state takes the mean difference, not --method {asked.method}.")
    if asked.tokens not in ("last", "answer-letter"):
        raise ValueError(f"--state is read after all tokens of a text, not --tokens {asked.tokens}.")
    sides = [
        read_state(
            model, [prompt_ids(model, text) for text in texts], batch_size=asked.batch_size, progress=progress
        )
        for texts in (found.positive, found.negative)
    ]
    if asked.shuffled is not None:
        swap = flips(len(found), asked.shuffled).tolist()
        joined, n = State.joined(sides), len(found)
        sides = [
            joined.rows([i + n * (flip ^ side) for i, flip in enumerate(swap)]) for side in (False, True)
        ]
    delta = sides[0].mean() - sides[1].mean()
    say(f"State         {delta!r}\n")
    say(_state_table(delta, *sides, asked=asked))
    return delta, None


def _state_table(delta: State, positive: State, negative: State, *, asked: Extraction) -> str:
    folds = min(_FOLDS, positive.batch) if positive.batch >= 4 else 0
    coupled = {name for couple in delta.couples for name in (couple.scale, *couple.parts)}
    rows = [["state", "norm", "AUROC", "d'", "redrawn"]]
    for name in delta:
        row = [name, f"{delta[name].norm():.3g}", "", "", ""]
        both = [side[name].flatten(1).double() for side in (positive, negative)]
        if folds and name not in coupled:
            separation, _ = cross_validated(mean_difference, *both, folds=folds, seed=asked.seed)
            row[2:4] = f"{separation.auroc:.3f}", f"{separation.d:.2f}"
        if asked.bootstrap and len(both[0]) > 1 and name not in coupled:
            drawn = bootstrapped(mean_difference, *both, n=asked.bootstrap, seed=asked.seed)
            row[4] = f"{drawn.cosine:.3f} [{drawn.low:.3f}, {drawn.high:.3f}]"
        rows.append(row)
    return aligned(rows)
