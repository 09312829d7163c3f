"""What an intervention is, and how one is limited to some tokens, kept at its norm, or undone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .acts import Acts
from .passage import Passage
from .sites import Site
from .where import Where

if TYPE_CHECKING:
    from .model import Model

T = TypeVar("T")
BySite: TypeAlias = Mapping[str, T] | Mapping[Site, T]  # sites, or their names
Schedule: TypeAlias = Callable[[Int[Tensor, "row pos"]], Float[Tensor, "row pos"]]


@dataclass(frozen=True, eq=False)
class Here:
    """Where an intervention finds itself: the site, what its activations stand for, and the tokens."""

    site: str
    decode: Callable[[Acts], Tensor] | None = None  # the site's tensor; None: the features are the tensor
    passage: Passage | None = None
    seen: Mapping[str, Tensor] = field(default_factory=dict)  # tensors at sites that conditions read
    read: Callable[[Tensor], str] | None = None  # makes text of token ids

    def tensor(self, acts: Acts) -> Float[Tensor, "batch pos d_model"]:
        return acts.features + acts.error if self.decode is None else self.decode(acts)

    def moved(self, acts: Acts, by: Tensor) -> Acts:
        """The activations whose tensor is another one: its neurons, or beside its features."""
        if self.decode is None:
            return Acts(acts.features + by, acts.error)
        return Acts(acts.features, acts.error + by)


class Intervention(ABC):
    """A change to the activations at some sites.

    Interventions are values: they hold no model and no hooks. `a | b` does `a`, then `b`.
    """

    @property
    @abstractmethod
    def sites(self) -> Set[str]:
        """Names of the sites that are changed."""

    @property
    def watches(self) -> Set[str]:
        """Names of the sites that are read besides."""
        return frozenset()

    @property
    def parts(self) -> Sequence[Intervention]:
        """The interventions that it is made of."""
        return ()

    @property
    def placed(self) -> bool:
        """Whether it must know which tokens it is given."""
        return False

    @property
    def fingerprints(self) -> Set[str]:
        """Of the models that it was made with, where that is known."""
        return frozenset()

    @abstractmethod
    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        """What flows on in place of `acts`."""

    def tensor(self, site: str, x: Float[Tensor, "batch pos d_model"], here: Here) -> Tensor:
        """What flows on in place of `x` at a site without a dictionary."""
        acts = self(site, Acts(x, x.new_zeros(()).expand_as(x)), here)
        return acts.features + acts.error

    def inverse(self) -> Intervention:
        """The intervention that undoes this one. Raises ValueError where there is none."""
        raise ValueError(f"{self!r} cannot be undone: what was there before is not known.")

    def __or__(self, then: Intervention) -> Intervention:
        return Chain(self, then) if isinstance(then, Intervention) else NotImplemented

    # Kinds of the same

    def at(self, where: Where, *, schedule: Schedule | None = None) -> Intervention:
        """The same at some tokens only; others are left alone.

        `schedule` maps the numbers of generated tokens, from 0, to how much of the change they get; tokens
        of the prompt get all of it.

        >>> from interventions import Ablate
        >>> Ablate({"mlp.0": [3]}).at(Where(prompt=-1, generation=None))
        Ablate(mlp.0: 1 feature to zero) at prompt last, generation none
        """
        return Placed(self, where, schedule)

    def keeping_norm(self) -> Intervention:
        """The same, with the norm of every token's activations left as it was."""
        return KeptNorm(self)

    def clipped(self, most: float) -> Intervention:
        """The same, moving the activations of a token by at most `most` times their norm."""
        return Clipped(self, most)

    def explain(self, model: Model, prompt: Any, *, max_new_tokens: int = 0, dictionaries: Any = None) -> Any:
        """Which tokens of `prompt`, and of what the model then writes, are changed at each site.

        Prints well; `.touched` maps sites to a boolean for every token.
        """
        from .explaining import explain

        return explain(model, self, prompt, max_new_tokens=max_new_tokens, dictionaries=dictionaries)

    def save(self, folder: str | Path) -> None:
        """Writes the intervention to a folder: `intervention.json` and `tensors.safetensors`."""
        from .intervention_files import save

        save(self, folder)

    @staticmethod
    def load(folder: str | Path) -> Intervention:
        """The intervention in a folder. Raises FileNotFoundError or ValueError where there is none."""
        from .intervention_files import load

        return load(folder)


class TensorEdit(Intervention):
    """A change to the tensor of a site, whatever its features. Subclasses say what flows on."""

    @abstractmethod
    def tensor(self, site: str, x: Float[Tensor, "batch pos d_model"], here: Here) -> Tensor: ...

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        if here is None:
            raise ValueError(f"{self!r} changes tensors: it needs to know what the activations stand for.")
        x = here.tensor(acts)
        return here.moved(acts, self.tensor(site, x, here) - x)


