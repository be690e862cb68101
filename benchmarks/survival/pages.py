"""Write docs/survival.md and docs/cifar_training.md, with their plots, from the CSV files.

python -m benchmarks.survival.pages
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.accuracy.pages import DOCS
from benchmarks.accuracy.table import NOT_MEASURED
from benchmarks.measure import RESULTS
from benchmarks.readme import write_tables
from benchmarks.survival import verdicts
from benchmarks.survival.arms import ARMS, TRAINED
from benchmarks.survival.cells import LONGER, ONCE, SIX, Recipe
from benchmarks.survival.tables import (
    BASE,
    Rows,
    comparison_table,
    confirm_table,
    control_table,
    differences,
    interval,
    later,
    layer_table,
    measured,
    of,
    read,
    survival,
    survival_table,
    trained_table,
)
from sj_prune.plots.axes import COLORS, MARKERS, grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = ("published", "keeps", "keeps-r0.03", "keeps-layer", "mean", "grace")  # survival, drawn


def pages(rows: Rows) -> dict[str, dict[str, Callable[[], str]]]:
    """Return, by file and marker, what writes a part of it."""
    after = later(rows)
    return {
        "survival.md": {
            "says": lambda: verdicts.says(after),
            "picture": lambda: (
                "![Differences to magnitude, and survival of regrown weights](survival.png)"
                if differences(rows, "x1", "published", BASE)
                else NOT_MEASURED
            ),
            "comparison": lambda: comparison_table(rows),
            "control": lambda: control_table(rows),
            "confirm": lambda: confirm_table(after),
            "groups": lambda: verdicts.groups(rows),
            "survival": lambda: survival_table(rows),
            "layers": lambda: layer_table(rows),
            "layers longer": lambda: layer_table(after, "x4"),
            "environment": lambda: environment([r for r in rows if r["recipe"] != "cifar"]),
        },
        "cifar_training.md": {
            "trained": lambda: trained_table(rows),
            "picture": lambda: (
                "![Test accuracy over epochs](cifar_training.png)"
                if of(rows, "cifar", "dense")
                else NOT_MEASURED
            ),
            "trained follows": lambda: verdicts.trained(rows),
            "environment": lambda: environment([r for r in rows if r["recipe"] == "cifar"]),
        },
    }


def environment(rows: Rows) -> str:
    """Return where rows come from."""
    if not rows:
        return NOT_MEASURED
    names = ("device", "torch", "spikingjelly", "python", "commit", "images", "test_images")
    facts = [f"{name} {', '.join(sorted({row[name] for row in rows}))}" for name in names]
    seconds = [sum(float(row[name]) for row in rows) for name in ("wall_seconds", "cpu_seconds")]
    return (
        f"{len(rows)} trainings, several at a time on one device: {seconds[0] / 3600:.1f} hours "
        f"added up, {seconds[1] / 3600:.1f} of the processor; {'; '.join(facts)}."
    )


# ---- plots ---------------------------------------------------------------------------------------


def draw_survival(rows: Rows, path: Path) -> None:
    """Draw paired differences to magnitude, and survival over updates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 6.4), layout="constrained", width_ratios=(3, 2)
    )
    recipes = (ONCE, *LONGER)
    found = {name for recipe in recipes for name in measured(rows, recipe.name)}
    arms = [name for name in ARMS if name in found - {BASE, "dense"}]
    for i, recipe in enumerate(recipes):
        _draw_differences(left, rows, recipe, arms, i)
    left.axvline(0, color="#555555", linewidth=1)
    left.set_yticks(range(len(arms)), [ARMS[name].title for name in arms])
    left.invert_yaxis()
    left.set_xlabel("accuracy less Magnitude's, points (95 % of pairs; hollow: controls)")
    left.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.4, 1), ncols=4)
    grid(left, "x")
    shown = [name for name in SHOWN if of(rows, "x1", name)]
    for i, name in enumerate(shown):
        rates = survival(list(of(rows, "x1", name).values()))
        percent = [100 * rate for rate in rates.values()]
        style = {"marker": MARKERS[i], "color": COLORS[i], "label": ARMS[name].title}
        right.plot(list(rates), percent, markersize=5, **style)
    right.set_xlabel("optimizer step of the update")
    right.set_ylabel("regrown weights that survive the next prune, %")
    right.set_ylim(bottom=0)
    grid(right)
    right.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_differences(ax: Axes, rows: Rows, recipe: Recipe, arms: Sequence[str], i: int) -> None:
    """Draw the differences of a recipe where there are pairs; controls are hollow."""
    label: str | None = recipe.title
    lower = 0.2 * (i - len(LONGER) / 2)  # the recipes of an arm lie around its line
    for place, name in enumerate(arms):
        values = differences(rows, recipe.name, name, BASE)
        if len(values) < 2:
            continue
        mean, half = interval(values)
        ax.errorbar(
            *(mean, place + lower),
            xerr=half,
            fmt=MARKERS[i],
            color=COLORS[i],
            markerfacecolor="white" if ARMS[name].is_control else COLORS[i],
            capsize=3,
            label=label,
        )
        label = None  # once a recipe


def draw_trained(rows: Rows, path: Path) -> None:
    """Draw test accuracy over epochs, the mean of the seeds, and the range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(7.5, 4.4), layout="constrained")
    for i, (name, arm) in enumerate(TRAINED.items()):
        curves = [json.loads(row["curve"]) for row in of(rows, "cifar", name).values()]
        if not curves:
            continue
        # All arms are one until masks begin: the last of those epochs is where the curves part.
        first = 0 if arm.method is None else SIX.shared - 1
        at_each = list(zip(*curves, strict=True))[first:]
        epochs = range(first + 1, first + len(at_each) + 1)
        style = {"marker": MARKERS[i], "color": COLORS[i], "label": arm.title}
        means = [sum(values) / len(values) for values in at_each]
        ax.plot(epochs, means, markersize=4, **style)
        ax.fill_between(
            *(epochs, list(map(min, at_each)), list(map(max, at_each))),
            color=COLORS[i],
            alpha=0.15,
            linewidth=0,
        )
    ax.set_xlabel("epoch")
    ax.set_ylabel("test accuracy, %")
    grid(ax)
    ax.legend(loc="lower center")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of survival_*.csv")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages")
    args = parser.parse_args(arguments)
    rows = read(args.results)
    for name, parts in pages(rows).items():
        write_tables(args.docs / name, parts)
    if differences(rows, "x1", "published", BASE):
        draw_survival(later(rows), args.docs / "survival.png")
    if of(rows, "cifar", "dense"):
        draw_trained(rows, args.docs / "cifar_training.png")


if __name__ == "__main__":
    main()
