"""Numbers from the rows of `benchmarks.survival`: paired differences, survival, regrowth.

A difference is between two trainings **with the same seed on one device**; its interval is
Student's, of these differences, at 95 %, and no more than that: of many intervals some miss.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.rows import read_rows
from benchmarks.accuracy.table import NOT_MEASURED, markdown, mean_and_interval
from benchmarks.survival.arms import ARMS, TRAINED
from benchmarks.survival.cells import LONGER

Row = dict[str, str]
Rows = list[Row]
Key = tuple[int, str]
CHOSEN = 3  # arms that are tried again on other seeds
BASE = "magnitude"
ERK_ARM = "magnitude-erk"
LATER = 107  # the first seed that was run once the first longer trainings were known


def read(folder: Path) -> Rows:
    """Return the rows of all devices."""
    return [row for path in sorted(folder.glob("survival_*.csv")) for row in read_rows(path)]


def later(rows: Rows) -> Rows:
    """Leave out of the longer trainings the seeds after which it was decided to go on with them."""
    longer = {recipe.name for recipe in LONGER}
    return [row for row in rows if row["recipe"] not in longer or int(row["seed"]) >= LATER]


# ---- numbers -------------------------------------------------------------------------------------


def of(rows: Rows, recipe: str, arm: str) -> dict[Key, Row]:
    """Return the rows of an arm by seed and device."""
    mine = [row for row in rows if (row["recipe"], row["arm"]) == (recipe, arm)]
    return {(int(row["seed"]), row["device"]): row for row in mine}


def pairs(rows: Rows, recipe: str, arm: str, other: str) -> list[tuple[Row, Row]]:
    """Return the rows of both arms for every seed that one device trained both with."""
    mine, theirs = (of(rows, recipe, name) for name in (arm, other))
    return [(mine[key], theirs[key]) for key in sorted(mine) if key in theirs]


def differences(rows: Rows, recipe: str, arm: str, other: str) -> list[float]:
    """Return ``arm - other`` of the accuracy, a value a pair, in points."""
    found = pairs(rows, recipe, arm, other)
    return [float(mine["accuracy"]) - float(theirs["accuracy"]) for mine, theirs in found]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its interval; endless for fewer than two values."""
    if not values:
        return float("nan"), float("inf")
    mean, half = mean_and_interval(values)
    return mean, float("inf") if half is None else half


def sign(values: Sequence[float]) -> int:
    """Return 1 or -1 where the interval lies above or below 0, else 0."""
    mean, half = interval(values)
    return int(mean > half) - int(mean < -half)


def text(values: Sequence[float]) -> str:
    """Return a difference with its interval."""
    mean, half = interval(values)
    if not values:
        return NOT_MEASURED
    return f"{mean:+.2f} (one seed)" if half == float("inf") else f"{mean:+.2f} ± {half:.2f}"


def is_criticality(name: str) -> bool:
    """Tell whether an arm is what is compared: not magnitude, no control, not dense."""
    return name not in (BASE, "dense") and not ARMS[name].is_control


def best_arms(rows: Rows) -> list[str]:
    """Return the arms of highest mean difference to magnitude; controls and dense left out.

    Raises:
        ValueError: if there are too few rows to choose by.
    """
    means = {}
    for name in ARMS:
        found = differences(rows, "x1", name, BASE)
        if found and is_criticality(name):
            means[name] = statistics.mean(found)
    if len(means) < CHOSEN:
        raise ValueError(f"Expected rows of {CHOSEN} arms to choose by but got {len(means)}")
    return sorted(means, key=means.__getitem__, reverse=True)[:CHOSEN]


def survival(found: Sequence[Row]) -> dict[int, float]:
    """Return, by step of the update, which part of what the one before grew it kept, all seeds."""
    grown: dict[int, int] = {}
    kept: dict[int, int] = {}
    for row in found:
        for step, new, survived in json.loads(row["survival"]):
            grown[step] = grown.get(step, 0) + new
            kept[step] = kept.get(step, 0) + survived
    return {step: kept[step] / number for step, number in grown.items() if number}


def mean(found: Sequence[Row], column: str) -> float:
    """Return the mean of a column."""
    return statistics.mean(float(row[column]) for row in found)


def energy_ratio(rows: Rows, recipe: str, arm: str, other: str) -> float:
    """Return the mean energy of a sample over another arm's, of their pairs."""
    mine, theirs = zip(*pairs(rows, recipe, arm, other), strict=True)
    return mean(mine, "energy_nj") / mean(theirs, "energy_nj")


def by_layer(found: Sequence[Row], column: str) -> dict[str, float]:
    """Return the mean of a column of numbers by layer."""
    each = [json.loads(row[column]) for row in found]
    return {name: statistics.mean(values.get(name, 0) for values in each) for name in each[0]}


def measured(rows: Rows, recipe: str, regrowing: bool = False) -> dict[str, list[Row]]:
    """Return the arms of a recipe that have rows, in the order of `ARMS`.

    Args:
        rows: of all recipes.
        recipe: name of one.
        regrowing: only those that regrow.
    """
    found = {name: list(of(rows, recipe, name).values()) for name in ARMS}
    return {
        name: mine
        for name, mine in found.items()
        if mine and not (regrowing and not any(json.loads(mine[0]["regrown"]).values()))
    }


