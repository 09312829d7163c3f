"""In which units a dictionary's features are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Units:
    """What is to be known before the sizes of two dictionaries' features are compared.

    Features in `raw` units times their decoder rows make the site's tensor, and so do `normalised` ones; but
    normalised features are as large as the dictionary was trained to have them, on `input_scale` times the
    site's tensor, that scale being folded into the weights. `threshold` says where the activation's threshold
    is from: `stored` in the file, `estimated` after training, or there is `none`.

    >>> Units("normalised", input_scale=0.25)
    Units(latents='normalised', input_scale=0.25, threshold='none')
    """

    latents: Literal["raw", "normalised"] = "raw"
    input_scale: float | None = None
    threshold: Literal["none", "stored", "estimated"] = "none"

    def __post_init__(self) -> None:
        if self.latents not in ("raw", "normalised") or self.threshold not in ("none", "stored", "estimated"):
            raise ValueError(f"Units are of latents 'raw' or 'normalised', not {self!r}.")
        if self.input_scale is not None and not 0 < self.input_scale < float("inf"):
            raise ValueError(f"An input scale is a positive number, not {self.input_scale}.")
