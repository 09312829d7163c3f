"""What steering does to where heads attend, and whether other features would have done the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..binding import Dictionaries
from ..intervention import Intervention
from ..model import Model
from ..splice import applied
from ..steering.token_choice import Choice, chosen, last
from .attention import attentions
from .passes import Reading, batches, padded, readings
from .significance import adjusted, welch

STILL = 1e-6  # a head whose attention changes less than that is not reached by what is steered


@dataclass(frozen=True, eq=False)
class HeadTests:
    """Welch's t for each head, its one-tailed p, and q: p adjusted for the number of heads (Benjamini and
    Hochberg). Heads that nothing changes have t 0 and are not tested: their p and q are nan."""

    t: Float[Tensor, "layer head"]
    p: Float[Tensor, "layer head"]
    q: Float[Tensor, "layer head"]
    layers: tuple[int, ...]

    def significant(self, rate: float = 0.05) -> tuple[tuple[int, int], ...]:
        """Layers and heads found at this false discovery rate, the clearest first."""
        flat = [(float(self.q[i, h]), -float(self.t[i, h]), self.layers[i], h)
                for i in range(self.q.shape[0]) for h in range(self.q.shape[1])]  # fmt: skip
        return tuple((layer, h) for q, _, layer, h in sorted(flat) if q <= rate)

    def __repr__(self) -> str:
        tested = int((~self.p.isnan()).sum())
        return f"HeadTests({tested} of {self.p.numel()} heads tested, {len(self.significant())} at q <= 0.05)"


@dataclass(frozen=True, eq=False)
class AttentionEffect:
    """How much more of their attention heads give to chosen tokens when steered, from `attention_effect`.

    `before` is without steering. `change` has the differences, of each intervention and text, and `control`
    those of the interventions to compare with. `layers` are the numbers of the layers that attend.
    """

    before: Float[Tensor, "text layer head"]
    change: Float[Tensor, "intervention text layer head"]
    control: Float[Tensor, "control text layer head"]
    layers: tuple[int, ...]

    def mean(self) -> Float[Tensor, "layer head"]:
        """The mean change."""
        return self.change.mean((0, 1))

    def beyond_control(self) -> Float[Tensor, "layer head"]:
        """The mean change, less that of the controls."""
        return self.mean() - (self.control.mean((0, 1)) if len(self.control) else 0)

    def over_texts(self) -> AttentionEffect:
        """With the mean over texts in place of each, for tests between interventions.

        Texts under one feature are no independent observations of features: this is the stricter test.
        """
        return replace(
            self,
            before=self.before.mean(0, keepdim=True),
            change=self.change.mean(1, keepdim=True),
            control=self.control.mean(1, keepdim=True),
        )

    def raised(self) -> HeadTests:
        """Whether heads attend more to the tokens than under the controls.

        Every pair of an intervention and a text is an observation, as in "Do I Know This Entity?" (Ferrando
        et al. 2024, arXiv 2411.14257); see `over_texts`. Raises ValueError without controls, or where there
        is only one observation of a kind.
        """
        return self._tests(1)

    def lowered(self) -> HeadTests:
        """Whether heads attend less to the tokens than under the controls; see `raised`."""
        return self._tests(-1)

    def _tests(self, sign: int) -> HeadTests:
        samples = [sign * x.flatten(0, 1).double() for x in (self.change, self.control)]
        few = [len(x) for x in samples if len(x) < 2]
        if few:
            raise ValueError(
                f"A test compares at least two observations with two, and there is {few[0]} of one kind: "
                "give several interventions or texts, and controls."
            )
        moments = [part for x in samples for part in (x.mean(0), x.var(0), len(x))]
        t, p = welch(*moments)  # type: ignore[arg-type]
        still = torch.stack([x.abs().amax(0) for x in samples]).amax(0) < STILL
        t, p = torch.where(still, 0, t), torch.where(still, torch.nan, p)
        return HeadTests(sign * t, p, adjusted(p), self.layers)

    def table(self, n: int = 10) -> str:
        """The heads that change most beyond the controls, one a line."""
        beyond = self.beyond_control()
        order = beyond.abs().flatten().argsort(descending=True)[:n].tolist()
        lines = ["head    before    change   control"]
        for i in order:
            layer, head = divmod(i, beyond.shape[1])
            control = self.control[:, :, layer, head].mean() if len(self.control) else torch.nan
            lines.append(
                f"{f'L{self.layers[layer]}H{head}':6} {self.before[:, layer, head].mean():7.3f}"
                f"   {self.mean()[layer, head]:+7.3f}   {control:+7.3f}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        n, texts, layers, heads = self.change.shape
        return (
            f"AttentionEffect({n} intervention{'s' * (n != 1)}, {len(self.control)} controls, {texts} "
            f"text{'s' * (texts != 1)}, {layers} layers of {heads} heads)"
        )


def attention_effect(
    model: Model,
    texts: Iterable[Any],
    steered: Intervention | Sequence[Intervention],
    controls: Sequence[Intervention] = (),
    *,
    to: Choice,
    of: Choice = last,
    dictionaries: Dictionaries | None = None,
    batch_size: int = 16,
    progress: bool | None = None,
) -> AttentionEffect:
    """The change of the attention from the tokens `of` to the tokens `to`, per layer and head.

    Probabilities are summed over the tokens `to`, and averaged over those `of`, by default the last one.
    `controls` are interventions like `steered` with features of no particular kind; `Separation.random` draws
    such.

    >>> from interventions import Add
    >>> from interventions.steering import Position
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    >>> model = Model.load(GPT2LMHeadModel(config))
    >>> steered, *controls = (Add({"resid.0": torch.randn(32)}, scale=4) for _ in range(4))
    >>> texts = [(3, 1, 4, 1), (5, 9, 2)]
    >>> effect = attention_effect(model, texts, steered, controls, to=Position(1), progress=False)
    >>> effect
    AttentionEffect(1 intervention, 3 controls, 2 texts, 2 layers of 4 heads)
    >>> effect.raised().t.shape
    torch.Size([2, 4])

    Raises:
        ValueError: a model that does not attend; no texts; tokens that a text does not have.
    """
    from tqdm import tqdm

    given = [steered] if isinstance(steered, Intervention) else list(steered)
    if not given:
        raise ValueError("There is no intervention whose effect could be seen.")
    queries = readings(model, list(texts), of)
    numbered = [Reading(r.ids, r.at, i) for i, r in enumerate(queries)]
    keys = [_keys(model, reading, to) for reading in numbered]
    every: list[Intervention | None] = [None, *given, *controls]
    found: list[list[Tensor]] = [[torch.empty(0)] * len(numbered) for _ in every]
    layers: tuple[int, ...] = ()
    off = None if progress is None else not progress
    with tqdm(total=len(every) * len(numbered), desc="texts", unit="text", disable=off) as bar:
        for batch in batches(numbered, batch_size, padded=model.pads):
            tokens, mask = padded(batch)
            for i, intervention in enumerate(every):
                with (
                    nullcontext()
                    if intervention is None
                    else applied(model, intervention, dictionaries=dictionaries)
                ):
                    probabilities = attentions(model, tokens, mask)
                layers = tuple(probabilities)
                for row, reading in enumerate(batch):
                    at, places = list(reading.at), list(keys[reading.label])
                    found[i][reading.label] = _heads(
                        [x[row][:, at][:, :, places].sum(-1).mean(-1).cpu() for x in probabilities.values()]
                    )
                bar.update(len(batch))
    before, *after = (torch.stack(rows) for rows in found)
    changes = torch.stack(after) - before
    return AttentionEffect(before, changes[: len(given)], changes[len(given) :], layers)


def _keys(model: Model, reading: Reading, to: Choice) -> tuple[int, ...]:
    try:
        return chosen(to, reading.ids, reading.ids, model.tokenizer)
    except ValueError as error:
        raise ValueError(f"text {reading.label}, tokens `to`: {error}.") from None


def _heads(rows: list[Tensor]) -> Float[Tensor, "layer head"]:
    """Layers on top of each other; where one has fewer heads, the rest is nan."""
    out = torch.full((len(rows), max(len(row) for row in rows)), torch.nan, dtype=torch.float64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row.double()
    return out
