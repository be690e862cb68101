"""Plots of whole runs: sparsity over training, accuracy over cost and over sparsity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sj_prune.plots.axes import COLORS, MARKERS, axes, grid, whole_numbers
from sj_prune.plots.given import Histories, histories_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def sparsity_over_steps(
    histories: Histories,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw the sparsity that each mask update reached; dashed where another one was asked for.

    Args:
        histories: a wrapper or its `history`, or several by name.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        TypeError: for something else.
        ValueError: for a history without updates.
    """
    named = histories_of(histories)
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
    whole_numbers(ax, "optimizer step")
    ax.set_ylabel("sparsity (fraction of weights pruned)")
    ax.set_ylim(0.0, 1.02)
    grid(ax)
    if len(ax.get_lines()) > 1:
        ax.legend(loc="lower right")
    return fig, ax


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
        ValueError: for a setting without points, or a cost that is not positive.
    """
    curves = _over_settings(results)
    fig, ax = axes(ax)
    from matplotlib.ticker import LogLocator, NullLocator

    for i, (name, settings) in enumerate(curves.items()):
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
    highest = max(a for each in curves.values() for seeds in each.values() for _, a in seeds)
    ax.set_ylabel("accuracy (%)" if highest > 1.0 else "accuracy (fraction)")
    grid(ax)
    ax.legend(loc="lower right")
    return fig, ax


def _over_settings(
    results: Mapping[str, Mapping[str, Iterable[tuple[float, float]]]],
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return method -> setting -> points, each of which may come from a generator."""
    found = {
        name: {label: list(seeds) for label, seeds in settings.items()}
        for name, settings in results.items()
    }
    for name, settings in found.items():
        for label, seeds in settings.items() or {"": []}.items():
            if not seeds or not all(cost > 0 for cost, _ in seeds):
                raise ValueError(
                    "Expected points (cost, accuracy) with costs above 0 but those of "
                    f"{name!r}, setting {label!r}, are {seeds}: leave out what was not measured"
                )
    if not found:
        raise ValueError("Expected points with costs above 0 of at least one method but got none")
    return found


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
