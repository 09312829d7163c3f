"""A language model made into a classifier: a probe of pooled activations in place of its head."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .model import Model, ranges
from .pooling import Pool
from .sites import Side, Site
from .stopping import INNER, Probed, Reading, called


@runtime_checkable
class Classifier(Protocol):
    """What reads activations: `Probe`, `MLPProbe`, or anything of this form.

    `logits` maps (*batch width) to (*batch class), or of two classes to the log odds of class 1, (*batch).
    """

    @property
    def width(self) -> int: ...

    @property
    def n_classes(self) -> int: ...

    def logits(self, x: Float[Tensor, "*batch width"]) -> Tensor: ...

    def tensors(self) -> dict[str, Tensor]:
        """Its weights, by name: they tell one classifier from another."""
        ...


class ProbedModel(Model):
    """A model whose logits are what a probe says of its activations; `Model.probed` makes one.

    The logits (batch pos class) are those of the text up to each token, so that the last ones are the whole
    text's, also behind padding; of two classes they are 0 and the log odds. Tokens that open a text do not
    count, nor do the tokenizer's other special tokens wherever they stand, as with
    `steering.token_choice.every`. Passes end where the probe reads: what comes after is never computed, and
    sites there do not exist. Sites have the names that they have in `inner`, and interventions made with it
    do here as well. `reads` is the site that the probe reads.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from interventions.probing import Probe
    >>> config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)
    >>> model = Model.load(GPT2LMHeadModel(config))
    >>> probed = model.probed(Probe(torch.randn(3, 32), torch.zeros(3)), at="resid.0")
    >>> probed
    ProbedModel(GPT2LMHeadModel, 3 classes by mean at resid.0, cpu, float32)
    >>> probed.logits(torch.tensor([[3, 1, 4]])).shape
    torch.Size([1, 3, 3])
    >>> probed.site("mlp.1")
    Traceback (most recent call last):
    LookupError: The probe reads resid.0; mlp.1 comes after it.

    Raises:
        LookupError: a site that the model does not have.
        ValueError: a probe of another width than the site, or another number of names than of classes.
        TypeError: what is no probe, or no callable to pool with.
    """

    def __init__(
        self,
        inner: Model,
        probe: Classifier,
        *,
        at: str | Site,
        pool: Pool,
        classes: Sequence[str] | None = None,
    ):
        if not isinstance(probe, Classifier):
            raise TypeError(
                f"{probe!r:.80} is no probe: it has `logits`, `width`, `n_classes` and `tensors`."
            )
        if not callable(pool):
            raise TypeError(f"pool={pool!r} is no callable, such as `pooling.mean` or `pooling.last`.")
        site = inner.site(at)
        if probe.width != site.width:
            raise ValueError(f"The probe reads width {probe.width}, and {site} holds width {site.width}.")
        named = tuple(f"class {i}" for i in range(probe.n_classes)) if classes is None else tuple(classes)
        if len(set(named)) != probe.n_classes or len(named) != probe.n_classes:
            raise ValueError(f"The probe tells {probe.n_classes} classes apart; their names are {named}.")
        self.inner = inner
        self.classes: tuple[str, ...] | None = named
        self.tokenizer = inner.tokenizer
        self.reads = _inside(site)
        self.probe = probe
        self.pool = pool
        self.module = Probed(inner, site, Reading(probe, pool))
        self.follower = inner.follower
        self._whole = False
        self.layout = replace(
            inner.layout,
            blocks=f"{INNER}.{inner.layout.blocks}",
            embed=f"{INNER}.{inner.layout.embed}",
            norm=None,
            head=None,
        )
        self._named = {one.name: _inside(one) for one in inner._named.values() if one.order <= site.order}
        self._placed = dict(self._named)
        self.sites: Mapping[str, Site] = MappingProxyType(
            {name: self._named[name] for name in inner.sites if name in self._named}
        )
        self._templates, self._seen = inner._templates, inner._seen

    def __repr__(self) -> str:
        name, dtype = type(self.inner.module).__name__, str(self.dtype).removeprefix("torch.")
        read = f"{self.probe.n_classes} classes by {called(self.pool)} at {self.reads}"
        return f"ProbedModel({name}, {read}, {self.device}, {dtype})"

    @property
    def _level(self) -> int:
        """The inner model's: passes that one of the two makes for itself leave visits of both alone."""
        return self.inner._level

    @_level.setter
    def _level(self, level: int) -> None:
        self.inner._level = level

    @property
    def width(self) -> int:
        """Of what the probe reads."""
        return self.reads.width

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the inner model's, of the site, the pooling and the probe."""
        said = (self.inner.fingerprint, self.reads.path, self.reads.side, called(self.pool))
        digest = hashlib.sha256(repr((*said, sorted(self.module.opening.tolist()))).encode())
        for name, x in self.probe.tensors().items():
            digest.update(repr((name, tuple(x.shape), x.dtype)).encode())
            digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def fingerprints(self) -> frozenset[str]:
        return self.inner.fingerprints | {self.fingerprint}

    def site(self, name: str | Site) -> Site:
        """The site of that name, up to the one that the probe reads. Raises LookupError for others."""
        if (key := str(name)) in self._placed:
            return self._placed[key]
        try:
            site = self.inner.site(name)
        except LookupError:
            raise LookupError(f"No site {key!r}; this model has {ranges(self._named)}.") from None
        if site.order > self.reads.order:
            raise LookupError(f"The probe reads {self.reads}; {key} comes after it.")
        return self._placed.setdefault(key, _inside(site))

    def at(self, path: str, side: Side = "out", name: str | None = None) -> Site:
        """A site anywhere before the probe; `path` is a module's in the inner model, or in this one."""
        return self.site(self.inner.at(path.removeprefix(f"{INNER}."), side, name))

    def unembed(self, resid: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch class"]:
        """What the probe says of each vector alone, as if it were all that it read of a text."""
        if resid.shape[-1] != self.width:
            raise ValueError(f"The probe reads width {self.width}; this tensor has {tuple(resid.shape)}.")
        x = resid.reshape(-1, 1, self.width)
        counted = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return self.module.reading(x, counted).reshape(*resid.shape[:-1], -1)

    @property
    def pads(self) -> bool:
        return self.inner.pads

    @property
    def resumes(self) -> bool:
        return self.inner.resumes

    @property
    def carrying(self) -> Model:
        return self.inner.carrying

    def probed(self, probe: Classifier, **how: Any) -> ProbedModel:
        """The inner model with another probe."""
        return self.inner.probed(probe, **how)

    # What it has no words for

    def generate(self, *_: Any, **__: Any) -> NoReturn:
        self._silent()

    def complete(self, *_: Any, **__: Any) -> NoReturn:
        self._silent()

    def stream(self, *_: Any, **__: Any) -> NoReturn:
        self._silent()

    @property
    def writes(self) -> NoReturn:
        self._silent()

    @property
    def lingers(self) -> NoReturn:
        self._silent()

    @property
    def nnsight(self) -> NoReturn:
        self._silent()

    def _silent(self) -> NoReturn:
        raise ValueError("A probed model tells classes and writes no text: ask the model in `.inner`.")


def _inside(site: Site) -> Site:
    """The site as the module that holds the inner one has it."""
    return replace(site, path=f"{INNER}.{site.path}".rstrip("."))