# ---- tables --------------------------------------------------------------------------------------


def comparison_table(rows: Rows, recipe: str = "x1") -> str:
    """Return accuracy, paired difference to magnitude and costs of every arm."""
    table = []
    for name, mine in measured(rows, recipe).items():
        rates = survival(mine)
        table.append(
            [
                ARMS[name].title,
                str(len(mine)),
                f"{mean(mine, 'accuracy'):.2f}",
                "-" if name == BASE else text(differences(rows, recipe, name, BASE)),
                f"{mean(mine, 'energy_nj'):.0f}",
                f"{mean(mine, 'synops') / 1e3:.0f}",
                f"{100 * rates[max(rates)]:.1f} %" if rates else "-",
            ]
        )
    headers = ["", "seeds", "accuracy %", "to Magnitude, points", "energy nJ", "SynOps k"]
    return markdown(table, [*headers, "survived the last update"]) if table else NOT_MEASURED


def control_table(rows: Rows, recipe: str = "x1") -> str:
    """Return what criteria are worth: the difference to their scores permuted."""
    table = []
    for name, arm in ARMS.items():
        values = differences(rows, recipe, name, arm.control) if arm.control else []
        if values:
            ahead = sum(value > 0 for value in values)
            table.append([arm.title, text(values), f"{ahead} of {len(values)}"])
    headers = ["criterion", "over its scores permuted, points", "seeds in which it is ahead"]
    return markdown(table, headers) if table else NOT_MEASURED


def survival_table(rows: Rows, recipe: str = "x1") -> str:
    """Return which part of what an update grew survived the next one, update by update."""
    rates = {name: survival(mine) for name, mine in measured(rows, recipe, True).items()}
    if not rates:
        return NOT_MEASURED
    steps = sorted({step for each in rates.values() for step in each})
    table = [
        [ARMS[name].title, *(f"{100 * each[s]:.1f} %" if s in each else "-" for s in steps)]
        for name, each in rates.items()
    ]
    return markdown(table, ["", *(f"step {step}" for step in steps)])


def layer_table(rows: Rows, recipe: str = "x1") -> str:
    """Return which part of all regrown weights each layer got, and its density at the end."""
    arms = measured(rows, recipe)
    arms.pop("dense", None)
    if not arms:
        return NOT_MEASURED
    names = list(by_layer(next(iter(arms.values())), "density"))
    table = []
    for name, mine in arms.items():
        grown, density = by_layer(mine, "regrown"), by_layer(mine, "density")
        total = sum(grown.values())
        table.append(
            [ARMS[name].title]
            + [
                (f"{100 * grown[layer] / total:.0f} %" if total else "-")
                + f" / {100 * density[layer]:.1f} %"
                for layer in names
            ]
        )
    return markdown(table, ["regrown here / left here", *(n.split(".")[-1] for n in names)])


def confirm_table(rows: Rows) -> str:
    """Return paired differences where training is longer, or as the paper's."""
    table = [
        [recipe.title, ARMS[name].title, *_confirmed(rows, recipe.name, name)]
        for recipe in LONGER
        for name in measured(rows, recipe.name)
        if differences(rows, recipe.name, name, BASE) and name != BASE
    ]
    headers = ["training", "", "Magnitude %", "to it, points", "to it with ERK, points"]
    headers.append("energy over Magnitude's")
    return markdown(table, headers) if table else NOT_MEASURED


def _confirmed(rows: Rows, recipe: str, arm: str) -> list[str]:
    """Return the numbers of a line: each difference with how many pairs it is of."""
    base = [theirs for _, theirs in pairs(rows, recipe, arm, BASE)]
    return [
        f"{mean(base, 'accuracy'):.2f}",
        counted(differences(rows, recipe, arm, BASE)),
        "-" if arm == ERK_ARM else counted(differences(rows, recipe, arm, ERK_ARM)),
        f"{energy_ratio(rows, recipe, arm, BASE):.2f}",
    ]


def counted(values: Sequence[float]) -> str:
    """Return a difference with its interval and how many pairs it is of."""
    return f"{text(values)} ({len(values)} pairs)" if len(values) > 1 else text(values)


def trained_table(rows: Rows) -> str:
    """Return what the real training came to."""
    table = []
    for name, arm in TRAINED.items():
        found = of(rows, "cifar", name)
        if not found:
            continue
        mine, scores = list(found.values()), [float(row["accuracy"]) for row in found.values()]
        drops = differences(rows, "cifar", "dense", name)
        table.append(
            [
                arm.title,
                f"{statistics.mean(scores):.2f}",
                f"{min(scores):.2f} to {max(scores):.2f}",
                f"{statistics.mean(drops):.2f}" if drops and name != "dense" else "-",
                f"{mean(mine, 'parameters_nonzero') / 1e3:.1f}",
                f"{mean(mine, 'synops') / 1e6:.2f}",
                f"{mean(mine, 'energy_nj') / 1e3:.1f}",
            ]
        )
    headers = ["", "accuracy %", "range of seeds", "drop, points", "weights left k"]
    return markdown(table, [*headers, "SynOps M", "energy uJ"]) if table else NOT_MEASURED
