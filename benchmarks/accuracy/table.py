"""Tables from the rows of `benchmarks.accuracy`.

A drop is the dense accuracy less that of the method **with the same seed**; its interval is
Student's, of these differences, at 95 %.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from scipy import stats
from tabulate import tabulate

CONFIDENCE = 0.95
NOT_MEASURED = "not measured"

Row = dict[str, str]
Rows = list[Row]

# ---- numbers -------------------------------------------------------------------------------------


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its confidence interval; None for a single value."""
    if len(values) < 2:
        return statistics.mean(values), None
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return statistics.mean(values), quantile * statistics.stdev(values) / len(values) ** 0.5


def setting(row: Row, name: str) -> str | None:
    """Return one of the settings of a row, such as ``regrow``."""
    pairs = dict(pair.split("=", 1) for pair in row["settings"].split())
    return pairs.get(name)


def baseline(row: Row, rows: Rows) -> Row | None:
    """Return the dense training that a row compares with: all alike but the method."""
    same = ("suite", "dataset", "network", "schedule", "epochs", "seed")
    return next(
        (
            other
            for other in rows
            if other["method"] == "dense"
            and all(other[name] == row[name] for name in same)
            and setting(other, "surrogate") == setting(row, "surrogate")
        ),
        None,
    )


def drops(group: Rows, rows: Rows) -> list[float]:
    """Return the drops of a group, a value a seed of which the dense training is there too."""
    pairs = [(baseline(row, rows), row) for row in group]
    return [float(d["accuracy"]) - float(r["accuracy"]) for d, r in pairs if d is not None]


def drop_text(group: Rows, rows: Rows) -> str:
    values = drops(group, rows)
    if not values:
        return NOT_MEASURED
    mean, half = mean_and_interval(values)
    return f"{mean:.2f} (one seed)" if half is None else f"{mean:.2f} ± {half:.2f}"


def mean_text(group: Rows, name: str, scale: float = 1.0, digits: int = 2) -> str:
    """Return the mean of a column over the rows that have it."""
    values = [float(row[name]) for row in group if row[name] != ""]
    return f"{scale * statistics.mean(values):.{digits}f}" if values else NOT_MEASURED


def grouped(rows: Rows) -> dict[tuple[str, ...], Rows]:
    """Return the rows by what they are seeds of."""
    names = ("suite", "dataset", "network", "schedule", "epochs", "method", "settings", "sparsity")
    found: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


# ---- tables --------------------------------------------------------------------------------------

MAIN_ORDER = ("dense", "Criticality", "Magnitude", "RigL", "Criticality, random regrowth", "Random")
HEADERS = (
    *("sparsity", "method", "accuracy %", "drop, points", "seeds", "SynOps M", "analog MACs M"),
    *("energy nJ", "weights left k", "epochs", "over IMP's", "CPU s", "wall s"),
)


def title(row: Row) -> str:
    """Return the name of a method in the main table; empty for what belongs to an ablation."""
    others = set(row["settings"].split()) - {f"regrow={setting(row, 'regrow')}"}
    if not others:
        return row["method"]
    return "Criticality, random regrowth" if others == {"growth=random"} else ""


def main_rows(rows: Rows) -> Rows:
    return [row for row in rows if row["group"] == "main" and title(row)]


def main_table(rows: Rows, dataset: str) -> str:
    """Return accuracy, drop and costs of every method at every sparsity."""
    mine = [row for row in main_rows(rows) if row["dataset"] == dataset]
    if not mine:
        return f"{NOT_MEASURED}\n"
    groups = sorted(
        grouped(mine).values(),
        key=lambda g: (g[0]["network"], float(g[0]["sparsity"]), MAIN_ORDER.index(title(g[0]))),
    )
    table = [_main_line(group, rows) for group in groups]
    return markdown(table, HEADERS)


def _main_line(group: Rows, rows: Rows) -> list[str]:
    row = group[0]
    dense = row["method"] == "dense"
    reached = statistics.mean(float(r["sparsity_reached"]) for r in group)
    return [
        "-" if dense else f"{100 * reached:.2f} %",
        title(row),
        mean_text(group, "accuracy"),
        "-" if dense else drop_text(group, rows),
        str(len(group)),
        mean_text(group, "synops", 1e-6, 3),
        mean_text(group, "analog_macs", 1e-6, 3),
        mean_text(group, "energy_nj", 1, 0),
        mean_text(group, "parameters_nonzero", 1e-3, 1),
        row["epochs"],
        "-" if dense else f"{float(row['epochs_over_imp']):.3f}",
        mean_text(group, "cpu_seconds", 1, 0),
        mean_text(group, "wall_seconds", 1, 0),
    ]


