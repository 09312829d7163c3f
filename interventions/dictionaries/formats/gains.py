"""The gain of the norm that a site comes out of.

Some transcoders were trained on what a norm hands out before it multiplies by its gain, a tensor that no
module of the model returns. What it reads there, times the gain, is the site's tensor: so the encoder can be
divided by the gain, and then reads the site.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...model import Model
from ...sites import Site
from ..coders import SparseCoder
from .names import maker


@torch.no_grad()
def gain(model: Model, site: Site) -> Float[Tensor, " d_model"]:
    """What the norm whose output is the site's tensor multiplies by, found by handing it three vectors.

    Raises ValueError where the site does not come out of a norm, or the norm subtracts the mean, adds a bias,
    or has a gain that is zero somewhere.
    """
    call = maker(model, site)
    why = f"{site} is not what a norm returns"
    if call is None or call.input_width != site.width:
        raise ValueError(f"{why}, so there is no gain to account for.")
    norm: Any = call.module
    like = next(norm.parameters(), torch.empty(0, dtype=model.dtype, device=model.device))
    even = torch.full((1, 1, site.width), 1e3, dtype=like.dtype, device=like.device)
    signs = torch.ones(site.width, dtype=like.dtype, device=like.device)
    signs[1::2] = -1
    try:
        a, b, c = (norm(x)[0, 0].double() for x in (even, even * signs, 2 * even))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{why}: {type(norm).__name__} is none.") from error
    near = 1e-2 if like.dtype.itemsize < 4 else 1e-4
    if a.shape != signs.shape or not torch.allclose(a, c, rtol=near, atol=near * a.abs().max().item()):
        raise ValueError(f"{why}: {type(norm).__name__} does not bring its input to one scale.")
    if not torch.allclose(a, b * signs, rtol=near, atol=near * b.abs().max().item()):
        raise ValueError(
            f"The norm before {site}, {type(norm).__name__}, subtracts the mean or adds a bias; a dictionary "
            "that reads before its gain can be moved behind it only if it does neither."
        )
    if (a == 0).any():
        raise ValueError(f"The norm before {site} has a gain of zero: what it reads there is lost behind it.")
    return a.to(torch.float32)


def folded(coder: SparseCoder, gain: Float[Tensor, " d_in"]) -> SparseCoder:
    """What reads x, made to read x times the gain. Exact.

    Raises ValueError where the dictionary normalises its input.
    """
    if coder.normalise is not None:
        raise ValueError(f"{coder.normalise} depends on the norm of the input: no gain can be folded in.")
    kind = torch.promote_types(coder.W_enc.dtype, torch.float32)
    gain = gain.to(coder.W_enc.device, kind)
    changes = {"W_enc": coder.W_enc.to(kind) / gain[:, None]}
    if coder.W_skip is not None:
        changes["W_skip"] = coder.W_skip.to(kind) / gain[:, None]
    if coder.b_pre is not None:
        changes["b_pre"] = coder.b_pre.to(kind) * gain
    return coder._with(**changes)
