"""Plots of whole runs: sparsity and regrowth over training, accuracy over sparsity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, TypeAlias

from sj_prune.plots.axes import COLORS, MARKERS, axes, grid, legend_above
from sj_prune.run.history import UpdateRecord, survival

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: those of several runs by name, or that of one
Histories: TypeAlias = Mapping[str, Sequence[UpdateRecord]] | Sequence[UpdateRecord]


def _named(histories: Histories) -> Mapping[str, Sequence[UpdateRecord]]:
    return histories if isinstance(histories, Mapping) else {"": histories}


def sparsity_over_steps(
    histories: Histories,
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
    named = _named(histories)
    empty = [name or "the history" for name, records in named.items() if not records]
    if empty or not named:
        raise ValueError(f"Expected at least one mask update in {', '.join(empty) or 'histories'}")
    fig, ax = axes(ax)
    for i, (name, records) in enumerate(named.items()):
        color = COLORS[i % len(COLORS)]
        steps = [record.step for record in records]
        reached = [record.sparsity for record in records]
        # Masks stay as they are until the next update.
        ax.step(
            steps,
            reached,
            where="post",
            color=color,
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            label=name,
        )
        asked = [record.target for record in records]
        if any(abs(a - r) > 0.005 for a, r in zip(asked, reached, strict=True)):
            label = f"{name}, asked for" if name else "asked for"
            ax.step(steps, asked, where="post", linestyle="--", color=color, label=label)
    _step_axis(ax)
    ax.set_ylabel("sparsity (fraction of weights pruned)")
    ax.set_ylim(0.0, 1.02)
    grid(ax)
    if len(ax.get_lines()) > 1:
        ax.legend(loc="lower right")
    return fig, ax


def regrowth_survival(
    histories: Histories,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw at each mask update which fraction of what the one before regrew survives its prune.

    Args:
        histories: `PruningWrapper.history`, or several by name.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        ValueError: for a history in which no prune follows a regrowth.
    """
    named = _named(histories)
    curves = {name: _survival(name, records) for name, records in named.items()}
    if not curves:
        raise ValueError("Expected at least one history but got none")
    fig, ax = axes(ax)
    looks = zip(cycle(MARKERS), cycle(COLORS), curves.items(), strict=False)
    for marker, color, (name, curve) in looks:
        steps, rates = list(curve), list(curve.values())
        ax.plot(steps, rates, color=color, marker=marker, markersize=4, label=name)
    _step_axis(ax)
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


def regrowth_per_layer(
    history: Sequence[UpdateRecord], ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw how many units each mask update regrew, stacked by layer from the first to the last.

    Args:
        history: `PruningWrapper.history`.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        ValueError: for a history without regrowth.
    """
    growing = [record for record in history if any(record.grown.values())]
    if not growing:
        raise ValueError("Expected a history in which something is regrown but nothing is")
    fig, ax = axes(ax)
    from matplotlib import colormaps

    steps = [record.step for record in growing]
    width = 0.8 * min((b - a for a, b in pairwise(steps) if b > a), default=1)
    names = [name for name in growing[0].grown if any(r.grown.get(name) for r in growing)]
    below = [0] * len(growing)
    for i, name in enumerate(names):
        heights = [record.grown.get(name, 0) for record in growing]
        color = colormaps["viridis"](i / max(1, len(names) - 1))
        ax.bar(steps, heights, width, bottom=below, color=color, label=name)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    _step_axis(ax)
    ax.set_ylabel("units regrown at this update")
    grid(ax, "y")
    legend_above(fig, ax)
    return fig, ax


def _step_axis(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    ax.set_xlabel("optimizer step")


def accuracy_over_cost(
    results: Mapping[str, Mapping[str, Iterable[tuple[float, float]]]],
    cost: str,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw accuracy over what it costs, one line a method: SynOps, energy or time, log scale.

    Several seeds of one setting become their mean, with whiskers from the least to the greatest in
    both directions.

    Args:
        results: method -> setting (its label beside the point; "" writes none) -> points (cost,
            accuracy), one a seed.
        cost: name and unit of the cost, for its axis.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        ValueError: without points, or for a cost that is not positive.
    """
    points = [p for settings in results.values() for seeds in settings.values() for p in seeds]
    if not points or min(cost for cost, _ in points) <= 0:
        raise ValueError(f"Expected points with costs above 0 but got {points}")
    fig, ax = axes(ax)
    from matplotlib.ticker import LogLocator, NullLocator

    for i, (name, settings) in enumerate(results.items()):
        columns = [list(zip(*seeds, strict=True)) for seeds in settings.values()]
        x, y = ([sum(c[k]) / len(c[k]) for c in columns] for k in (0, 1))
        ends = [
            [[m - min(c[k]) for m, c in zip(means, columns, strict=True)]]
            + [[max(c[k]) - m for m, c in zip(means, columns, strict=True)]]
            for k, means in enumerate((x, y))
        ]
        marker, color = MARKERS[i % len(MARKERS)], COLORS[i % len(COLORS)]
        ax.errorbar(
            x,
            y,
            xerr=ends[0],
            yerr=ends[1],
            marker=marker,
            color=color,
            capsize=3,
            label=name,
        )
        right = bool(i % 2)
        for label, *place in zip(settings, x, y, strict=True):
            ax.annotate(
                label,
                (place[0], place[1]),
                xytext=(6, -14) if right else (-6, 6),
                textcoords="offset points",
                ha="left" if right else "right",
                color=color,
            )
    ax.set(xscale="log", xlabel=cost)
    ax.margins(x=0.12)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylabel("accuracy (%)" if max(a for _, a in points) > 1.0 else "accuracy (fraction)")
    grid(ax)
    ax.legend(loc="lower right")
    return fig, ax


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
    fig, ax = axes(ax)
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
            marker=MARKERS[i % len(MARKERS)],
            color=COLORS[i % len(COLORS)],
            markersize=5,
            capsize=3,
            label=name,
        )
    if dense is not None:
        ax.axhline(dense, color="gray", linestyle="--", label="dense")
    highest = max(max(seeds) for curve in curves.values() for seeds in curve.values())
    ax.set_ylabel("accuracy (%)" if max(highest, dense or 0.0) > 1.0 else "accuracy (fraction)")
    _sparsity_axis(ax, sorted({sparsity for curve in curves.values() for sparsity in curve}))
    grid(ax)
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