def criterion_table(rows: Rows, dataset: str) -> str:
    """Return drops by regrow criterion and ratio, at the sparsity of the ablation."""
    mine = [row for row in rows if row["dataset"] == dataset]
    ablated = [row for row in mine if row["group"] == "regrow criterion"]
    if not ablated:
        return f"{NOT_MEASURED}\n"
    sparsity = ablated[0]["sparsity"]
    plain = [
        row
        for row in mine
        if row["method"] == "Criticality"
        and row["sparsity"] == sparsity
        and not (setting(row, "surrogate") or setting(row, "drop"))
    ]
    none = [row for row in mine if row["method"] == "Magnitude" and row["sparsity"] == sparsity]
    table = []
    for ratio in sorted({setting(row, "regrow") or "" for row in plain}, key=float):
        line = [ratio]
        for growth in (None, "gradient", "random"):
            found = [
                row
                for row in plain
                if setting(row, "regrow") == ratio and setting(row, "growth") == growth
            ]
            line.append(_drop_and_seeds(found, rows))
        table.append([*line, _drop_and_seeds(none, rows)])
    criteria = ["criticality", "gradient", "random", "none (= Magnitude)"]
    return markdown(table, ["regrow ratio", *criteria])


def parts_table(rows: Rows, dataset: str) -> str:
    """Return drops of pruning only, regrowing only, and both."""
    mine = [row for row in rows if row["dataset"] == dataset]
    ablated = [row for row in mine if row["group"] == "prune and regrow"]
    if not ablated:
        return f"{NOT_MEASURED}\n"
    sparsity = ablated[0]["sparsity"]
    at = [row for row in mine if row["sparsity"] == sparsity]
    table = []
    for name, wanted in (
        ("both: Criticality", ("Criticality", "regrow=0.1")),
        ("prune only: Magnitude", ("Magnitude", "")),
        ("regrow only: pruned at random, 0.1 regrown", ("Criticality", "regrow=0.1 drop=random")),
        ("regrow only: pruned at random, 0.6 regrown", ("Criticality", "regrow=0.6 drop=random")),
        ("neither: Random", ("Random", "")),
    ):
        found = [row for row in at if (row["method"], row["settings"]) == wanted]
        table.append([name, mean_text(found, "accuracy"), _drop_and_seeds(found, rows)])
    return markdown(table, ["", "accuracy %", "drop, points"])


def surrogate_table(rows: Rows, dataset: str, default: str) -> str:
    """Return dense accuracy and drop by surrogate; `default` is the network's own."""
    mine = [row for row in rows if row["dataset"] == dataset]
    ablated = [r for r in mine if r["group"] == "surrogate" and r["method"] == "Criticality"]
    if not ablated:
        return f"{NOT_MEASURED}\n"
    sparsity, regrow = ablated[0]["sparsity"], setting(ablated[0], "regrow")
    table = []
    for name in ("atan", "sigmoid", "tanh"):
        option = "" if name == default else f"surrogate={name}"
        dense = [row for row in mine if (row["method"], row["settings"]) == ("dense", option)]
        wanted = ("Criticality", f"regrow={regrow} {option}".strip(), sparsity)
        pruned = [r for r in mine if (r["method"], r["settings"], r["sparsity"]) == wanted]
        table.append(
            [
                name,
                mean_text(dense, "accuracy"),
                mean_text(pruned, "accuracy"),
                _drop_and_seeds(pruned, rows),
            ]
        )
    return markdown(table, ["surrogate", "dense %", "Criticality %", "drop, points"])


def _drop_and_seeds(group: Rows, rows: Rows) -> str:
    """Return the drop; the number of seeds where it is not that of the whole table."""
    number = len(drops(group, rows))
    text = drop_text(group, rows)
    return f"{text}, {number} seeds" if number > 1 else text


def markdown(table: Iterable[Sequence[str]], headers: Sequence[str]) -> str:
    """Return a table as it stands in a page."""
    return tabulate(list(table), list(headers), tablefmt="github", disable_numparse=True)
