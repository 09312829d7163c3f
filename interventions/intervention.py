"""What an intervention is: a change to the activations at some sites."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from .acts import Acts
from .passage import Passage
from .schedules import Schedule
from .where import Where

if TYPE_CHECKING:
    from .model import Model


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


def known(here: Here | None) -> Here:
    """Raises ValueError where the tokens are not known."""
    if here is None:
        raise ValueError("Which tokens these are is known within `applied` and `run` only.")
    return here


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
        from .joined import Chain

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
        from .limited import Placed

        return Placed(self, where, schedule)

    def keeping_norm(self) -> Intervention:
        """The same, with the norm of every token's activations left as it was."""
        from .limited import KeptNorm

        return KeptNorm(self)

    def clipped(self, most: float) -> Intervention:
        """The same, moving the activations of a token by at most `most` times their norm."""
        from .limited import Clipped

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
