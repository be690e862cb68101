"""What all plots share: figures, grids, names of layers, colors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*"

#: Okabe and Ito's palette, told apart with any color vision
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def axes(ax: Axes | None, width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
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


def grid(ax: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """Draw a faint grid behind everything else."""
    ax.set_axisbelow(True)
    ax.grid(visible=True, axis=axis, alpha=0.3)


def whole_numbers(ax: Axes, label: str) -> None:
    """Let the x axis have ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    ax.set_xlabel(label)


def legend_columns(names: Iterable[str], width: float) -> int:
    """Return into how many columns names fit, in rows of equal length, `width` in inches."""
    lengths = [len(name) for name in names]
    # 12 letters an inch; a key takes the place of 7.
    most = max(1, min(4, int(12 * width) // (max(lengths) + 7)))
    rows = math.ceil(len(lengths) / most)
    return math.ceil(len(lengths) / rows)


def legend_above(fig: Figure, ax: Axes, patches: Mapping[str, str] | None = None) -> None:
    """Put a legend above axes whose content leaves no corner free.

    Args:
        fig: the figure.
        ax: the axes.
        patches: name -> color, where no artist stands for a name.
    """
    handles, names = ax.get_legend_handles_labels()
    if patches is not None:
        from matplotlib.patches import Patch

        handles = [Patch(facecolor=color, edgecolor="#999999") for color in patches.values()]
        names = list(patches)
    columns = legend_columns(names, ax.bbox.width / fig.dpi)
    ax.legend(handles, names, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns)


def name_ticks(ax: Axes, names: Sequence[str]) -> None:
    """Write names under the x axis, slanted where they would run into each other."""
    places = range(len(names))
    if sum(len(name) + 3 for name in names) > 60:
        ax.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    else:
        ax.set_xticks(places, names)
