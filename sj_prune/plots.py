"""Plots of a pruning run. Each returns ``(fig, ax)`` and draws on `ax`, if one is given.

Needs matplotlib: ``pip install sj_prune[plots]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor

from sj_prune.history import UpdateRecord
from sj_prune.report import channel_criticality
from sj_prune.wrapper import PruningWrapper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "accuracy_over_sparsity",
    "criticality_histogram",
    "density_per_layer",
    "sparsity_over_steps",
]

#: masks by layer name, True = kept; a `MaskManager` is one
Masks: TypeAlias = Mapping[str, Tensor]

_MARKERS = "osD^vPX*"


def _axes(ax: Axes | None, width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """Return the figure and axes to draw on, new ones of this size in inches without `ax`."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "Expected matplotlib for sj_prune.plots but it is not installed: "
            "pip install sj_prune[plots]"
        ) from error
    if ax is not None:
        figure: Any = ax.figure  # or the subfigure that holds it
        return figure, ax
    return pyplot.subplots(figsize=(width, height), layout="constrained")


def _grid(ax: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    ax.set_axisbelow(True)
    ax.grid(visible=True, axis=axis, alpha=0.3)


def sparsity_over_steps(
    histories: Mapping[str, Sequence[UpdateRecord]] | Sequence[UpdateRecord],
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw the sparsity that each mask update reached; dashed where another one was asked for.

    Args:
        histories: `PruningWrapper.history`, or several by name.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        ValueError: for a history without updates.
    """
    named = histories if isinstance(histories, Mapping) else {"": histories}
    empty = [name or "the history" for name, records in named.items() if not records]
    if empty or not named:
        raise ValueError(f"Expected at least one mask update in {', '.join(empty) or 'histories'}")
    fig, ax = _axes(ax)
    from matplotlib.ticker import MaxNLocator

    for i, (name, records) in enumerate(named.items()):
        steps = [record.step for record in records]
        reached = [record.sparsity for record in records]
        # Masks stay as they are until the next update.
        (line,) = ax.step(
            steps,
            reached,
            where="post",
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=4,
            label=name,
        )
        asked = [record.target for record in records]
        if any(abs(a - r) > 0.005 for a, r in zip(asked, reached, strict=True)):
            label = f"{name}, asked for" if name else "asked for"
            color = line.get_color()
            ax.step(steps, asked, where="post", linestyle="--", color=color, label=label)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("sparsity (fraction of weights pruned)")
    ax.set_ylim(0.0, 1.02)
    _grid(ax)
    if len(ax.get_lines()) > 1:
        ax.legend(loc="lower right")
    return fig, ax


def _densities(masks: Masks | PruningWrapper) -> dict[str, float]:
    """Return the density of each layer."""
    masks = masks.masks if isinstance(masks, PruningWrapper) else masks
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
        ValueError: if there is no mask to draw.
    """
    named = _by_name(masks_or_wrappers)
    layers = list(dict.fromkeys(layer for values in named.values() for layer in values))
    if not layers:
        raise ValueError("Expected at least one mask to draw but got none")
    fig, ax = _axes(ax, width=min(20.0, max(6.4, 2.0 + 0.35 * len(layers) * len(named) ** 0.5)))
    width = 0.8 / len(named)
    for i, (name, values) in enumerate(named.items()):
        places = [j + (i - (len(named) - 1) / 2) * width for j in range(len(layers))]
        bars = ax.bar(places, [values.get(layer, 0.0) for layer in layers], width, label=name)
        if len(layers) * len(named) <= 16:
            ax.bar_label(bars, fmt=_percent, fontsize="x-small", padding=2)
    _name_ticks(ax, layers)
    ax.set_xlim(-0.6, len(layers) - 0.4)
    ax.set_xlabel("layer")
    ax.set_ylabel("density (fraction of weights kept)")
    if log:
        positive = [d for values in named.values() for d in values.values() if d > 0]
        ax.set_yscale("log")
        ax.set_ylim(0.5 * min(positive, default=0.1), 2.0)
    else:
        ax.set_ylim(0.0, 1.08)
    _grid(ax, "y")
    if len(named) > 1:  # above the bars, which leave no corner free
        columns = _legend_columns(named, ax.bbox.width / fig.dpi)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns)
    return fig, ax


def _legend_columns(names: Iterable[str], width: float) -> int:
    """Return into how many columns names fit, in rows of equal length, `width` in inches."""
    lengths = [len(name) for name in names]
    # 12 letters an inch; a key takes the place of 7.
    most = max(1, min(4, int(12 * width) // (max(lengths) + 7)))
    rows = math.ceil(len(lengths) / most)
    return math.ceil(len(lengths) / rows)


def _name_ticks(ax: Axes, names: Sequence[str]) -> None:
    """Write names under the x axis, slanted where they would run into each other."""
    places = range(len(names))
    if sum(len(name) + 3 for name in names) > 60:
        ax.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    else:
        ax.set_xticks(places, names)


def _percent(density: float) -> str:
    """Return a density in percent with two digits."""
    return f"{100 * density:.2g} %" if density < 0.995 else "100 %"


def _by_name(given: Any) -> dict[str, dict[str, float]]:  # noqa: ANN401
    """Return densities by name and layer, whichever of its forms the argument has."""
    if isinstance(given, PruningWrapper) or all(isinstance(v, Tensor) for v in given.values()):
        return {"": _densities(given)}
    return {name: _densities(masks) for name, masks in given.items()}


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
        ValueError: if there are no scores to draw.
    """
    if isinstance(wrapper_or_scores, PruningWrapper):
        scores: Mapping[str, Tensor] = channel_criticality(wrapper_or_scores, example_input)
    else:
        scores = wrapper_or_scores
    values = {name: score.detach().flatten().tolist() for name, score in scores.items()}
    values = {name: numbers for name, numbers in values.items() if numbers}
    if not values:
        raise ValueError(
            "Expected criticality to draw but no neuron layer has recorded any: pass example_input"
        )
    fig, ax = _axes(ax, height=max(3.0, 1.2 + 0.45 * len(values)))
    _draw_rows(ax, values)
    ax.set_xlabel("criticality of a channel (surrogate derivative, 1 / potential)")
    ax.set_ylabel("neuron layer (number of channels)")
    _grid(ax, "x")
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
        ax.stairs(heights, edges, baseline=-row, fill=True, color="C0", alpha=0.7)
        middle = float(np.median(numbers))
        ax.plot([middle, middle], [-row, 0.85 - row], color="black", linewidth=1)
    names = [f"{name} ({len(numbers)})" for name, numbers in values.items()]
    ax.set_yticks([-row for row in range(len(names))], names)
    ax.set_ylim(0.85 - len(names), 1.0)


def accuracy_over_sparsity(
    results: Mapping[str, Iterable[tuple[float, float]]],
    dense: float | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw accuracy over sparsity, one line a method.

    Several seeds at one sparsity become their mean, with whiskers from the least to the greatest.
    The axis is linear in the logarithm of the density, so that 95 and 99 % lie apart; methods are
    moved sideways by a hair, or their whiskers would hide each other.

    Args:
        results: method -> points (sparsity in [0, 1), accuracy as a fraction or in percent).
        dense: accuracy without pruning, in the same unit.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        ValueError: without points, or for a sparsity outside [0, 1).
    """
    curves = {name: _over_seeds(name, points) for name, points in results.items()}
    if not curves:
        raise ValueError("Expected the results of at least one method but got none")
    fig, ax = _axes(ax)
    for i, (name, curve) in enumerate(curves.items()):
        shift = 1.0 + 0.02 * (i - (len(curves) - 1) / 2)
        means = [sum(seeds) / len(seeds) for seeds in curve.values()]
        ax.errorbar(
            [(1.0 - sparsity) * shift for sparsity in curve],
            means,
            yerr=[
                [mean - min(seeds) for mean, seeds in zip(means, curve.values(), strict=True)],
                [max(seeds) - mean for mean, seeds in zip(means, curve.values(), strict=True)],
            ],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=5,
            capsize=3,
            label=name,
        )
    if dense is not None:
        ax.axhline(dense, color="gray", linestyle="--", label="dense")
    highest = max(max(seeds) for curve in curves.values() for seeds in curve.values())
    ax.set_ylabel("accuracy (%)" if max(highest, dense or 0.0) > 1.0 else "accuracy (fraction)")
    _sparsity_axis(ax, sorted({sparsity for curve in curves.values() for sparsity in curve}))
    _grid(ax)
    ax.legend()
    return fig, ax


def _over_seeds(name: str, points: Iterable[tuple[float, float]]) -> dict[float, list[float]]:
    """Return sparsity -> accuracies, in the order of sparsity."""
    curve: dict[float, list[float]] = {}
    for sparsity, accuracy in points:
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"Expected sparsities in [0, 1) but {name!r} has {sparsity}")
        curve.setdefault(float(sparsity), []).append(float(accuracy))
    if not curve:
        raise ValueError(f"Expected at least one point (sparsity, accuracy) of {name!r}")
    return dict(sorted(curve.items()))


def _sparsity_axis(ax: Axes, sparsities: Sequence[float]) -> None:
    """Turn an axis of densities into a logarithmic one that reads as sparsity."""
    from matplotlib.ticker import NullLocator

    # From the densest to the sparsest; the limits come first, for a single point has no extent.
    ax.set_xlim(1.15 * (1.0 - sparsities[0]), (1.0 - sparsities[-1]) / 1.15)
    ax.set_xscale("log")
    # A number that would be written over the one before goes without a tick.
    apart = 0.08 * math.log((1.0 - sparsities[0]) / (1.0 - sparsities[-1]))
    ticks = [sparsities[0]]
    for sparsity in sparsities[1:]:
        if math.log((1.0 - ticks[-1]) / (1.0 - sparsity)) > apart:
            ticks.append(sparsity)
    ax.set_xticks([1.0 - s for s in ticks], [f"{100 * s:.4g}" for s in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("sparsity (% of weights pruned; log scale of the density)")
