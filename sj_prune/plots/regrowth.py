"""Plots of regrowth over a run: how much each mask update regrew, and how much of it survives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise
from typing import TYPE_CHECKING

from sj_prune.plots.axes import COLORS, MARKERS, axes, grid, legend_above, whole_numbers
from sj_prune.plots.given import Histories, History, histories_of, history_of
from sj_prune.run.history import UpdateRecord, survival

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def regrowth_survival(
    histories: Histories,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw at each mask update which fraction of what the one before regrew survives its prune.

    Args:
        histories: a wrapper or its `history`, or several by name.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        TypeError: for something else.
        ValueError: for a history in which no prune follows a regrowth.
    """
    named = histories_of(histories)
    curves = {name: _survival(name, records) for name, records in named.items()}
    if not curves:
        raise ValueError("Expected at least one history but got none")
    fig, ax = axes(ax)
    looks = zip(cycle(MARKERS), cycle(COLORS), curves.items(), strict=False)
    for marker, color, (name, curve) in looks:
        steps, rates = list(curve), list(curve.values())
        ax.plot(steps, rates, color=color, marker=marker, markersize=4, label=name)
    whole_numbers(ax, "optimizer step")
    ax.set_ylabel("fraction of the regrown units that survive")
    ax.set_ylim(-0.02, 1.02)
    grid(ax)
    if len(curves) > 1:
        ax.legend()
    return fig, ax


def _survival(name: str, records: Sequence[UpdateRecord]) -> dict[int, float]:
    """Return optimizer step -> survival."""
    found = {pair[1].step: survival(pair).get("total") for pair in pairwise(records)}
    curve = {step: rate for step, rate in found.items() if rate is not None}
    if not curve:
        raise ValueError(
            f"Expected an update that regrows, and another after it, in {name or 'the history'}"
        )
    return curve


def regrowth_per_layer(history: History, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw how many units each mask update regrew, stacked by layer from the first to the last.

    Args:
        history: a wrapper or its `history`.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        TypeError: for something else.
        ValueError: for a history without regrowth.
    """
    growing = [record for record in history_of(history) if any(record.grown.values())]
    if not growing:
        raise ValueError("Expected a history in which something is regrown but nothing is")
    fig, ax = axes(ax)
    from matplotlib import colormaps

    steps = [record.step for record in growing]
    width = 0.8 * min((b - a for a, b in pairwise(steps) if b > a), default=1)
    # A layer may begin to run later: it stands behind those that were there before.
    seen = dict.fromkeys(name for record in growing for name in record.grown)
    names = [name for name in seen if any(r.grown.get(name) for r in growing)]
    below = [0] * len(growing)
    for i, name in enumerate(names):
        heights = [record.grown.get(name, 0) for record in growing]
        color = colormaps["viridis"](i / max(1, len(names) - 1))
        ax.bar(steps, heights, width, bottom=below, color=color, label=name)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    whole_numbers(ax, "optimizer step")
    ax.set_ylabel("units regrown at this update")
    grid(ax, "y")
    legend_above(fig, ax)
    return fig, ax
