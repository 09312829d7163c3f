"""What a judge sees of each feature."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

from interventions.dictionaries.measures import Context

from ..annotations import visible
from .ranking import Candidate
from .saved import described, load, save

_BRACKETS = re.compile(r"([\[\]])(?=\1)")
Change = tuple[tuple[str, float], ...]  # tokens, and by how much one unit of the feature changes their logits


@dataclass(frozen=True)
class Correlation:
    """How a feature's mean over the tokens of a text goes with the text having each label.

    `given` are Pearson's correlations with having that label or not; `apart` are those of what is left of
    both within each value of the other label, which is empty where one of the two says the other, or nothing
    is known of the other. As text, `female +0.90 (+0.70 apart)`.

    >>> Correlation({"male": -0.9, "female": 0.9}, {})
    Correlation(female +0.90)
    >>> Correlation({"a": 0.1, "b": 0.5, "c": -0.6}, {"a": 0.0, "b": 0.4, "c": -0.3}).strongest
    ('b', 0.4)
    """

    given: Mapping[str, float]
    apart: Mapping[str, float]

    @property
    def strongest(self) -> tuple[str, float]:
        """The label with the largest correlation in size, apart from the other label where there is that."""
        return _strongest(self.apart or self.given)

    @property
    def size(self) -> float:
        return abs(self.strongest[1])

    def __str__(self) -> str:
        if not self.given:
            return "unknown"
        name, value = _strongest(self.given)
        apart = "" if not self.apart else f" ({self.apart[name]:+.2f} apart)"
        return f"{visible(name)} {value:+.2f}{apart}"

    def __repr__(self) -> str:
        return f"Correlation({self})"


def _strongest(values: Mapping[str, float]) -> tuple[str, float]:
    """Of two labels, whose correlations differ in sign alone, that with the positive one."""
    return max(values.items(), key=lambda item: (round(abs(item[1]), 9), item[1])) if values else ("", 0.0)


@dataclass(frozen=True)
class Evidence:
    """What is to be seen of a feature that a classifier uses.

    `density` is the share of tokens at which it is active, `mean` its mean there, `largest` its largest value
    in size. `contexts` are where it is most active, each with other words before the peak; `elsewhere` the
    same on other text. `raised` and `lowered` are tokens whose logits it changes most by the direct path;
    None where it does not write to the residual stream. `share` is its effect over what the classifier gives
    a text's label.

    `attribution` is its effect on a classifier of the spurious attribute, in the mean over texts, every group
    of texts counting alike; `attribution_share` is that over what this classifier gives a text's attribute.
    """

    candidate: Candidate
    density: float
    mean: float
    largest: float
    label: Correlation
    spurious: Correlation | None = None
    contexts: tuple[Context, ...] = ()
    elsewhere: tuple[Context, ...] = ()
    raised: Change | None = None
    lowered: Change | None = None
    share: float = 0.0
    attribution: float | None = None
    attribution_share: float | None = None

    @property
    def site(self) -> str:
        return self.candidate.site

    @property
    def feature(self) -> int:
        return self.candidate.feature

    @property
    def effect(self) -> float:
        return self.candidate.effect

    @property
    def name(self) -> str:
        return self.candidate.name

    def facts(self) -> list[str]:
        """What is in numbers, a line each."""
        lines = [
            f"effect {self.effect:+.3g}, {self.share:+.1%} of the logit",
            f"active at {self.density:.2%} of tokens, mean {self.mean:.3g}, largest {self.largest:.3g}",
            f"goes with {self.label}",
        ]
        if self.spurious is not None:
            lines[-1] += f"; with {self.spurious}"
        if self.attribution is not None:
            part = "" if self.attribution_share is None else f", {self.attribution_share:+.1%} of the logit"
            lines.append(f"effect on the spurious attribute {self.attribution:+.3g}{part}")
        return lines

    def shown(self, *, contexts: int = 5) -> str:
        """All of it as lines of text, with so many contexts."""
        lines = [self.name, *(f"  {fact}" for fact in self.facts())]
        for name, tokens in (("raises", self.raised), ("lowers", self.lowered)):
            if tokens:
                lines.append(f"  {name} {words(tokens)}")
        for name, found in (("in the texts", self.contexts), ("elsewhere", self.elsewhere)):
            if found:
                lines += [f"  {name}:", *(f"  {c.value:7.3g}  {marked(c)}" for c in found[:contexts])]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.shown()


def words(tokens: Change) -> str:
    """Tokens in quotes, such as nothing in them can be taken for something else."""
    return ", ".join(repr(visible(token)) for token, _ in tokens)


def marked(context: Context) -> str:
    """A context with its peak in double brackets; those that the text has itself are drawn apart."""
    tokens = [visible(token) for token in context.tokens]
    peak = tokens[context.at]
    space = peak[: len(peak) - len(peak.lstrip())]
    before, after = "".join(tokens[: context.at]), "".join(tokens[context.at + 1 :])
    before, peak, after = (_BRACKETS.sub(r"\1 ", text) for text in (before, peak.lstrip(), after))
    return f"{before}{space}[[{peak}]]{after}".strip()


@dataclass(frozen=True)
class Dossier(Sequence[Evidence]):
    """The evidence on all features of a ranking, in its order. `about` says of which model, dictionaries and
    texts the ranking was."""

    evidence: tuple[Evidence, ...]
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @overload
    def __getitem__(self, index: int) -> Evidence: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Evidence, ...]: ...
    def __getitem__(self, index: int | slice) -> Evidence | tuple[Evidence, ...]:
        return self.evidence[index]

    def __iter__(self) -> Iterator[Evidence]:
        return iter(self.evidence)

    def __len__(self) -> int:
        return len(self.evidence)

    def __repr__(self) -> str:
        return f"Dossier({len(self)} features)"

    def __str__(self) -> str:
        return "\n\n".join([repr(self), *(one.shown(contexts=2) for one in self)])

    def save(self, path: str | Path) -> Path:
        """Writes one JSON file."""
        return save(path, "evidence", {"about": dict(self.about), "evidence": [_plain(one) for one in self]})

    @classmethod
    def load(cls, path: str | Path) -> Dossier:
        """What `save` wrote; see `saved.load` for errors."""
        said = load(path, "evidence")
        with described(path, "evidence"):
            return cls(tuple(_evidence(one) for one in said["evidence"]), said["about"])


def _plain(evidence: Evidence) -> dict[str, Any]:
    said = asdict(evidence)
    if math.isnan(evidence.candidate.error):
        said["candidate"]["error"] = None
    return said


def _evidence(said: dict[str, Any]) -> Evidence:
    one = said["candidate"]
    said["candidate"] = Candidate(**{**one, "error": math.nan if one["error"] is None else one["error"]})
    for name in ("label", "spurious"):
        said[name] = None if said[name] is None else Correlation(**said[name])
    for name in ("contexts", "elsewhere"):
        said[name] = tuple(
            Context(c["row"], c["pos"], c["at"], tuple(c["tokens"]), tuple(c["values"])) for c in said[name]
        )
    for name in ("raised", "lowered"):
        said[name] = None if said[name] is None else tuple((token, by) for token, by in said[name])
    return Evidence(**said)
