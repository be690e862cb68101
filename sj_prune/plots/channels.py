"""Plots of channels: what each is worth, and how many of every layer survive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from sj_prune.plots.axes import COLORS, axes, grid, legend_above, name_ticks
from sj_prune.plots.given import finite_values, named
from sj_prune.reports.compare import Comparison
from sj_prune.reports.report import Report
from sj_prune.run.scores import last_scores
from sj_prune.wrapper import PruningWrapper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: layer -> its width in the dense network, and how many channels of it are kept
Widths: TypeAlias = Mapping[str, tuple[int, int]]


def channel_importance(
    wrapper_or_scores: PruningWrapper | Mapping[str, Tensor],
    kept: Mapping[str, Tensor] | None = None,
    ax: Axes | None = None,
    *,
    log: bool = False,
) -> tuple[Figure, Axes]:
    """Draw the score of every channel, sorted within its layer; kept and pruned ones apart.

    One row a layer, or a group of coupled layers that is ranked as one. A kept channel among low
    scores has been regrown.

    Args:
        wrapper_or_scores: a wrapper with a channel method, for the method's own scores at the last
            mask update (of a channel that slept then, when it was last awake); or any scores by
            layer name, ``[C]`` each.
        kept: with scores, which channels are kept, ``[C]`` each; without it all count as kept.
        ax: where to draw; a new figure by default.
        log: logarithmic scores, for methods whose scores differ by orders of magnitude.

    Raises:
        ImportError: without matplotlib.
        ValueError: if nothing has been scored yet, scores are NaN or infinite, or scores and masks
            do not fit.
    """
    scores: Mapping[str, Tensor]
    if isinstance(wrapper_or_scores, PruningWrapper):
        run = wrapper_or_scores.session.run
        scores = last_scores(run)
        kept = {scope: wrapper_or_scores.masks.alive(scope) for scope in scores}
        label = f"score of a channel by {run.plan.name}"
    else:
        scores, label = named("wrapper_or_scores", wrapper_or_scores), "score of a channel"
    found = finite_values(scores, "wrapper_or_scores")
    values = {name: numbers.tolist() for name, numbers in found.items()}
    if not values:
        raise ValueError(
            "Expected scores to draw but there are none: a wrapper has them after the first mask "
            "update of a channel method"
        )
    alive = {name: _mask(name, len(v), kept) for name, v in values.items()}
    fig, ax = axes(ax, height=max(3.0, 1.4 + 0.42 * len(values)))
    _draw_scores(ax, values, alive)
    if log:
        ax.set_xscale("log")
    ax.set_xlabel(label)
    ax.set_ylabel("layer or group (channels)")
    grid(ax, "x")
    legend_above(fig, ax)
    return fig, ax


def _mask(name: str, channels: int, kept: Mapping[str, Tensor] | None) -> list[bool]:
    """Return which channels of a layer are kept."""
    if kept is None:
        return [True] * channels
    mask = kept[name].flatten().tolist() if name in kept else None
    if mask is None or len(mask) != channels:
        got = "none" if mask is None else len(mask)
        raise ValueError(f"Expected {channels} entries in the mask of {name!r} but got {got}")
    return [bool(value) for value in mask]


def _draw_scores(
    ax: Axes, values: Mapping[str, Sequence[float]], alive: Mapping[str, Sequence[bool]]
) -> None:
    """Draw one row a layer, the first on top; in it the lowest score lies lowest."""
    points: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for row, (name, numbers) in enumerate(values.items()):
        order = sorted(range(len(numbers)), key=lambda i, numbers=numbers: numbers[i])  # type: ignore[misc]
        for rank, i in enumerate(order):
            height = 0.8 * (rank + 0.5) / len(order) - 0.4
            points[alive[name][i]].append((numbers[i], height - row))
    styles: dict[bool, dict[str, Any]] = {
        True: {"marker": "o", "color": COLORS[0], "s": 14, "linewidths": 0, "alpha": 0.8},
        False: {"marker": "x", "color": COLORS[1], "s": 16, "linewidths": 1.1},
    }
    for state, name in ((False, "pruned"), (True, "kept")):
        if points[state]:
            x, y = zip(*points[state], strict=True)
            ax.scatter(x, y, label=f"{name} ({len(x)})", **styles[state])
    for row in range(1, len(values)):
        ax.axhline(0.5 - row, color="black", alpha=0.15, linewidth=0.8)
    names = [f"{name} ({len(numbers)})" for name, numbers in values.items()]
    ax.set_yticks([-row for row in range(len(names))], names)
    ax.set_ylim(0.5 - len(names), 0.5)


Source: TypeAlias = PruningWrapper | Report | Comparison


def survivors_per_layer(
    networks: Source | Mapping[str, Source], ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw how many channels of each layer are kept, before the width that it has when dense.

    Args:
        networks: a wrapper with a channel method, its `report`, or what `sj_prune.compare` returns;
            or several by name.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        TypeError: for something else.
        ValueError: if no channels are masked: before the first forward, or by a method that prunes
            single weights.
    """
    named: Mapping[str, Source] = networks if isinstance(networks, Mapping) else {"kept": networks}
    widths = {name: _widths(source) for name, source in named.items()}
    layers = list(dict.fromkeys(layer for found in widths.values() for layer in found))
    if not layers:
        raise ValueError(
            "Expected layers with masked channels but got none: channels are known after the first "
            "forward, and single weights have no channels; see density_per_layer"
        )
    fig, ax = axes(ax, width=min(20.0, max(6.4, 2.0 + 0.35 * len(layers) * len(widths) ** 0.5)))
    width = 0.8 / len(widths)
    for i, (name, found) in enumerate(widths.items()):
        places = [j + (i - (len(widths) - 1) / 2) * width for j in range(len(layers))]
        dense, kept = zip(*(found.get(layer, (0, 0)) for layer in layers), strict=True)
        label = "dense" if i == 0 else None
        ax.bar(places, dense, width, color="#dddddd", edgecolor="#999999", label=label)
        bars = ax.bar(places, kept, width, color=COLORS[i % len(COLORS)], label=name)
        if len(layers) * len(widths) <= 24:
            ax.bar_label(bars, fmt="%d", fontsize="x-small", padding=1)
    name_ticks(ax, layers)
    ax.set_xlim(-0.6, len(layers) - 0.4)
    ax.set_xlabel("layer")
    ax.set_ylabel("output channels")
    grid(ax, "y")
    legend_above(fig, ax)
    return fig, ax


def _widths(source: Any) -> Widths:  # noqa: ANN401
    """Return dense and kept width of each layer, from any of the forms."""
    if isinstance(source, PruningWrapper):
        found = source.masks.widths()
        return {name: found[name] for name in source.layers if name in found}
    if isinstance(source, Report):
        return {
            row.name: (row.channels, row.channels_kept)
            for row in source.rows
            if row.channels is not None and row.channels_kept is not None
        }
    if isinstance(source, Comparison):
        return {row.name: row.channels for row in source.rows}
    raise TypeError(
        "Expected a PruningWrapper, its report or a comparison of two networks but got "
        f"{type(source).__name__}"
    )
