"""Who says which features a classifier should not use: rules, files, attributions, or a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from .dossier import Dossier, Evidence
from .verdict_log import VerdictLog
from .verdicts import Verdict, Verdicts


@runtime_checkable
class Judge(Protocol):
    """Anything that says whether a feature is spurious, given what is to be seen of it: a function will do.

    None leaves it undecided. One that knows beforehand which features it speaks of has a method
    `check(known)` beside, which raises ValueError where these are not among the (site, feature) known. One
    that wants to go through all of them by itself has `all(evidence, log)`.
    """

    def __call__(self, evidence: Evidence, /) -> Verdict | None: ...


def judged(
    evidence: Dossier | Iterable[Evidence],
    judge: Judge,
    path: str | Path | None = None,
    *,
    progress: bool | None = None,
) -> Verdicts:
    """The verdicts of a judge on all features. With a path each is written as it is given, and what stands
    there already is not judged again.

    >>> judged([], rule(lambda evidence: evidence.density > 0.5))
    Verdicts(0 features, 0 spurious)

    Raises:
        ValueError: a file of other features, or with unknown ones; a verdict on another feature than asked.
    """
    from tqdm import tqdm

    dossier = evidence if isinstance(evidence, Dossier) else Dossier(tuple(evidence))
    known = {(one.site, one.feature) for one in dossier}
    if (check := getattr(judge, "check", None)) is not None:
        check(known)
    log = VerdictLog(path, about=dossier.about, known=known)
    if (whole := getattr(judge, "all", None)) is not None:
        whole(dossier, log)
        return log.verdicts
    done = set(log.verdicts)
    left = [one for one in dossier if (one.site, one.feature) not in done]
    for one in tqdm(left, desc="judging", unit="feature", disable=None if progress is None else not progress):
        verdict = judge(one)
        if verdict is None:
            continue
        if not isinstance(verdict, Verdict):
            raise TypeError(f"A judge returns a Verdict or None; of {one.name} it returned {verdict!r}.")
        if verdict.at != (one.site, one.feature):
            raise ValueError(f"Asked about {one.name}, the judge spoke of {verdict.name}.")
        log.add(verdict)
    return log.verdicts


@dataclass(frozen=True)
class rule:
    """A judge by any function of the evidence, which says True for spurious, and None for undecided.

    >>> rule(lambda evidence: evidence.density > 0.5, name="dense")
    rule('dense')
    """

    function: Callable[[Evidence], bool | None]
    name: str = ""

    def __call__(self, evidence: Evidence) -> Verdict | None:
        said = self.function(evidence)
        if said is None:
            return None
        return Verdict(evidence.site, evidence.feature, bool(said), by=f"rule {self.called}")

    @property
    def called(self) -> str:
        return self.name or getattr(self.function, "__name__", repr(self.function))

    def __repr__(self) -> str:
        return f"rule({self.called!r})"


@dataclass(frozen=True)
class correlates:
    """A judge by correlation: spurious is what goes with the spurious label by `above` or more, and more than
    with the label. Where texts allow, each apart from the other label.

    It needs evidence on texts in which the two labels do not always go together.
    """

    above: float = 0.3

    def __call__(self, evidence: Evidence) -> Verdict:
        if evidence.spurious is None:
            raise ValueError(
                f"Nothing is known of the spurious label at {evidence.name}: the texts have none."
            )
        if not evidence.spurious.apart:
            raise ValueError(
                "In these texts one label says the other, so correlations cannot tell them apart: gather "
                "evidence on texts in which they do not go together."
            )
        (name, by), (label, with_label) = evidence.spurious.strongest, evidence.label.strongest
        spurious = abs(by) >= self.above and abs(by) > abs(with_label)
        reason = f"goes with {name} {by:+.2f}, with {label} {with_label:+.2f}"
        return Verdict(evidence.site, evidence.feature, spurious, reason, repr(self))


@dataclass(frozen=True)
class by_attribution:
    """The automatic judge: spurious is what does as much for a probe of the spurious attribute as for the
    classifier, each over what that one gives a text, or `ratio` of it; and this the same way.

    It puts an attribution to a probe in the place of a human, as SCR does (Karvonen et al. 2024), but asks
    of every feature for which of the two it does more, where SCR takes the largest attributions. Effects of
    less than `errors` standard errors can be kept: such as those of features that are active alike in all
    texts, whose ablation shifts what is said of every text, which only retraining makes up for.

    It needs evidence gathered with `attribute`, best on texts in which the two labels do not go together:
    where they do, also features of the label differ by the attribute.
    """

    ratio: float = 0.5
    errors: float = 0.0

    def __call__(self, evidence: Evidence) -> Verdict:
        if evidence.attribution_share is None:
            raise ValueError(
                f"There is no attribution of {evidence.name} to a probe of the spurious attribute: gather "
                "the evidence with `attribute=` such a probe."
            )
        share, other = evidence.share, evidence.attribution_share
        reason = f"{other:+.2%} of the attribute's logit, {share:+.2%} of the label's"
        if self.errors and not abs(evidence.effect) >= self.errors * evidence.candidate.error:
            return Verdict(evidence.site, evidence.feature, False, f"{reason}, not clear", repr(self))
        spurious = bool(share) and other / share >= self.ratio
        return Verdict(evidence.site, evidence.feature, spurious, reason, repr(self))


@dataclass(frozen=True)
class from_file:
    """A judge that has written down what it says: a file as `judged` writes it, or by hand.

    By hand it is a table of CSV or JSON lines with `site`, `feature`, `spurious` and perhaps `reason`; what
    it does not mention is undecided. See `Verdicts.load` for errors.
    """

    path: str | Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "_verdicts", Verdicts.load(self.path))

    def check(self, known: Iterable[tuple[str, int]]) -> None:
        """Raises ValueError where the file speaks of other features than these, and names them."""
        try:
            self.verdicts.check(known)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    @property
    def verdicts(self) -> Verdicts:
        return self.__dict__["_verdicts"]

    def __call__(self, evidence: Evidence) -> Verdict | None:
        return self.verdicts.get((evidence.site, evidence.feature))
