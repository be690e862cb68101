"""Write the decision tables of docs/choosing.md from the CSV files under results/.

python -m benchmarks.choosing
"""

from __future__ import annotations

import statistics

from tabulate import tabulate

from benchmarks.accuracy.table import (
    MAIN_ORDER,
    Rows,
    drop_text,
    grouped,
    main_rows,
    mean_and_interval,
    mean_text,
    title,
)
from benchmarks.readme import ROOT, rows, write_tables

PAGE = ROOT / "docs" / "choosing.md"
SUBSET, EVENTS = "CIFAR-10 subset", "generated DVS"


def _markdown(table: list[list[str]], headers: list[str]) -> str:
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def _groups(dataset: str) -> dict[tuple[str, float], Rows]:
    """Return (method, sparsity) -> rows of the main table of a data set."""
    mine = [row for row in main_rows(rows("accuracy_cpu")) if row["dataset"] == dataset]
    return {(title(g[0]), float(g[0]["sparsity"])): g for g in grouped(mine).values()}


def versus_magnitude() -> str:
    """Return, for each method and sparsity, how many points it is above `Magnitude`, paired."""
    groups = _groups(SUBSET)
    sparsities = sorted({s for _, s in groups if s})
    table = [
        [name, *(_paired(groups[name, s], groups["Magnitude", s]) for s in sparsities)]
        for name in MAIN_ORDER[1:]
        if name != "Magnitude"
    ]
    return _markdown(table, ["above `Magnitude`, points", *(f"at {s:.0%}" for s in sparsities)])


def _paired(group: Rows, others: Rows) -> str:
    by_seed = {row["seed"]: float(row["accuracy"]) for row in others}
    gaps = [float(r["accuracy"]) - by_seed[r["seed"]] for r in group if r["seed"] in by_seed]
    mean, half = mean_and_interval(gaps)
    verdict = "" if half is None or abs(mean) <= half else ", better" if mean > 0 else ", worse"
    return f"{mean:+.2f}" + ("" if half is None else f" ± {half:.2f}{verdict}")


def by_sparsity() -> str:
    """Return what a sparsity costs and brings: accuracy, energy, time deployed."""
    all_rows = rows("accuracy_cpu")
    subset, events = _groups(SUBSET), _groups(EVENTS)
    dense_energy = float(mean_text(subset["dense", 0.0], "energy_nj", 1, 3))
    table = []
    for sparsity in (0.9, 0.95, 0.98):
        row = [f"{sparsity:.0%}"]
        for groups in (subset, events):
            group = groups.get(("Magnitude", sparsity))
            row.append("not measured" if group is None else drop_text(group, all_rows))
        row.append(_digits(sparsity))
        for method in ("Magnitude", "Criticality"):
            energy = float(mean_text(subset[method, sparsity], "energy_nj", 1, 3))
            row.append(f"{energy / dense_energy:.2f}")
        table.append([*row, _deployed(sparsity)])
    headers = [
        *("sparsity", "drop, CIFAR-10 subset", "drop, generated events", "drop, digits"),
        *("energy of dense, `Magnitude`", "`Criticality`", "VGG16 deployed, times faster"),
    ]
    return _markdown(table, headers)


def _digits(sparsity: float) -> str:
    found = rows("quickstart_cpu")
    dense = {r["seed"]: float(r["accuracy"]) for r in found if r["method"] == "dense"}
    gaps = [
        dense[r["seed"]] - float(r["accuracy"])
        for r in found
        if (r["method"], float(r["sparsity"])) == ("Magnitude", sparsity)
    ]
    if not gaps:
        return "not measured"
    mean, half = mean_and_interval(gaps)
    return f"{mean:.2f}" if half is None else f"{mean:.2f} ± {half:.2f}"


def _deployed(sparsity: float) -> str:
    """Return how many times faster than SpikingJelly's neurons and torch, by the batch size."""
    wanted = {"network": "VGG16", "densities": "uniform", "contender": "stock"}
    found = [
        f"{float(r['ratio_to_deployed']):.1f} (N = {r['N']})"
        for r in rows("deploy_cpu2")
        if float(r["sparsity"]) == sparsity and all(r[k] == v for k, v in wanted.items())
    ]
    return ", ".join(found) or "not measured"


def channels() -> str:
    """Return what whole channels cost and bring, by the sparsity of channels."""
    found = rows("channel_growth_cpu")
    dense = {r["seed"]: r for r in found if r["growth"] == "dense"}
    table = []
    for sparsity in sorted({r["sparsity"] for r in found if r["growth"] != "dense"}, key=float):
        for growth in ("gradient", "none"):
            mine = [r for r in found if (r["sparsity"], r["growth"]) == (sparsity, growth)]
            gaps = [float(dense[r["seed"]]["accuracy"]) - float(r["accuracy"]) for r in mine]
            mean, half = mean_and_interval(gaps)
            ratios = [float(r["macs"]) / float(dense[r["seed"]]["macs"]) for r in mine]
            latency = statistics.mean(float(r["latency_ratio"]) for r in mine)
            table.append([f"{float(sparsity):.0%}", growth, f"{mean:.2f} ± {half or 0:.2f}"])
            table[-1] += [f"{statistics.mean(ratios):.2f}", f"{latency:.2f}"]
    headers = [
        "channels pruned",
        "growth",
        "drop, points",
        "MACs of dense",
        "latency, compact / masked",
    ]
    return _markdown(table, headers)


TABLES = {
    "sparsity table": by_sparsity,
    "versus table": versus_magnitude,
    "channels table": channels,
}


def main() -> None:
    write_tables(PAGE, TABLES)


if __name__ == "__main__":
    main()
