"""Texts of two classes: what a site holds of each, and the features of a dictionary there."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..binding import Dictionaries
from ..concepts import Pooled, pooled
from ..model import Model
from ..probing.examples import Labels, classes, finite
from ..steering.token_choice import Choice, every

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True, eq=False)
class Examples:
    """A site and its features in each of some texts, and which of these are positive.

    Features may be dense, a sparse tensor or a matrix of scipy; they are held as the latter, so that wide
    dictionaries take as much room as they have active features. `name` says what is told apart.

    >>> Examples("odd", torch.randn(4, 3), torch.eye(4), [0, 1, 0, 1])
    Examples('odd', 4 texts of which 2 positive, 4 features)

    Raises:
        ValueError: other numbers of rows, features or labels; labels other than 0 and 1, or of one class;
            numbers that are not finite.
    """

    name: str
    acts: Float[Tensor, "text d_model"]
    features: csr_matrix  # (text feature)
    labels: Int[Tensor, " text"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "acts", finite(self.acts, 2, "(text d_model)"))
        object.__setattr__(self, "features", _rows(self.features))
        if (n := self.features.get_shape()[0]) != len(self.acts):
            raise ValueError(f"There are activations of {len(self.acts)} texts, and features of {n}.")
        try:
            labels = classes(self.labels, len(self.acts))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        if int(labels.max()) > 1:
            raise ValueError(
                f"{self.name}: there are {int(labels.max()) + 1} classes; probe each against the rest, as "
                "one_against_rest(labels) does."
            )
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.acts)

    def __repr__(self) -> str:
        counts = f"{len(self)} texts of which {int(self.labels.sum())} positive"
        return f"Examples({self.name!r}, {counts}, {self.n_features} features)"

    @property
    def n_features(self) -> int:
        return self.features.get_shape()[1]

    @property
    def positive(self) -> Bool[Tensor, " text"]:
        return self.labels.bool()

    def of(self, texts: Int[Tensor, " n"] | Bool[Tensor, " text"] | Sequence[int]) -> Examples:
        """Those of some texts, in this order; or those for which `texts` says True."""
        index = torch.arange(len(self))[torch.as_tensor(texts)]
        rows = self.features[index.numpy()]
        return replace(self, acts=self.acts[index], features=rows, labels=self.labels[index])

    def relabelled(self, labels: Labels, name: str | None = None) -> Examples:
        """The same texts with other labels."""
        return replace(self, labels=torch.as_tensor(labels), name=self.name if name is None else name)

    def some(self, features: Int[Tensor, " n"]) -> Float[Tensor, "text n"]:
        """The values of a few features."""
        return torch.from_numpy(self.features[:, features.numpy()].toarray())

    @property
    def digest(self) -> str:
        """Of all that is in them."""
        found = hashlib.sha256(self.name.encode())
        for part in (self.features.data, self.features.indices, self.features.indptr):
            found.update(part.tobytes())
        for tensor in (self.acts, self.labels):
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()


def features_of(
    model: Model,
    dictionaries: Dictionaries,
    texts: Sequence[Any],
    labels: Labels,
    *,
    name: str = "label",
    tokens: Choice = every,
    batch_size: int = 16,
    progress: bool | None = None,
) -> dict[str, Examples]:
    """The texts at every site that has a dictionary, by the site's name: one forward pass for each text.

    `tokens` are the ones averaged over: by default all but those that open a text (`every`); `last` takes the
    last alone. Other labels of the same texts need no other pass: see `Examples.relabelled`.

    >>> from interventions.dictionaries import SparseCoder
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = Model.load(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)))
    >>> coders = {"resid.0": SparseCoder.random(32, 64)}
    >>> features_of(model, coders, [(3, 1), (4, 1, 5)], [0, 1], progress=False)["resid.0"]
    Examples('label', 2 texts of which 1 positive, 64 features)

    Raises:
        ValueError: labels of one class; and what `concepts.pooled` refuses, such as a text of which no token
            is left.
    """
    found = classes(labels, len(texts))
    read = pooled(model, dictionaries, texts, tokens=tokens, batch_size=batch_size, progress=progress)
    return {site: of_pooled(each, found, name=name) for site, each in read.items()}


def of_pooled(pooled: Pooled, labels: Labels, *, name: str = "label") -> Examples:
    """What `concepts.pooled` read at a site, with labels 0 and 1."""
    return Examples(name, pooled.acts, pooled.features, torch.as_tensor(labels))  # type: ignore[arg-type]


def one_against_rest(labels: Sequence[Hashable]) -> Mapping[Hashable, list[int]]:
    """For each class the labels of it against all others; of two classes only the second, by name.

    >>> dict(one_against_rest(["cat", "dog", "cat"]))
    {'dog': [0, 1, 0]}

    Raises:
        ValueError: a single class.
    """
    names = sorted(set(labels), key=str)
    if len(names) < 2:
        raise ValueError(f"All {len(labels)} labels are {names[0]!r}: there is nothing to tell apart.")
    return {one: [int(label == one) for label in labels] for one in (names if len(names) > 2 else names[1:])}


def _rows(features: Any) -> csr_matrix:
    from scipy.sparse import csr_matrix, issparse

    if issparse(features):
        found = csr_matrix(features)
    elif isinstance(features, Tensor) and features.is_sparse:
        held = features.detach().cpu().coalesce()
        index = held.indices().numpy()
        found = csr_matrix((held.values().double().numpy(), (index[0], index[1])), shape=tuple(held.shape))
    elif isinstance(features, Tensor) and features.ndim == 2:
        found = csr_matrix(features.detach().cpu().double().numpy())
    else:
        raise ValueError(f"Features are (text feature), dense or sparse, not {type(features).__name__}.")
    if not torch.from_numpy(found.data).isfinite().all():
        raise ValueError("Features are not finite.")
    return found
