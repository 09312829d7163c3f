"""Pictures of attention, drawn by matplotlib: what an intervention changes, head by head.

Every function writes one file, whose suffix says the format (.svg, .png or .pdf, and .svg without one), and
gives its path. `width` is in inches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from interventions.features.attention_effect import AttentionEffect

from .figures import figure, target
from .geometry_plots import _finished

_COLUMN = 3.4  # inches, a column of a paper with two
_NUMBERED = 16  # up to so many heads, each has its number


def plot_heads(
    effect: AttentionEffect,
    path: str | Path,
    *,
    level: float = 0.05,
    title: str = "",
    width: float = _COLUMN,
) -> Path:
    """The change of the attention to the chosen tokens, less that by the controls, by layer and head.

    A square is around the heads that significantly gain (red) or lose (blue) attention, at a false discovery
    rate of `level` each. Grey are those that nothing reaches.
    """
    path, kind = target(path)
    gain = (effect.change() - _controls(effect)).where(~effect.p().isnan(), torch.nan)
    n_layers, n_heads = gain.shape
    most = max(float(gain.nan_to_num().abs().max()), 1e-6)
    height = max(1.3, 0.9 + 0.78 * width * min(1.2, n_layers / n_heads))
    with figure(width, height, "constrained") as sheet:
        axes = sheet.subplots()
        axes.set_facecolor("#e6e6e6")
        shown = axes.imshow(
            gain.tolist(), cmap="RdBu_r", vmin=-most, vmax=most, origin="lower", aspect="auto"
        )
        for less in (False, True):
            for i, j in (effect.q(less=less) <= level).nonzero().tolist():
                axes.add_patch(_square(i, j))
        axes.set_xticks(range(0, n_heads, -(-n_heads // _NUMBERED)))
        step = -(-n_layers // _NUMBERED)
        axes.set_yticks(range(0, n_layers, step), [str(layer) for layer in effect.layers[::step]])
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        axes.tick_params(length=0)
        bar = sheet.colorbar(shown, ax=axes, pad=0.02)
        bar.set_label("change of attention,\nless that by controls")
        bar.outline.set_visible(False)  # type: ignore[operator]
        return _finished(sheet, [axes], path, kind, title)


def _controls(effect: AttentionEffect) -> torch.Tensor:
    """The mean change by the controls (layer head)."""
    return AttentionEffect(effect.before, effect.control, effect.control).change()


def _square(layer: int, head: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((head - 0.42, layer - 0.42), 0.84, 0.84, fill=False, ec="black", lw=1.2)
