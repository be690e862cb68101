"""Plots of `sj_prune.analysis`: clusters of features, importance, channels' values, noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sj_prune._checks import check_choice
from sj_prune.analysis.clusters import Clusters
from sj_prune.analysis.robustness import KINDS, Robustness
from sj_prune.analysis.shapley import Shapley
from sj_prune.analysis.transition import Transition
from sj_prune.plots.axes import COLORS, MARKERS, axes, grid, legend_above, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def intra_cluster_variance(
    clusters: Clusters | Mapping[str, Clusters], ax: Axes | None = None, *, test: bool = False
) -> tuple[Figure, Axes]:
    """Draw the variance of the features within each class, one marker a network; lines are means.

    Args:
        clusters: what `sj_prune.analysis.clusters` returns, or several by name.
        ax: where to draw; a new figure by default.
        test: of the test data.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there is nothing to draw.
    """
    name, data = ("test_variance", "test") if test else ("variance", "training")
    return _by_class(clusters, name, f"intra-cluster variance, {data} data", ax)


def class_similarity(
    clusters: Clusters | Mapping[str, Clusters], ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw the cosine between each class's mean features of train and test; lines are means.

    Args:
        clusters: what `sj_prune.analysis.clusters` returns, or several by name.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        ValueError: if no test data were given.
    """
    return _by_class(clusters, "similarity", "cosine of mean features, train and test", ax)


def _by_class(
    clusters: Clusters | Mapping[str, Clusters], attribute: str, label: str, ax: Axes | None
) -> tuple[Figure, Axes]:
    named = {"": clusters} if isinstance(clusters, Clusters) else clusters
    means = {name: found.mean(attribute) for name, found in named.items()}
    if all(mean is None for mean in means.values()):
        raise ValueError(
            f"Expected clusters with a {attribute} to draw but got none: give "
            "sj_prune.analysis.clusters training and test data"
        )
    fig, ax = axes(ax)
    labels = sorted({row.label for found in named.values() for row in found.rows})
    places = {label: i for i, label in enumerate(labels)}
    for i, (name, found) in enumerate(named.items()):
        points = {places[r.label]: getattr(r, attribute) for r in found.rows}
        points = {x: y for x, y in points.items() if y is not None}
        shift = 0.16 * (i - (len(named) - 1) / 2)
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        x = [place + shift for place in points]
        ax.scatter(x, list(points.values()), s=34, color=color, marker=marker, label=name)
        if (mean := means[name]) is not None:
            ax.axhline(mean, color=color, linewidth=1, linestyle="--", alpha=0.8)
    ax.set_xticks(range(len(labels)), [str(label) for label in labels])
    ax.set_xlabel("class")
    ax.set_ylabel(label)
    grid(ax)
    if len(named) > 1:
        legend_above(fig, ax)
    return fig, ax


def importance_transition(transition: Transition, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw over epochs how important the units are that only one of two masks keeps.

    Args:
        transition: what `sj_prune.analysis.transition` returns.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        ValueError: if both masks keep the same, or there are no epochs.
    """
    if not transition.rows or not any(transition.units):
        raise ValueError("Expected epochs, and masks that differ, but there is nothing to draw")
    fig, ax = axes(ax)
    for i, (name, kind) in enumerate(zip(transition.labels(), ("first", "second"), strict=True)):
        points = [(row.epoch, getattr(row, kind)) for row in transition.rows]
        if transition.units[i]:
            x, y = zip(*points, strict=True)
            ax.plot(x, y, marker=MARKERS[i], markersize=5, color=COLORS[i], label=name)
    ax.axhline(1.0, color="gray", linestyle=":", label="an average unit")
    whole_numbers(ax, "epoch")
    ax.set_ylabel("importance over the module's mean")
    grid(ax)
    legend_above(fig, ax)
    return fig, ax


def shapley_values(shapley: Shapley, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw the Shapley value of every channel against its score; whiskers are standard errors.

    Channels that are silent in the network anyway are left out.

    Args:
        shapley: what `sj_prune.analysis.shapley` returns.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
    """
    fig, ax = axes(ax)
    for i, (group, values) in enumerate(shapley.values.items()):
        found, alive = shapley.correlation(group), shapley.alive[group]
        rank = "" if found is None else f", rank correlation {found:.2f}"
        ax.errorbar(
            shapley.scores[group][alive].tolist(),
            values[alive].tolist(),
            yerr=shapley.errors[group][alive].tolist(),
            linestyle="none",
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            color=COLORS[i % len(COLORS)],
            elinewidth=0.8,
            label=f"{group} ({int(alive.sum())}{rank})",
        )
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.set_xlabel(f"score of a channel by {shapley.method}")
    ax.set_ylabel("Shapley value of a channel")
    grid(ax)
    legend_above(fig, ax)
    return fig, ax


def accuracy_under_noise(
    robustness: Robustness | Mapping[str, Robustness],
    kind: str,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw the accuracy over the level of noise; whiskers reach from the least to the greatest.

    Networks are moved sideways by a hair, or their whiskers would hide each other.

    Args:
        robustness: what `sj_prune.analysis.robustness` returns, or several by name.
        kind: "inputs" or "parameters": what the noise is on.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        ValueError: for another kind, and if there is nothing to draw.
    """
    check_choice("kind", kind, KINDS)
    named = {"": robustness} if isinstance(robustness, Robustness) else robustness
    curves = {n: [row for row in r.rows if row.kind == kind] for n, r in named.items()}
    if not all(curves.values()) or not curves:
        raise ValueError(f"Expected levels of noise on {kind} to draw but got none")
    fig, ax = axes(ax)
    hair = 0.012 * max(row.level for rows in curves.values() for row in rows)
    for i, (name, rows) in enumerate(curves.items()):
        shift = hair * (i - (len(curves) - 1) / 2)
        ends = [
            [row.mean - min(row.values) for row in rows],
            [max(row.values) - row.mean for row in rows],
        ]
        ax.errorbar(
            [row.level + shift for row in rows],
            [row.mean for row in rows],
            yerr=ends,
            color=COLORS[i % len(COLORS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            capsize=3,
            label=name,
        )
    ax.set_xlabel(
        "noise on inputs (over their standard deviation)"
        if kind == "inputs"
        else "noise on weights (over their root mean square in a layer)"
    )
    ax.set_ylabel("accuracy (fraction)")
    ax.set_ylim(bottom=0.0)
    grid(ax)
    if len(curves) > 1:
        ax.legend()
    return fig, ax
