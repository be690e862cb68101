"""Write the tables of docs/cost.md that were measured on a GPU, of every card with a CSV.

python -m benchmarks.gpu_tables
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from tabulate import tabulate

from benchmarks.readme import RESULTS, ROOT, write_tables

OFF, ALL = "sj_prune, recording off", "sj_prune, all statistics"

Row = dict[str, str]


def rows(name: str) -> Iterator[Row]:
    """Yield the rows of all cards, in the order of the files' names."""
    for path in sorted(RESULTS.glob(f"{name}_nvidia-*.csv")):
        with path.open() as file:
            yield from csv.DictReader(file)


def card(row: Row) -> str:
    return row["device"].removeprefix("NVIDIA ")


def written(table: list[list[str]], headers: list[str]) -> str:
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def times(row: Row, base: Row, key: str = "total_ms") -> str:
    return f"{float(row[key]):.3f} ms (x{float(base[key]) / float(row[key]):.2f})"


def neuron_step() -> str:
    """Return a line a layer and type, ATan: device time of replayed graphs."""
    layers: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows("neuron_step"):
        if row["surrogate"] == "ATan":
            key = (card(row), row["shape"], row["dtype"])
            layers.setdefault(key, {})[row["contender"]] = row
    table = []
    for (name, shape, dtype), found in layers.items():
        stock, off, recorded = found["stock"], found[OFF], found[ALL]
        added = float(recorded["total_ms"]) / float(off["total_ms"]) - 1
        table.append(
            [
                name,
                f"{shape}, {dtype}",
                f"{float(stock['total_ms']):.3f} ms, {stock['stock_runs']}",
                times(off, stock),
                times(recorded, stock),
                f"{100 * added:+.0f} %",
                f"{float(off['over_triton_float32']):.2f}",
                f"{float(off['speed_of_clone']):.2f}",
                f"{float(off['gigabytes_per_second']) / 1e3:.2f} TB/s",
            ]
        )
    headers = ["card", "layer", "stock", "recording off", "all five statistics", "they add"]
    headers += ["off over Triton in float32", "off over `clone`", "off, bandwidth"]
    return written(table, headers)


def neuron_bytes() -> str:
    table = [
        [
            card(row),
            row["dtype"],
            row["contender"],
            row["pass"],
            f"{int(row['bytes_needed']) / 1e6:.0f} MB",
            f"{float(row['moved_to_needed']):.2f}",
            f"{float(row['microseconds']):.0f} us",
        ]
        for row in rows("neuron_bytes")
    ]
    return written(table, ["card", "type", "", "pass", "needed", "moved over needed", "time"])


def training_step() -> str:
    table = [
        [
            card(row),
            row["amp"] or "float32",
            row["batch"],
            row["contender"],
            f"{float(row['milliseconds']):.1f} ms",
            f"{float(row['over_identities']):.2f}",
            row["launches"],
        ]
        for row in rows("training_step")
    ]
    headers = ["card", "type", "batch", "", "time", "over identities", "launches a step"]
    return written(table, headers)


def masks() -> str:
    """Return what masks cost a step of SEW-ResNet50, and what an update takes, if measured."""
    held = [
        [
            card(row),
            f"{row['optimizer']}: {row['contender']}",
            f"{float(row['milliseconds']):.2f} ms",
            f"{float(row['ratio_to_bare']):.2f} of bare",
        ]
        for row in rows("holding")
    ]
    updated = [
        [
            card(row),
            f"update of 100 M weights: {row['contender'].removeprefix('sj_prune: ')}",
            f"{1e3 * float(row['seconds']):.1f} ms",
            f"{float(row['ratio_to_whole_update']):.2f} of a whole update",
        ]
        for row in rows("mask_update")
    ]
    return written(held + updated, ["card", "", "time", "ratio"])


def observed() -> str:
    """Return a line a node and map: what observing it costs, over the node alone."""
    nodes: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows("observe"):
        mode = {"m": "multi", "s": "single"}[row["step_mode"]]
        key = (card(row), f"{row['node']}, {mode}-step", row["shape"])
        nodes.setdefault(key, {})[row["contender"]] = row
    table = []
    for key, found in nodes.items():
        recording = found.get("fused") or found.get("recording node")
        table.append(
            [*key, f"{float(found['alone']['forward_backward_ms']):.2f} ms"]
            + [f"{float(found[name]['times_alone']):.2f}" for name in ("observed", "criticality")]
            + [f"{float(recording['times_alone']):.2f}" if recording else "-"]
        )
    headers = ["card", "node", "`x_seq`", "alone", "observed", "criticality", "recording node"]
    return written(table, headers)


TABLES = {
    "gpu neuron table": neuron_step,
    "gpu bytes table": neuron_bytes,
    "gpu training table": training_step,
    "gpu masks table": masks,
    "gpu observe table": observed,
}


def main() -> None:
    write_tables(ROOT / "docs" / "cost.md", TABLES)


if __name__ == "__main__":
    main()
