"""Plots of layers: how dense each is, how critical its neurons are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from sj_prune.plots.axes import COLORS, axes, grid, legend_above, name_ticks
from sj_prune.plots.given import channel_values, named
from sj_prune.wrapper import PruningWrapper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: masks by layer name, True = kept; a `MaskManager` is one
Masks: TypeAlias = Mapping[str, Tensor]


def _densities(masks: Masks | PruningWrapper) -> dict[str, float]:
    """Return the density of each layer."""
    masks = masks.masks if isinstance(masks, PruningWrapper) else named("masks_or_wrappers", masks)
    return {name: float(mask.float().mean()) for name, mask in masks.items()}


def density_per_layer(
    masks_or_wrappers: Mapping[str, Masks | PruningWrapper] | Masks | PruningWrapper,
    ax: Axes | None = None,
    *,
    log: bool = False,
) -> tuple[Figure, Axes]:
    """Draw the fraction of weights kept in each layer, one bar a layer and network.

    Args:
        masks_or_wrappers: a wrapper or its masks, or several by name.
        ax: where to draw; a new figure by default.
        log: logarithmic densities, to compare layers that are nearly empty.

    Raises:
        ImportError: without matplotlib.
        TypeError: for something else.
        ValueError: if there is no mask to draw.
    """
    named = _by_name(masks_or_wrappers)
    layers = list(dict.fromkeys(layer for values in named.values() for layer in values))
    if not layers:
        raise ValueError("Expected at least one mask to draw but got none")
    fig, ax = axes(ax, width=min(20.0, max(6.4, 2.0 + 0.35 * len(layers) * len(named) ** 0.5)))
    width = 0.8 / len(named)
    for i, (name, values) in enumerate(named.items()):
        places = [j + (i - (len(named) - 1) / 2) * width for j in range(len(layers))]
        heights = [values.get(layer, 0.0) for layer in layers]
        bars = ax.bar(places, heights, width, color=COLORS[i % len(COLORS)], label=name)
        if len(layers) * len(named) <= 16:
            ax.bar_label(bars, fmt=_percent, fontsize="x-small", padding=2)
    name_ticks(ax, layers)
    ax.set_xlim(-0.6, len(layers) - 0.4)
    ax.set_xlabel("layer")
    ax.set_ylabel("density (fraction of weights kept)")
    if log:
        positive = [d for values in named.values() for d in values.values() if d > 0]
        ax.set_yscale("log")
        ax.set_ylim(0.5 * min(positive, default=0.1), 2.0)
    else:
        ax.set_ylim(0.0, 1.08)
    grid(ax, "y")
    if len(named) > 1:
        legend_above(fig, ax)
    return fig, ax


def _percent(density: float) -> str:
    """Return a density in percent with two digits."""
    return f"{100 * density:.2g} %" if density < 0.995 else "100 %"


def _by_name(given: Any) -> dict[str, dict[str, float]]:  # noqa: ANN401
    """Return densities by name and layer, whichever of its forms the argument has."""
    if isinstance(given, PruningWrapper):
        return {"": _densities(given)}
    found = named("masks_or_wrappers", given)
    if all(isinstance(mask, Tensor) for mask in found.values()):
        return {"": _densities(found)}
    return {name: _densities(masks) for name, masks in found.items()}


def criticality_histogram(
    wrapper_or_scores: PruningWrapper | Mapping[str, Tensor],
    example_input: Any = None,  # noqa: ANN401
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw how the criticality of channels is distributed in each neuron layer.

    One histogram a layer, all with the same bins and each scaled to its own highest bar; a line
    marks the median.

    Args:
        wrapper_or_scores: a wrapper, or one score a channel by layer name, ``[C]`` each.
        example_input: what to measure ``criticality_max`` on, in eval mode; without it a wrapper
            gives what its neurons have recorded since the last mask update.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there are no scores to draw, or some are NaN or infinite.
    """
    found = channel_values(wrapper_or_scores, example_input, "criticality_max", "wrapper_or_scores")
    values = {name: numbers.tolist() for name, numbers in found.items()}
    if not values:
        raise ValueError(
            "Expected criticality to draw but no neuron layer has recorded any: pass example_input"
        )
    fig, ax = axes(ax, height=max(3.0, 1.2 + 0.45 * len(values)))
    _draw_rows(ax, values)
    ax.set_xlabel("criticality of a channel (surrogate derivative, 1 / potential)")
    ax.set_ylabel("neuron layer (number of channels)")
    grid(ax, "x")
    return fig, ax


def _draw_rows(ax: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """Draw one histogram above the other, the first on top."""
    import numpy as np

    low, high = min(map(min, values.values())), max(map(max, values.values()))
    bins = int(min(40, max(10, 2 * max(map(len, values.values())) ** 0.5)))
    edges = np.linspace(low, high if high > low else low + 1e-3, bins + 1)
    for row, numbers in enumerate(values.values()):
        counts, _ = np.histogram(numbers, edges)
        heights = 0.85 * counts / counts.max() - row
        ax.stairs(heights, edges, baseline=-row, fill=True, color=COLORS[0], alpha=0.7)
        middle = float(np.median(numbers))
        ax.plot([middle, middle], [-row, 0.85 - row], color="black", linewidth=1)
    names = [f"{name} ({len(numbers)})" for name, numbers in values.items()]
    ax.set_yticks([-row for row in range(len(names))], names)
    ax.set_ylim(0.85 - len(names), 1.0)
