"""Names for the places in a model where one tensor flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["in", "out"]


@dataclass(frozen=True, order=True)
class Site:
    """One tensor in a forward pass: what enters or leaves one module.

    Sites sort in the order in which the forward pass reaches them. They are plain data: a dictionary
    key, a line in a JSON file.

    >>> Site(2, "mlp.0", "model.layers.0.mlp", width=64)
    mlp.0
    """

    order: int
    name: str
    path: str
    side: Side = "out"
    width: int = 0  # size of the tensor's last axis

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__

    def __hash__(self) -> int:  # a string keeps its hash; that of all fields is worked out for every token
        return hash(self.name)


@dataclass(frozen=True)
class Layout:
    """Where one architecture keeps what every language model has. All paths are module paths.

    `parts` maps the stem of a site's name to the path of a module *inside a block*; the site is what
    leaves that module, or what enters it where the stem ends in `_in`. Where blocks differ, `parts` is a
    sequence of such mappings, one for each block. A part that a block lacks gives that block no site. The
    empty path is the block itself, where what it returns is not the residual stream but a part of it.

    >>> layout = Layout(blocks="transformer.h", embed="transformer.wte", norm="transformer.ln_f",
    ...                 head="lm_head", parts={"attn": "attn", "mlp_in": "mlp", "mlp": "mlp"})
    >>> layout.parts_of(3)["mlp_in"]
    'mlp'
    """

    blocks: str
    embed: str
    norm: str | None = None
    head: str | None = None
    parts: Mapping[str, str] | Sequence[Mapping[str, str]] = field(default_factory=dict)

    def parts_of(self, block: int) -> Mapping[str, str]:
        """The parts of one block."""
        return self.parts if isinstance(self.parts, Mapping) else self.parts[block]
