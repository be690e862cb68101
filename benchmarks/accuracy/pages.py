"""Write tables, plots and the pages under docs/ from the CSV files of `benchmarks.accuracy`.

python -m benchmarks.accuracy.pages
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.accuracy.rows import read_rows
from benchmarks.accuracy.table import (
    MAIN_ORDER,
    NOT_MEASURED,
    Rows,
    criterion_table,
    grouped,
    main_rows,
    main_table,
    mean_text,
    parts_table,
    surrogate_table,
    title,
)
from benchmarks.measure import RESULTS
from benchmarks.readme import write_tables

DOCS = Path(__file__).parents[2] / "docs"

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
    ax.get_legend().remove()  # there are too many curves for a corner
    figure.legend(loc="outside lower center", ncols=3)
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
        write_tables(args.docs / name, parts)
    for suite, dataset in (("cpu", CIFAR), ("gpu", GPU_SETS[0])):
        mine = [row for row in rows if row["suite"] == suite]
        if not args.no_plots and any(
            r["dataset"] == dataset and r["method"] != "dense" for r in mine
        ):
            plot(mine, dataset, args.docs / f"accuracy_{suite}.png")


if __name__ == "__main__":
    main()
