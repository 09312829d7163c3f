"""Features that tell girls from boys in a story model: found, held against random ones, and steered with.

python docs/examples/entities.py --weights FOLDER --out results/entities

FOLDER holds stories260K, a Llama of 260,032 parameters. docs/features-that-steer.md says what comes out.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from circuits.attention_plots import plot_heads
from interventions import Add, Where, applied, end_of
from interventions.dictionaries import SparseCoder, load, own_samples, quality, recipes, save, table, train
from interventions.features import Separation, attention_effect, orthogonalised, separation
from interventions.features.mention import Mention
from interventions.intervention import Intervention
from interventions.model import Model
from interventions.steering.features import feature_direction
from tasks.words import BOYS, GIRLS

_SHARED = Path(__file__).resolve().parents[3] / "shared" / "weights"
WEIGHTS = os.environ.get("BREADBOARD_WEIGHTS", str(_SHARED))
KINDS = {
    "bare": "{}",
    "once": "Once upon a time, there was a child named {}",
    "day": "One day, {}",
    "friend": "The big dog wanted to play with {}",
}
FOUND_ON, TESTED_ON = (GIRLS[::2], BOYS[::2]), (GIRLS[1::2], BOYS[1::2])
PROMPTS = ("{} was happy because", "One day, {} went to the park because", "{} was very sad because")
NAMES = GIRLS + BOYS


def learned(model: Model, folder: Path) -> tuple[torch.Tensor, dict[str, SparseCoder]]:
    """Text that the model makes up, of which the last rows are for testing, and a dictionary for each
    `resid` site. Kept in a folder."""
    text = own_samples(model, rows=1536, length=128)
    if not folder.exists():
        sites = [site for site in model.sites if site.startswith("resid")]
        recipe = recipes.BatchTopK(8, start=32)
        save(train(model, text[:1472], sites, n_features=512, recipe=recipe, steps=1500), folder)
    return text[1472:], dict(load(folder))


def kinds(names: tuple[Sequence[str], Sequence[str]]) -> dict[str, tuple[list[str], list[str]]]:
    """Texts about girls and about boys, for each kind of text."""
    girls, boys = ([[text.format(name) for name in some] for text in KINDS.values()] for some in names)
    return {kind: (girls[i], boys[i]) for i, kind in enumerate(KINDS)}


@torch.no_grad()
def preference(model: Model, names: Sequence[str]) -> torch.Tensor:
    """The logit of " she" less that of " he", for each prompt and name."""
    she, he = (model.tokenizer.encode(word, add_special_tokens=False)[-1] for word in (" she", " he"))
    found = []
    for prompt in PROMPTS:
        for name in names:
            logits = model.logits(torch.tensor([model.tokenizer.encode(prompt.format(name))]))[0, -1]
            found.append(logits[she] - logits[he])
    return torch.stack(found)


def steer(
    model: Model, dictionaries: dict[str, SparseCoder], site: str, feature: int, alpha: float
) -> Intervention:
    """Adds so much of a feature's unit decoder row where the prompt mentions a name: at its last token."""
    where = end_of(NAMES[0])
    for name in NAMES[1:]:
        where = where | end_of(name)
    direction = feature_direction(model, dictionaries, site, feature).normalised()
    return Add(direction, scale=alpha).at(Where(prompt=where, generation=None))


def row(name: str, change: torch.Tensor) -> str:
    error = change.std() / len(change) ** 0.5
    return f"{name:24}{change.mean():+8.2f} +- {error:.2f}"


def report_separation(found: Separation, tested: Separation, site: str) -> None:
    for title, one, other in (
        ("girls", found, tested),
        ("boys", found.reversed(), tested.reversed()),
    ):
        print(f"\n{site}, active on {title} (score: least over {len(found.kinds)} kinds of text)")
        print("feature    score  on other names   density")
        for f in one.top(site, 3):
            held_out = float(other.score(site)[f.feature])
            print(f"{f!s:10} {f.score:5.2f} {held_out:15.2f} {f.density:9.3%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default=WEIGHTS)
    parser.add_argument("--out", default="results/entities")
    parser.add_argument("--site", default="resid.1")
    given = parser.parse_args()
    torch.manual_seed(0)
    out, start = Path(given.out), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    model = Model.load(Path(given.weights) / "stories260K")
    text, dictionaries = learned(model, out / "dictionaries")
    print(f"{time.perf_counter() - start:.0f} s: dictionaries")
    print(table(quality(model, dictionaries, text)))

    end, general = Mention(NAMES, end=True), text.tolist()
    found = separation(
        model, dictionaries, kinds(FOUND_ON), tokens=end, density_text=general, max_density=0.05
    )
    tested = separation(model, dictionaries, kinds(TESTED_ON), tokens=end)
    for site in dictionaries:
        report_separation(found, tested, site)

    site = given.site
    girl, boy = (each.top(site, 3) for each in (found, found.reversed()))
    taken = [f.feature for f in girl + boy]
    random = found.random(site, 20, seed=0, without=taken)
    norm = model.read(torch.tensor([model.tokenizer.encode("One day, Sara")]), [site])
    size = float(next(iter(norm.values()))[0, -1].norm())
    girls, boys = TESTED_ON
    print(f"\nlogit of she less he, at alpha 1 x norm of {site} ({size:.1f}), names held out")
    print(row("girls, unsteered", preference(model, girls)))
    print(row("boys, unsteered", preference(model, boys)))
    every = preference(model, (*girls, *boys))
    changes = []
    for name, features in (("girls' features", girl), ("boys' features", boy)):
        for f in features:
            with applied(model, steer(model, dictionaries, site, f.feature, size)):
                print(row(f"{name[:5]} {f}", preference(model, (*girls, *boys)) - every))
    for feature in random:
        with applied(model, steer(model, dictionaries, site, feature, size)):
            changes.append((preference(model, (*girls, *boys)) - every).mean())
    chance = torch.stack(changes)
    print(f"{len(random)} random features: mean {chance.mean():+.2f}, sd {chance.std():.2f}, "
          f"{chance.min():+.2f} to {chance.max():+.2f}")  # fmt: skip

    for name, f in (("girls'", girl[0]), ("boys'", boy[0])):
        copy = orthogonalised(model, feature_direction(model, dictionaries, site, f.feature))
        print(row(f"weights without {f}, {name}", preference(copy, (*girls, *boys)) - every))
    without = torch.stack([
        (preference(orthogonalised(model, feature_direction(model, dictionaries, site, i)), (*girls, *boys))
         - every).mean()
        for i in random
    ])  # fmt: skip
    print(f"weights without a random one: mean {without.mean():+.2f}, sd {without.std():.2f}, "
          f"{without.min():+.2f} to {without.max():+.2f}")  # fmt: skip

    texts = [prompt.format(name) for prompt in PROMPTS for name in (*girls, *boys)]
    controls = [steer(model, dictionaries, site, f, size) for f in random]
    for name, features in (("girls", girl[:1]), ("girls", girl), ("boys", boy[:1]), ("boys", boy)):
        steered = [steer(model, dictionaries, site, f.feature, size) for f in features]
        effect, n = attention_effect(model, texts, steered, controls, to=Mention(NAMES)), len(features)
        print(f"\nattention from the last token to the name, steered with the top {n} of {name}")
        print(effect.table(5))
        print(f"more, q < 0.05: {', '.join(map(str, effect.heads())) or 'none'}; "
              f"less: {', '.join(map(str, effect.heads(less=True))) or 'none'}")  # fmt: skip
        title = f"Attention to the name, top {n} of {name}"
        plot_heads(effect, out / f"attention_{name}_{n}.svg", title=title)
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
