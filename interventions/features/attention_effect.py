"""What an intervention changes of the attention to some tokens, against what others of its kind change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..binding import Dictionaries
from ..intervention import Intervention
from ..model import Model
from ..splice import applied
from ..steering.columns import aligned
from ..steering.token_choice import Choice, label, last
from .attention import attention_to
from .significance import adjusted, welch


class HeadEffect(NamedTuple):
    """The change of the attention of one head: probabilities summed over the chosen tokens."""

    layer: int
    head: int
    before: float  # attention without intervention
    change: float  # mean over texts and interventions
    error: float  # standard error of that mean over texts
    control: float  # mean change by the controls
    spread: float  # standard deviation over the controls
    t: float
    p: float  # one-tailed
    q: float  # adjusted for all heads that any intervention can reach

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True, eq=False)
class AttentionEffect:
    """How interventions, and controls of the same kind, change the attention to some tokens.

    `before` is the attention by layer, (item head); `steered` and `control` are the changes,
    (intervention item head).
    """

    before: Mapping[int, Float[Tensor, "item head"]]
    steered: Mapping[int, Float[Tensor, "intervention item head"]]
    control: Mapping[int, Float[Tensor, "intervention item head"]]
    fingerprint: str | None = None
    how: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.before)

    def change(self) -> Float[Tensor, "layer head"]:
        """The mean change by the interventions; nan where layers have fewer heads than others."""
        return self._square({layer: x.mean((0, 1)) for layer, x in self.steered.items()})

    def p(self, *, less: bool = False) -> Float[Tensor, "layer head"]:
        """The probability of so much more attention, or of so much less, by chance.

        An intervention is one observation, its mean over the texts: texts are the same for all of them, and
        would be counted as many times as there are interventions. Several are held against the controls by
        Welch's test; a single one by the t of a new observation, (x - mean) / (s sqrt(1 + 1/n)), with n - 1
        degrees of freedom. nan for heads that nothing reaches, such as those before the steered layer.
        """
        return self._square({layer: self._test(layer, less)[1] for layer in self.layers})

    def q(self, *, less: bool = False) -> Float[Tensor, "layer head"]:
        """`p`, adjusted for all heads (Benjamini and Hochberg 1995)."""
        return adjusted(self.p(less=less))

    def heads(self, *, level: float = 0.05, less: bool = False) -> tuple[HeadEffect, ...]:
        """The heads that gain significantly more attention than by the controls, or with `less` lose it.

        At a false discovery rate of `level`; 1 lists all that anything reaches. The least probable first.
        """
        q, found = self.q(less=less), []
        for i, layer in enumerate(self.layers):
            t, p = self._test(layer, less)
            steered, control = self.steered[layer], self.control[layer].mean(1)
            items = steered.mean(0)
            spread = items.std(0) if len(items) > 1 else torch.full_like(items[0], torch.nan)
            for head in range(steered.shape[-1]):
                if q[i, head] <= level:
                    numbers = (
                        self.before[layer][:, head].mean(), items[:, head].mean(),
                        spread[head] / len(items) ** 0.5, control[:, head].mean(), control[:, head].std(),
                        t[head], p[head], q[i, head],
                    )  # fmt: skip
                    found.append(HeadEffect(layer, head, *map(float, numbers)))
        return tuple(sorted(found, key=lambda h: (h.p, -abs(h.change))))

    def table(self, n: int = 10, *, less: bool = False) -> str:
        """The heads with the least p, one a line."""
        rows = [["head", "before", "change", "+-", "control", "sd", "t", "p", "q"]]
        rows += [
            [str(h), f"{h.before:.3f}", f"{h.change:+.3f}", f"{h.error:.3f}", f"{h.control:+.3f}",
             f"{h.spread:.3f}", f"{h.t:.2f}", f"{h.p:.2g}", f"{h.q:.2g}"]
            for h in self.heads(level=1, less=less)[:n]
        ]  # fmt: skip
        return aligned(rows)

    def __repr__(self) -> str:
        layer = self.layers[0]
        k, items, heads = self.steered[layer].shape
        return (
            f"AttentionEffect({k} intervention{'s' * (k != 1)} and {len(self.control[layer])} controls, "
            f"{items} texts, {len(self.layers)} layers of {heads} heads)"
        )

    def _test(self, layer: int, less: bool) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
        from scipy.stats import t as student

        sign = -1 if less else 1
        # an intervention's mean over the texts
        steered, control = (sign * x[layer].mean(1) for x in (self.steered, self.control))
        reached = (steered != 0).any(0) | (control != 0).any(0)
        n = len(control)
        if len(steered) > 1:
            t, p = welch(steered.mean(0), steered.var(0), len(steered), control.mean(0), control.var(0), n)
        else:
            gap, spread = steered[0] - control.mean(0), control.std(0) * (1 + 1 / n) ** 0.5
            t = torch.where(spread > 0, gap / spread, gap.sign() * torch.inf)
            p = torch.as_tensor(student.sf(t.numpy(), n - 1), dtype=t.dtype)
        return t.where(reached, torch.nan), p.where(reached, torch.nan)

    def _square(self, values: Mapping[int, Float[Tensor, " head"]]) -> Float[Tensor, "layer head"]:
        widest = max(len(x) for x in values.values())
        square = torch.full((len(values), widest), torch.nan, dtype=torch.float64)
        for i, x in enumerate(values.values()):
            square[i, : len(x)] = x
        return square


def attention_effect(
    model: Model,
    texts: Iterable[Any],
    steered: Intervention | Sequence[Intervention],
    controls: Sequence[Intervention],
    *,
    to: Choice,
    queries: Choice = last,
    dictionaries: Dictionaries | None = None,
    batch_size: int = 16,
    progress: bool | None = None,
) -> AttentionEffect:
    """What interventions change of the attention from the last token of texts to chosen ones.

    `controls` are of the same kind and strength, such as steering with random features: a change is
    significant where it is larger than theirs. As in "Do I Know This Entity?" (Ferrando et al. 2024, arXiv
    2411.14257, section 5), where ten random latents stand against the top three; here every intervention is
    one observation, and what is reported is adjusted for the number of heads. `to` and `queries` choose
    tokens, as in `attention_to`.

    >>> from interventions import Add
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    >>> model = Model.load(GPT2LMHeadModel(config))
    >>> one, *others = [Add({"resid.0": torch.randn(32)}) for _ in range(6)]
    >>> effect = attention_effect(model, [(3, 1, 4), (1, 5, 9)], one, others, to=lambda ids, _: 0)
    >>> effect
    AttentionEffect(1 intervention and 5 controls, 2 texts, 2 layers of 4 heads)
    >>> effect.p().isnan().tolist()      # the first layer comes before what is steered
    [[True, True, True, True], [False, False, False, False]]

    Raises:
        ValueError: fewer than two controls, no attention in this model, no texts, or one of which no token
            is chosen.
        TypeError: one string instead of several.
    """
    from tqdm import tqdm

    given = [steered] if isinstance(steered, Intervention) else list(steered)
    if not given or len(controls) < 2:
        raise ValueError(
            f"{len(given)} intervention{'s' * (len(given) != 1)} and {len(controls)} controls: give at least "
            "one and two, better ten controls."
        )
    texts = texts if isinstance(texts, str) else list(texts)

    def attention() -> dict[int, Tensor]:
        return attention_to(model, texts, to, queries=queries, batch_size=batch_size, progress=False)

    before = attention()
    changes: list[dict[int, Tensor]] = []
    off = None if progress is None else not progress
    for each in tqdm([*given, *controls], desc="interventions", disable=off):
        with applied(model, each, dictionaries=dictionaries):
            after = attention()
        changes.append({layer: after[layer] - before[layer] for layer in before})
    first, rest = changes[: len(given)], changes[len(given) :]
    return AttentionEffect(
        before,
        {layer: torch.stack([change[layer] for change in first]) for layer in before},
        {layer: torch.stack([change[layer] for change in rest]) for layer in before},
        model.fingerprint,
        {
            "to": label(to),
            "queries": label(queries),
            "steered": [repr(each) for each in given],
            "controls": [repr(each) for each in controls],
        },
    )