@dataclass(frozen=True)
class Chain(Intervention):
    """One intervention, then another."""

    first: Intervention
    then: Intervention

    @property
    def parts(self) -> Sequence[Intervention]:
        return (self.first, self.then)

    @property
    def sites(self) -> Set[str]:
        return self.first.sites | self.then.sites

    @property
    def watches(self) -> Set[str]:
        return self.first.watches | self.then.watches

    @property
    def placed(self) -> bool:
        return self.first.placed or self.then.placed

    @property
    def fingerprints(self) -> Set[str]:
        return self.first.fingerprints | self.then.fingerprints

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        for step in (self.first, self.then):
            acts = step(site, acts, here) if site in step.sites else acts
        return acts

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        for step in (self.first, self.then):
            x = step.tensor(site, x, here) if site in step.sites else x
        return x

    def inverse(self) -> Intervention:
        return Chain(self.then.inverse(), self.first.inverse())

    def __repr__(self) -> str:
        return f"{self.first!r} | {self.then!r}"


@dataclass(frozen=True)
class _Changed(Intervention):
    """An intervention that does something with what another one does."""

    inner: Intervention

    @property
    def parts(self) -> Sequence[Intervention]:
        return (self.inner,)

    @property
    def sites(self) -> Set[str]:
        return self.inner.sites

    @property
    def watches(self) -> Set[str]:
        return self.inner.watches

    @property
    def placed(self) -> bool:
        return self.inner.placed

    @property
    def fingerprints(self) -> Set[str]:
        return self.inner.fingerprints


@dataclass(frozen=True)
class Placed(_Changed):
    """An intervention at some tokens only; `Intervention.at` makes one."""

    where: Where = field(default_factory=Where)
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.where, Where):
            raise TypeError(f"`at` takes a place, such as Where(prompt=-1), not {self.where!r}.")

    @property
    def watches(self) -> Set[str]:
        return self.inner.watches | self.where.watches

    @property
    def placed(self) -> bool:
        return self.inner.placed or self.schedule is not None or not self.where.everywhere

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        if not self.placed:
            return self.inner(site, acts, here)
        here = _known(here)
        if self._misses(here):
            return acts
        changed = self.inner(site, acts, here)
        return changed.map(lambda new, old: self._blended(new, old, here, here.tensor(acts)), acts)

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        if not self.placed:
            return self.inner.tensor(site, x, here)
        if self._misses(here):
            return x
        return self._blended(self.inner.tensor(site, x, here), x, here, x)

    def inverse(self) -> Intervention:
        if self.schedule is not None or self.where.when is not None:
            return super().inverse()
        return Placed(self.inner.inverse(), self.where)

    def _misses(self, here: Here) -> bool:
        return here.passage is not None and self.where.misses(here.passage)

    def _blended(self, new: Tensor, old: Tensor, here: Here, x: Tensor) -> Tensor:
        assert here.passage is not None
        touched = self.where.touched(here.passage, x, here.seen, here.read)
        if self.schedule is not None:
            weight = self._weight(here.passage).to(x)
            if touched is not None:
                weight = weight * touched
            return old + weight[..., None] * (new - old)
        return new if touched is None else torch.where(touched[..., None], new, old)

    def _weight(self, passage: Passage) -> Float[Tensor, "row pos"]:
        assert self.schedule is not None
        generated = passage.of_this_pass(passage.generated)
        prompt = 0 if passage.prompt is None else passage.prompt[:, None]
        number = (passage.of_this_pass(passage.position) - prompt).clamp(min=0)
        weight = torch.as_tensor(self.schedule(number), dtype=torch.float64, device=number.device)
        return torch.where(generated, weight, 1.0)

    def __repr__(self) -> str:
        where = repr(self.where).removeprefix("Where(").removesuffix(")")
        inner = f"({self.inner!r})" if isinstance(self.inner, Chain) else repr(self.inner)
        return f"{inner} at {where}" + (f", {self.schedule!r}" if self.schedule is not None else "")


@dataclass(frozen=True)
class KeptNorm(_Changed):
    """An intervention that turns activations and leaves their norm; `Intervention.keeping_norm` makes one."""

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        return _refined(self, site, acts, here)

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        return self.refined(x, self.inner.tensor(site, x, here))

    def refined(self, x: Tensor, y: Tensor) -> Tensor:
        return (y * (_norm(x) / _norm(y).clamp(min=1e-12))).to(x.dtype)

    def __repr__(self) -> str:
        return f"{self.inner!r} keeping the norm"


