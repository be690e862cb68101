"""Plots of the exchange of channels: which were pruned at a mask update, and which came back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sj_prune.plots.axes import COLORS, axes, grid, legend_above, whole_numbers
from sj_prune.plots.given import History, history_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: what a channel is after an update, and the color that says so
_KEPT, _PRUNED, _GONE, _BACK = range(4)
_STATES = ("kept", "pruned", "newly pruned", "came back")
_COLORS = ("#eeeeee", "#777777", COLORS[1], COLORS[0])


def _states(given: History) -> dict[str, np.ndarray[Any, Any]]:
    """Return what every channel is after each update, ``[units, updates]`` by group."""
    import numpy as np

    records = history_of(given)
    if not records:
        raise ValueError("Expected at least one mask update in the history but got none")
    if not all(record.pruned for record in records):
        raise ValueError(
            "Expected the history of a channel method but got updates of single weights: see "
            "sparsity_over_steps"
        )
    result = {}
    # A group of layers that begin to run later is whole until then.
    for group in dict.fromkeys(name for record in records for name in record.pruned):
        first = next(record for record in records if group in record.pruned)
        units = first.kept[group] + len(first.pruned[group])
        dead = np.zeros((units, len(records) + 1), dtype=bool)  # before the first: all alive
        for i, record in enumerate(records, start=1):
            dead[record.pruned.get(group, []), i] = True
        before, after = dead[:, :-1], dead[:, 1:]
        states = np.where(after, _PRUNED, _KEPT)
        states[after & ~before] = _GONE
        states[before & ~after] = _BACK
        result[group] = states
    return result


def channel_exchange(history: History, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw how many channels each mask update pruned and how many it brought back.

    Coupled channels count once; one that is dropped and regrown in the same update is not
    exchanged. The first update prunes the dense network: where its bar would dwarf the others, it
    is cut off and labeled with its length.

    Args:
        history: a wrapper with a channel method, or its `history`.
        ax: where to draw; a new figure by default.

    Raises:
        ImportError: without matplotlib.
        TypeError: for something else, such as several histories by name.
        ValueError: for a history without updates, or of single weights.
    """
    states = _states(history)
    fig, ax = axes(ax)
    from matplotlib.ticker import MaxNLocator

    updates = range(1, next(iter(states.values())).shape[1] + 1)
    back, gone = (
        [int(sum((s[:, i - 1] == kind).sum() for s in states.values())) for i in updates]
        for kind in (_BACK, _GONE)
    )
    ax.bar(updates, back, 0.8, color=COLORS[0], label=_STATES[_BACK])
    ax.bar(updates, [-n for n in gone], 0.8, color=COLORS[1], hatch="//", label=_STATES[_GONE])
    ax.axhline(0.0, color="black", linewidth=0.8)
    _cut_first(ax, back, gone)
    _update_axis(ax, len(updates))
    ax.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    ax.set_ylabel("channels at this update")
    grid(ax, "y")
    legend_above(fig, ax)
    return fig, ax


def _cut_first(ax: Axes, back: Sequence[int], gone: Sequence[int]) -> None:
    """Choose the limits by what comes after the first update, if that was much larger."""
    top = max(1.0, 1.15 * max(back))
    later = 1.15 * max(gone[1:], default=0)
    if not 0 < 3 * later < gone[0]:
        ax.set_ylim(-1.15 * max(1, *gone), top)
        return
    ax.set_ylim(-1.3 * max(later, 0.3 * top), top)
    ax.annotate(
        str(gone[0]),
        xy=(0.6, ax.get_ylim()[0]),
        xytext=(0, 2),
        textcoords="offset points",
        ha="left",
        va="bottom",
        fontsize="small",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
    )


def channel_raster(
    history: History, ax: Axes | None = None, *, sort: bool = True
) -> tuple[Figure, Axes]:
    """Draw what became of every channel at every mask update, one row a channel.

    Args:
        history: a wrapper with a channel method, or its `history`.
        ax: where to draw; a new figure by default.
        sort: order the channels of a layer by how many updates they outlived; else by index.

    Raises:
        ImportError: without matplotlib.
        TypeError: for something else, such as several histories by name.
        ValueError: for a history without updates, or of single weights.
    """
    import numpy as np

    states = _states(history)
    fig, ax = axes(ax, height=max(3.5, min(12.0, 1.4 + 0.42 * len(states))))
    from matplotlib.colors import ListedColormap

    if sort:
        states = {name: _by_life(found) for name, found in states.items()}
    picture = np.concatenate(list(states.values()))
    channels, updates = picture.shape
    smooth = channels > ax.bbox.height  # fewer pixels than rows: mix colors, skip none
    ax.imshow(
        picture,
        cmap=ListedColormap(_COLORS),
        vmin=-0.5,
        vmax=len(_STATES) - 0.5,
        aspect="auto",
        interpolation="antialiased" if smooth else "nearest",
        interpolation_stage="rgba",
        extent=(0.5, updates + 0.5, channels, 0.0),
    )
    edges = np.cumsum([0, *(len(found) for found in states.values())])
    for edge in edges[1:-1]:
        ax.axhline(float(edge), color="black", linewidth=0.8)
    names = [f"{name} ({len(found)})" for name, found in states.items()]
    ax.set_yticks((edges[:-1] + edges[1:]) / 2, names)
    _update_axis(ax, updates)
    ax.set_ylabel("layer or group (channels)")
    legend_above(fig, ax, dict(zip(_STATES, _COLORS, strict=True)))
    return fig, ax


def _by_life(states: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the rows with the longest-lived channel on top; equal ones keep their order."""
    import numpy as np

    alive = (states == _KEPT) | (states == _BACK)
    return states[np.argsort(-alive.sum(1), kind="stable")]


def _update_axis(ax: Axes, updates: int) -> None:
    ax.set_xlim(0.5, updates + 0.5)
    whole_numbers(ax, "mask update")
