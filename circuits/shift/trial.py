"""A classifier that is trained where a label and a spurious one go together, and tested where they do not."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.binding import Dictionaries, splices
from interventions.concepts.ablation import Features, ablated_means, check_features, site_means, without
from interventions.concepts.pooled import Pooled, pooled
from interventions.features.passes import readings
from interventions.intervention import Intervention
from interventions.model import Model
from interventions.probed import Classifier, ProbedModel
from interventions.probing import Logistic, Probe, Recipe
from interventions.steering.token_choice import every
from tasks import LabelledSet

from .scores import Scores, scored

Acts = Float[Tensor, "text d_model"]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Trial:
    """What every method of a comparison shares: model, site, texts, and how a probe is fitted.

    Probes read the mean over the tokens of a text of what the site `at` holds, as in `Model.probed`.

    Args:
        train: ambiguous texts, in which a spurious label goes with each label.
        test: texts of every pair of labels; as many of each are drawn.
        known: texts of every pair of labels to train on, for the baselines that know the spurious label;
            as many of each are drawn.
        recipe: of probes, by default `Logistic()`.
        pairs: the spurious label that goes with each label; by default that of most texts in `train`.

    Raises:
        ValueError: a single label, a pair of labels without a text in `test` or `known`, labels that these
            have and `train` has not, the same spurious label with all labels, a text without a token that
            counts.
        LookupError: a site that the model does not have.
    """

    model: Model
    train: LabelledSet
    test: LabelledSet
    at: str
    known: LabelledSet | None = None
    recipe: Recipe = field(default_factory=Logistic)
    pairs: Mapping[str, str] | None = None
    seed: int = 0
    batch_size: int = 16
    progress: bool | None = None
    _held: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.model, ProbedModel):
            raise TypeError("Give the model itself: the probe of a trial is fitted on its training texts.")
        put = object.__setattr__
        put(self, "at", self.model.site(self.at).name)
        if len(set(self.train.labels)) < 2:
            raise ValueError(
                f"All {len(self.train)} texts to train on have the label {self.train[0].label!r}: a "
                "classifier tells at least two apart."
            )
        for name in ("train", "test", "known"):
            if (texts := getattr(self, name)) is not None:
                readings(self.model, [one.text for one in texts], every, name=f"{name}: text")
        put(self, "test", self._balanced(self.test, "test"))
        if self.known is not None:
            put(self, "known", self._balanced(self.known, "known"))
        put(self, "pairs", self._paired(self.pairs))

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} to train, {len(self.test)} to test"
        return f"Trial({', '.join(self.classes)} at {self.at}: {sizes})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, in the order of the classes of probes."""
        return self.train.classes

    @property
    def pairing(self) -> Mapping[str, str]:
        """The spurious label that goes with each label."""
        return self.pairs or {}

    @cached_property
    def reader(self) -> ProbedModel:
        """The model up to the site that is read: passes end there."""
        width = self.model.site(self.at).width
        return self.model.probed(Probe(torch.zeros(width), torch.tensor(0.0)), at=self.at)

    def acts(self, texts: LabelledSet) -> Acts:
        """What the site holds of texts, in means over tokens; kept, so that each is read once."""
        return self.kept("acts", texts, lambda: self.changed(texts))

    def changed(
        self,
        texts: LabelledSet,
        edits: Sequence[Intervention] = (),
        dictionaries: Dictionaries | None = None,
    ) -> Acts:
        """The same under interventions."""
        return site_means(
            self.reader, [one.text for one in texts], self.at, edits=edits, dictionaries=dictionaries,
            batch_size=self.batch_size, progress=self.progress,
        )  # fmt: skip

    def ablated(self, texts: LabelledSet, dictionaries: Dictionaries, features: Features) -> Acts:
        """The same with features at zero and errors kept; without a pass where all are at the site."""
        features = {site: list(some) for site, some in features.items() if len(some)}
        check_features(self.reader, dictionaries, features)
        if not features:
            return self.acts(texts)
        if set(features) == {self.at} and (held := self._pooled(texts, dictionaries)):
            return without(held, features[self.at])
        return ablated_means(
            self.reader, dictionaries, [one.text for one in texts], features, at=self.at,
            batch_size=self.batch_size, progress=self.progress,
        )  # fmt: skip

    def refitted(self, dictionaries: Dictionaries, features: Features) -> Float[Tensor, "text *class"]:
        """What a probe says of the texts to test on that is fitted to the same ambiguous texts without some
        features, and tested without them."""
        train, test = (self.ablated(texts, dictionaries, features) for texts in (self.train, self.test))
        return self.fit(self.train, train).logits(test)

    def fit(self, texts: LabelledSet, acts: Acts | None = None) -> Any:
        """A probe of the labels of texts, on what the site holds of them or on other activations."""
        x = self.acts(texts) if acts is None else acts
        return self.recipe.fit(x, self.targets(texts))

    @property
    def probe(self) -> Any:
        """The biased probe: of the labels of ambiguous texts."""
        return self.kept("probe", None, lambda: self.fit(self.train))

    def with_probe(self, probe: Classifier) -> Trial:
        """The same with a biased probe that was fitted before."""
        made = replace(self)
        made.kept("probe", None, lambda: probe)
        return made

    @property
    def attributes(self) -> tuple[str, ...]:
        """The spurious labels of `known`, or of `test`: those that go with labels first, in their order."""
        texts = self.test if self.known is None else self.known
        return tuple(dict.fromkeys([*self.pairing.values(), *texts.attributes]))

    @cached_property
    def spurious_probe(self) -> Any:
        """A probe of the spurious label, fitted on `known`. Raises ValueError where there is none."""
        known = self.required("A probe of the spurious label")
        targets = torch.tensor([self.attributes.index(one.spurious) for one in known])
        return self.recipe.fit(self.acts(known), targets)

    @cached_property
    def probed(self) -> ProbedModel:
        """The model with the biased probe as its head."""
        return self.model.probed(self.probe, at=self.at, classes=self.classes)

    @cached_property
    def probed_spurious(self) -> ProbedModel:
        """The model with the probe of the spurious label as its head."""
        return self.model.probed(self.spurious_probe, at=self.at, classes=self.attributes)

    def targets(self, texts: LabelledSet) -> Int[Tensor, " text"]:
        """The class of each text."""
        return torch.tensor([self.classes.index(one.label) for one in texts])

    def scores(
        self,
        method: str,
        logits: Tensor | Sequence[Tensor],
        *,
        needs: str = "",
        ablated: Mapping[str, int] | None = None,
    ) -> Scores:
        """What a classifier says of the test texts, from its logits; several are draws of one method."""
        return scored(
            method, needs, self.test, logits, classes=self.classes, pairs=self.pairing, ablated=ablated
        )

    def with_texts(self, texts: LabelledSet, by: Sequence[str]) -> LabelledSet:
        """The labels of texts with other texts."""
        return replace(texts, texts=[replace(one, text=text) for one, text in zip(texts, by, strict=True)])

    @property
    def one_to_one(self) -> bool:
        """Whether each spurious label goes with one label, so that it can be taken for that."""
        return len(set(self.pairing.values())) == len(self.classes) == len(self.attributes)

    def by_spurious(self, texts: LabelledSet) -> LabelledSet:
        """Texts with the label that goes with their spurious one.

        Raises:
            ValueError: a spurious label that goes with no label, or with several.
        """
        label = {spurious: label for label, spurious in self.pairing.items()}
        if len(label) < len(self.pairing) or set(texts.attributes) - set(label):
            raise ValueError(
                f"Each spurious label has to go with one label, not {dict(self.pairing)}, for there are "
                f"{', '.join(texts.attributes)}."
            )
        return replace(texts, texts=[replace(one, label=label[one.spurious]) for one in texts])

    def required(self, method: str) -> LabelledSet:
        """The texts whose spurious label is known. Raises ValueError where there are none."""
        if self.known is None:
            raise ValueError(
                f"{method} takes texts to train on of every pair of labels: give them as `known`."
            )
        return self.known

    def kept(self, name: str, key: Hashable, make: Callable[[], T], *alive: Any) -> T:
        """What `make` gives, made once for each key; `alive` is what ids in the key are of."""
        if (name, key) not in self._held:
            self._held[name, key] = make(), alive
        return self._held[name, key][0]

    def _pooled(self, texts: LabelledSet, dictionaries: Dictionaries) -> Pooled | None:
        """Means of features at the probe's site; None where its features do not write there alone."""
        bound = {site.name: splice for site, splice in splices(self.reader, dictionaries).items()}
        own = bound[self.at]
        if own.transcodes or own.later or own.earlier:
            return None

        def made() -> Pooled:
            found = pooled(
                self.reader, {self.at: own.dictionary}, [one.text for one in texts],
                batch_size=self.batch_size, progress=self.progress,
            )  # fmt: skip
            return found[self.at]

        return self.kept("pooled", (texts, id(own.dictionary)), made, own.dictionary)

    def _balanced(self, texts: LabelledSet, name: str) -> LabelledSet:
        if "" in texts.attributes:
            raise ValueError(f"{name}: {texts.spurious.count('')} texts have no spurious label to test by.")
        if strange := set(texts.classes) - set(self.classes):
            raise ValueError(
                f"{name}: no text to train on is {min(strange)!r}; there are {', '.join(self.classes)}."
            )
        wanted = [(label, attribute) for label in self.classes for attribute in texts.attributes]
        if empty := [group for group in wanted if not texts.groups[group]]:
            raise ValueError(
                f"{name}: no text is {'/'.join(empty[0])}; every label has to come with every spurious one."
            )
        return texts if len(set(texts.groups.values())) == 1 else texts.balanced(seed=self.seed)

    def _paired(self, given: Mapping[str, str] | None) -> dict[str, str]:
        counts = self.train.groups
        found = dict(given or {})
        if strange := set(found) - set(self.classes):
            raise ValueError(
                f"pairs: no text to train on is {min(strange)!r}; there are {', '.join(self.classes)}."
            )
        for label in self.classes:
            if label not in found:
                said = {group[1]: n for group, n in counts.items() if group[0] == label and group[1]}
                found[label] = max(said, key=lambda spurious: said[spurious], default="")
        if missing := [label for label in self.classes if not found[label]]:
            raise ValueError(
                f"No text to train on says which spurious label goes with {missing[0]!r}: give `pairs`."
            )
        for name, texts in (("test", self.test), ("known", self.known)):
            if texts is not None and (unseen := set(found.values()) - set(texts.attributes)):
                raise ValueError(
                    f"{name}: no text is {min(unseen)!r}, which goes with a label in training; there are "
                    f"{', '.join(texts.attributes)}."
                )
        if len(set(found.values())) == 1:
            raise ValueError(
                f"{next(iter(found.values()))!r} goes with every label: there is nothing spurious to learn."
            )
        return {label: found[label] for label in self.classes}
