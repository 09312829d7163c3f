"""A language model made into a classifier: a probe of pooled activations in place of its head."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .fingerprint import samples
from .model import Model, ranges
from .observation import arguments
from .pooling import Pool
from .sites import Side, Site
from .visits import visited

_INNER = "inner"  # what the module that is stopped is called in the one that stops it


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
    count, as with `steering.token_choice.every`. Passes end where the probe reads: what comes after is never
    computed, and sites there do not exist. Sites have the names that they have in `inner`, and interventions
    made with it do here as well. `reads` is the site that the probe reads.

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
        self.module = Probed(inner, site, _Reading(probe, pool))
        self.follower = inner.follower
        self._level = 0
        self._whole = False
        self.layout = replace(
            inner.layout,
            blocks=f"{_INNER}.{inner.layout.blocks}",
            embed=f"{_INNER}.{inner.layout.embed}",
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
        read = f"{self.probe.n_classes} classes by {_called(self.pool)} at {self.reads}"
        return f"ProbedModel({name}, {read}, {self.device}, {dtype})"

    @property
    def width(self) -> int:
        """Of what the probe reads."""
        return self.reads.width

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the inner model's, of the site, the pooling and the probe."""
        said = (self.inner.fingerprint, self.reads.path, self.reads.side, _called(self.pool))
        digest = hashlib.sha256(repr((*said, sorted(self.module.opening.tolist()))).encode())
        tensors = self.probe.tensors()
        digest.update(repr([(name, tuple(x.shape), x.dtype) for name, x in tensors.items()]).encode())
        digest.update(samples(tensors.values()))
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
        return self.site(self.inner.at(path.removeprefix(f"{_INNER}."), side, name))

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


class _Reading:
    """Logits (batch pos class) of what a site holds."""

    def __init__(self, probe: Classifier, pool: Pool):
        self.probe, self.pool = probe, pool
        held = next((x.dtype for x in probe.tensors().values() if x.is_floating_point()), torch.float32)
        self.dtype = torch.promote_types(held, torch.float32)

    def __call__(
        self, x: Float[Tensor, "batch pos width"], counted: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos class"]:
        pooled = self.pool(x.to(self.dtype), counted)
        if pooled.shape != x.shape:
            raise ValueError(
                f"{_called(self.pool)} pooled {tuple(x.shape)} to {tuple(pooled.shape)}: a pooling gives, of "
                "the same shape, what is read of the text up to each position."
            )
        logits = self.probe.logits(pooled)
        if self.probe.n_classes == 2 and logits.ndim == x.ndim - 1:
            logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Stopped(Exception):
    """That a pass has come to the site where it ends."""


class Probed(nn.Module):
    """Runs a module up to a site, and gives the logits of what it holds."""

    opening: Tensor

    def __init__(self, model: Model, site: Site, reading: _Reading):
        super().__init__()
        self.add_module(_INNER, model.module)
        if hasattr(model.module, "config"):
            self.config = model.module.config
        self.reading = reading
        self._site, self._first, self._seen = site, model.blocks[0], model._seen
        self._follower = model.follower
        special = sorted(getattr(model.tokenizer, "all_special_ids", ()))
        self.register_buffer("opening", torch.tensor(special, dtype=torch.long, device=model.device), False)

    def forward(
        self, input_ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos class"]:
        counted = ~torch.isin(input_ids, self.opening)
        told: dict[str, Any] = {}
        if attention_mask is not None:
            counted &= attention_mask.bool()
            told["attention_mask"] = attention_mask
        if empty := (~counted.any(1)).nonzero()[:, 0].tolist():
            raise ValueError(f"Of text {empty[0]} no token counts: there is nothing to classify.")
        x = self._held(input_ids, told)
        return self.reading(x, counted.to(x.device))

    def _held(self, tokens: Tensor, told: dict[str, Any]) -> Float[Tensor, "batch pos width"]:
        held: list[Tensor] = []

        def take(_site: Site, x: Tensor) -> Tensor:
            held.append(x)
            if self._follower.parted:
                return x
            raise _Stopped

        inner = self.get_submodule(_INNER)
        # Hooked anew in each pass, so that visits that are open have been before.
        ending = visited(inner, [self._site], take, first=self._first, seen=self._seen, muted=lambda: False)
        with suppress(_Stopped), ending:
            inner(tokens, **arguments(inner, **told))
        if not held:
            raise ValueError(f"The pass never came to {self._site}, which the probe reads.")
        if any(len(x) != len(tokens) for x in held):
            raise ValueError("As its state is changed, this model reads row by row: give one row at a time.")
        return torch.cat(held, dim=1)


def _inside(site: Site) -> Site:
    """The site as the module that holds the inner one has it."""
    return replace(site, path=f"{_INNER}.{site.path}".rstrip("."))


def _called(pool: Pool) -> str:
    return getattr(pool, "__name__", None) or repr(pool)
