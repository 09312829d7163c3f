"""Which tokens an intervention changes, shown before anything depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from os.path import commonprefix
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .generation import opened
from .intervention import Intervention
from .model import Model
from .sites import Site
from .splice import applied


@dataclass(frozen=True, eq=False)
class Explanation:
    """The tokens of a text, and which of them an intervention changed at each site."""

    tokens: tuple[str, ...]
    n_prompt: int
    touched: Mapping[str, Bool[Tensor, " token"]]
    of: str

    def __str__(self) -> str:
        lines = [self.of]
        kinds: dict[tuple[bool, ...], list[str]] = {}
        for site, touched in self.touched.items():
            kinds.setdefault(tuple(touched.tolist()), []).append(site)
        for touched, sites in kinds.items():
            marked = [f"[{t}]" if on else t for t, on in zip(self.tokens, touched, strict=True)]
            text = "".join(marked[: self.n_prompt])
            if len(marked) > self.n_prompt:
                text += " → " + "".join(marked[self.n_prompt :])
            lines.append(f"{', '.join(sites)}: {sum(touched)} of {len(touched)} tokens")
            lines.append("  " + text.replace("\n", "⏎"))
        return "\n".join(lines)

    __repr__ = __str__


@torch.no_grad()
def explain(
    model: Model,
    intervention: Intervention,
    prompt: str | Int[Tensor, "1 pos"],
    *,
    max_new_tokens: int = 0,
    dictionaries: Any = None,
) -> Explanation:
    """Which tokens of a prompt, and of what the model writes after it, are changed at each site.

    The model is run, and what flows before and after the intervention is compared: a token in brackets is
    one whose activations come out different.
    """
    ids = torch.tensor([opened(model, prompt)]) if isinstance(prompt, str) else prompt
    if ids.ndim != 2 or len(ids) != 1:
        raise ValueError(
            f"One prompt is explained at a time: a text or tokens (1 pos), not {tuple(ids.shape)}."
        )
    sites = sorted(map(model.site, intervention.sites))
    length = ids.shape[1] + max_new_tokens
    touched = {site: torch.zeros(length, dtype=torch.bool) for site in sites}
    came: dict[Site, Tensor] = {}

    def before(site: Site, x: Tensor) -> Tensor:
        came[site] = x
        return x

    def after(site: Site, x: Tensor) -> Tensor:
        assert model.passage is not None
        changed = (x != came[site]).any(-1)[0].cpu()
        touched[site][model.passage.start : model.passage.start + len(changed)] = changed
        return x

    with (
        model.following(),
        model.visiting(sites, before),
        applied(model, intervention, dictionaries=dictionaries),
        model.visiting(sites, after),
    ):
        if max_new_tokens:
            ids = model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False).cpu()
        else:
            model.logits(ids)
    words = _words(model, ids[0])
    return Explanation(
        words,
        length - max_new_tokens,
        {site.name: on[: len(words)] for site, on in touched.items()},
        repr(intervention),
    )


def _words(model: Model, ids: Int[Tensor, " pos"]) -> tuple[str, ...]:
    """What each token adds to the text; numbers where there is no tokenizer."""
    if model.tokenizer is None:
        return tuple(f" {i}" for i in ids.tolist())
    said = [model.text(ids[:n]) for n in range(len(ids) + 1)]
    whole = said[-1]  # a character that several tokens spell stands at the last of them
    known = list(accumulate((len(commonprefix([part, whole])) for part in said), max))  # noqa: RUF071
    return tuple(whole[start:stop] for start, stop in pairwise(known))