@dataclass(frozen=True)
class Clipped(_Changed):
    """An intervention that moves activations only so far; `Intervention.clipped` makes one."""

    most: float = 1.0

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise ValueError(f"Clipped at {self.most} times their norm, activations would never move.")

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        return _refined(self, site, acts, here)

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        return self.refined(x, self.inner.tensor(site, x, here))

    def refined(self, x: Tensor, y: Tensor) -> Tensor:
        change = y - x
        part = (self.most * _norm(x) / _norm(change).clamp(min=1e-12)).clamp(max=1)
        return x + (change * part).to(x.dtype)

    def __repr__(self) -> str:
        return f"{self.inner!r} clipped at {self.most:g} of the norm"


def _norm(x: Tensor) -> Float[Tensor, "*batch 1"]:
    """Norms in single precision at least: in half precision they overflow, and small numbers are zero."""
    return x.norm(dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))


def _refined(of: KeptNorm | Clipped, site: str, acts: Acts, here: Here | None) -> Acts:
    here = _known(here)
    changed = of.inner(site, acts, here)
    x, y = here.tensor(acts), here.tensor(changed)
    return here.moved(changed, of.refined(x, y) - y)


def _known(here: Here | None) -> Here:
    if here is None:
        raise ValueError("Which tokens these are is known within `applied` and `run` only.")
    return here


@dataclass(frozen=True)
class Linear:
    """A schedule that goes from one factor to another over so many generated tokens, and stays there.

    >>> Linear(1.0, 0.0, tokens=4)(torch.tensor([0, 2, 4, 9]))
    tensor([1.0000, 0.5000, 0.0000, 0.0000])
    """

    start: float
    stop: float
    tokens: int

    def __post_init__(self) -> None:
        if not self.tokens > 0:
            raise ValueError(f"A schedule goes over at least one token, not {self.tokens}.")

    def __call__(self, number: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        part = (number.float() / self.tokens).clamp(0, 1)
        return self.start + part * (self.stop - self.start)


@dataclass(frozen=True)
class Decay:
    """A schedule that halves every `half_life` generated tokens.

    >>> Decay(2.0)(torch.tensor([0, 2, 4]))
    tensor([1.0000, 0.5000, 0.2500])
    """

    half_life: float

    def __post_init__(self) -> None:
        if not self.half_life > 0:
            raise ValueError(f"A half-life is above 0, not {self.half_life}.")

    def __call__(self, number: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return 0.5 ** (number.float() / self.half_life)


@dataclass(frozen=True)
class PerRow(Intervention):
    """A different intervention for each row of a batch, None for rows that are left alone.

    >>> from interventions import Ablate
    >>> PerRow([Ablate({"mlp.0": [3]}), None])
    PerRow(Ablate(mlp.0: 1 feature to zero), None)
    """

    rows: Sequence[Intervention | None]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        if not self.parts:
            raise ValueError("PerRow needs an intervention for at least one row.")
        if wrong := [row for row in self.parts if not isinstance(row, Intervention)]:
            raise TypeError(f"PerRow takes an intervention or None for each row, not {wrong[0]!r}.")

    @property
    def parts(self) -> Sequence[Intervention]:
        return [row for row in self.rows if row is not None]

    @property
    def sites(self) -> Set[str]:
        return frozenset().union(*(row.sites for row in self.parts))

    @property
    def watches(self) -> Set[str]:
        return frozenset().union(*(row.watches for row in self.parts))

    @property
    def placed(self) -> bool:
        return True

    @property
    def fingerprints(self) -> Set[str]:
        return frozenset().union(*(row.fingerprints for row in self.parts))

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        rows = self._rows(_known(here))
        for i, step in enumerate(self.rows):
            if step is not None and site in step.sites:
                acts = step(site, acts, here).map(
                    lambda new, old, i=i: torch.where((rows == i)[:, None, None], new, old), acts
                )
        return acts

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        rows = self._rows(here)
        for i, step in enumerate(self.rows):
            if step is not None and site in step.sites:
                x = torch.where((rows == i)[:, None, None], step.tensor(site, x, here), x)
        return x

    def inverse(self) -> Intervention:
        return PerRow([None if row is None else row.inverse() for row in self.rows])

    def _rows(self, here: Here) -> Tensor:
        assert here.passage is not None
        if here.passage.n_rows % len(self.rows):
            raise ValueError(f"PerRow has {len(self.rows)} rows, but the batch has {here.passage.n_rows}.")
        # a pass over copies of the batch has them one after the other
        return here.passage.rows % len(self.rows)

    def __repr__(self) -> str:
        return f"PerRow({', '.join(map(repr, self.rows))})"
