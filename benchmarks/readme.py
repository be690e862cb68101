"""Write the generated tables of the README from the CSV files under results/.

python benchmarks/readme.py
"""

from __future__ import annotations

import csv
import re
import statistics
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def mask_update() -> str:
    table = [
        [r["contender"], f"{float(r['seconds']):.2f} s", f"{float(r['ratio_to_whole_update']):.2f}"]
        for r in rows("mask_update_cpu2")
    ]
    return tabulate(table, ["", "time", "ratio"], tablefmt="github", disable_numparse=True)


def neuron_step() -> str:
    wanted = {
        "stock": "SpikingJelly LIFNode, no recording",
        "stock + v_seq + statistics": "SpikingJelly LIFNode, statistics from `store_v_seq`",
        "sj_prune, recording off": "sj_prune, recording off",
        "sj_prune, all statistics": "sj_prune, all five statistics",
        "clone times constant": "limit: `clone` times a constant",
    }
    found = [r for r in rows("neuron_step_cpu2") if r["contender"] in wanted]
    cases = list(dict.fromkeys((r["shape"], r["surrogate"]) for r in found))
    table = [
        [text]
        + [
            next(
                f"{float(r['total_ms']):.2f} ms (x{float(r['speedup_over_stock']):.1f})"
                for r in found
                if (r["contender"], r["shape"], r["surrogate"]) == (name, *case)
            )
            for case in cases
        ]
        for name, text in wanted.items()
    ]
    headers = ["", *(f"{shape}, {surrogate}" for shape, surrogate in cases)]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def training_step() -> str:
    table = [
        [r["contender"], f"{float(r['milliseconds']):.0f} ms", f"{float(r['over_identities']):.2f}"]
        for r in rows("training_step_cpu2")
    ]
    return tabulate(table, ["", "time", "ratio"], tablefmt="github", disable_numparse=True)


def quickstart() -> str:
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows("quickstart_cpu"):
        groups.setdefault((row["method"], row["sparsity"]), []).append(row)
    table = []
    for (method, _), found in groups.items():
        accuracies = [float(r["accuracy"]) for r in found]
        reached = statistics.mean(float(r["sparsity_reached"]) for r in found)
        synops = statistics.mean(float(r["synops_after"]) for r in found)
        table.append(
            [
                method,
                "-" if method == "dense" else f"{100 * reached:.2f} %",
                f"{statistics.mean(accuracies):.2f} %",
                f"{min(accuracies):.2f} to {max(accuracies):.2f} %",
                f"{synops / 1e6:.2f} M",
            ]
        )
    seeds = len({row["seed"] for row in rows("quickstart_cpu")})
    headers = [
        "method",
        "sparsity",
        f"test accuracy, mean of {seeds} seeds",
        "range",
        "SynOps per image",
    ]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def insert(text: str, marker: str, table: str) -> str:
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"Expected the markers <!-- {marker} --> but found none")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    tables = {
        "quickstart table": quickstart,
        "neuron step table": neuron_step,
        "training step table": training_step,
        "mask update table": mask_update,
    }
    for marker, table in tables.items():
        text = insert(text, marker, table())
    readme.write_text(text)


if __name__ == "__main__":
    main()
