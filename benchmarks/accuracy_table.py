"""Write tables, plots and the pages under docs/ from the CSV files of `accuracy.py`.

    python benchmarks/accuracy_table.py

A drop is the dense accuracy less that of the method **with the same seed**; its interval is
Student's, of these differences, at 95 %.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from accuracy import read_rows
from measure import RESULTS
from readme import insert
from scipy import stats
from tabulate import tabulate

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
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
    *("sparsity", "method", "accuracy %", "drop, points", "seeds", "SynOps M", "MACs M"),
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
    return _markdown(table, HEADERS)


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
        mean_text(group, "macs", 1e-6, 3),
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
    return _markdown(table, ["regrow ratio", *criteria])


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
    return _markdown(table, ["", "accuracy %", "drop, points"])


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
    return _markdown(table, ["surrogate", "dense %", "Criticality %", "drop, points"])


def _drop_and_seeds(group: Rows, rows: Rows) -> str:
    """Return the drop; the number of seeds where it is not that of the whole table."""
    number = len(drops(group, rows))
    text = drop_text(group, rows)
    return f"{text}, {number} seeds" if number > 1 else text


def _markdown(table: Iterable[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(list(table), list(headers), tablefmt="github", disable_numparse=True)


# ---- the pages of the pipelines ------------------------------------------------------------------


def expected(rows: Rows, script: str, wanted: Sequence[tuple[str, str]]) -> str:
    """Return commands with what came of them: accuracy, time, hardware.

    Args:
        rows: of all suites.
        script: name of the file under examples/, without its ending.
        wanted: method and sparsity, as in the CSV.
    """
    mine = [row for row in main_rows(rows) if row["arguments"].startswith(f"{script}.py ")]
    groups = grouped([row for row in mine if title(row) == row["method"]]).values()
    parts = [
        _expected_part(group)
        for group in groups
        if (group[0]["method"], group[0]["sparsity"]) in wanted
    ]
    return "\n".join(parts) if parts else f"{NOT_MEASURED}\n"


def _expected_part(group: Rows) -> str:
    row = min(group, key=lambda r: int(r["seed"]))
    accuracies = [float(r["accuracy"]) for r in group]
    words = row["arguments"].split()
    lines, line = [], f"python examples/{words[0]}"
    for word in words[1:]:
        if len(line) + len(word) > 90 and word.startswith("--"):
            lines.append(line)
            line = "   "
        line += f" {word}"
    command = " \\\n".join([*lines, line])
    spread = f", {min(accuracies):.2f} to {max(accuracies):.2f}" if len(group) > 1 else ""
    return (
        f"```bash\n{command}\n```\n\n"
        f"{statistics.mean(accuracies):.2f} % (mean of {len(group)} seeds{spread}) at sparsity "
        f"{100 * float(row['sparsity_reached']):.2f} %; "
        f"{mean_text(group, 'wall_seconds', 1, 0)} s, {mean_text(group, 'cpu_seconds', 1, 0)} s "
        f"of CPU; {row['device']}, torch {row['torch']}, commit {row['commit']}; {row['schedule']}."
        "\n"
    )


# ---- plot ----------------------------------------------------------------------------------------


def plot(rows: Rows, dataset: str, path: Path) -> None:
    """Draw accuracy over sparsity of the main table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from sj_prune import plots

    mine = [row for row in main_rows(rows) if row["dataset"] == dataset]
    dense = [float(row["accuracy"]) for row in mine if row["method"] == "dense"]
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in MAIN_ORDER[1:]:
        for row in mine:
            if title(row) == name:
                point = (float(row["sparsity"]), float(row["accuracy"]))
                curves.setdefault(name, []).append(point)
    figure, ax = plots.accuracy_over_sparsity(curves, dense=statistics.mean(dense))
    seeds = len({row["seed"] for row in mine})
    ax.set_title(f"{dataset}: mean and range of {seeds} seed{'s' if seeds > 1 else ''}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


# ---- files ---------------------------------------------------------------------------------------

CIFAR, DVS = "CIFAR-10 subset", "generated DVS"
GPU_SETS = ("CIFAR-100", "CIFAR-10", "Tiny-ImageNet", "DVS-CIFAR10")


def pages(rows: Rows) -> dict[str, dict[str, Callable[[], str]]]:
    """Return, by file and marker, what writes a part of it."""
    wanted = [("dense", "0.0"), ("Criticality", "0.9"), ("Criticality", "0.95")]
    cpu = [row for row in rows if row["suite"] == "cpu"]
    gpu = [row for row in rows if row["suite"] == "gpu"]
    return {
        "accuracy.md": {
            "cpu cifar table": lambda: main_table(cpu, CIFAR),
            "cpu dvs table": lambda: main_table(cpu, DVS),
            "criterion table": lambda: criterion_table(cpu, CIFAR),
            "parts table": lambda: parts_table(cpu, CIFAR),
            "surrogate table": lambda: surrogate_table(cpu, CIFAR, "sigmoid"),
            **{f"gpu {name} table": lambda n=name: main_table(gpu, n) for name in GPU_SETS},
            "environment": lambda: environment_text(rows),
        },
        "cifar.md": {
            "measured": lambda: expected(cpu, "cifar", wanted),
            "full": lambda: expected(gpu, "cifar", [*wanted, ("Criticality", "0.9569")]),
        },
        "cifar10_dvs.md": {
            "measured": lambda: expected(cpu, "cifar10_dvs", wanted),
            "full": lambda: expected(gpu, "cifar10_dvs", wanted),
        },
        "tiny_imagenet.md": {"full": lambda: expected(gpu, "tiny_imagenet", wanted)},
    }


def environment_text(rows: Rows) -> str:
    """Return where the rows come from, a line a suite."""
    lines = []
    for suite in sorted({row["suite"] for row in rows}):
        mine = [row for row in rows if row["suite"] == suite]
        facts = [
            f"{name} {', '.join(sorted({row[name] for row in mine}))}"
            for name in ("device", "torch", "spikingjelly", "python", "commit")
        ]
        lines.append(f"- `{suite}`: {len(mine)} trainings; {'; '.join(facts)}")
    return "\n".join(lines) or NOT_MEASURED


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of accuracy_*.csv")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages")
    parser.add_argument("--no-plots", action="store_true")
    args = parser.parse_args(arguments)
    rows = [r for path in sorted(args.results.glob("accuracy_*.csv")) for r in read_rows(path)]
    for name, parts in pages(rows).items():
        path = args.docs / name
        text = path.read_text(encoding="utf-8")
        for marker, write in parts.items():
            text = insert(text, marker, write())
        path.write_text(text, encoding="utf-8")
    for suite, dataset in (("cpu", CIFAR), ("gpu", GPU_SETS[0])):
        mine = [row for row in rows if row["suite"] == suite]
        if not args.no_plots and any(
            r["dataset"] == dataset and r["method"] != "dense" for r in mine
        ):
            plot(mine, dataset, args.docs / f"accuracy_{suite}.png")


if __name__ == "__main__":
    main()
