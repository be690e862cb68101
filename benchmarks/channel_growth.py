"""SCA with growth against SCA without, at equal channel sparsity, on a part of CIFAR-10.

    python benchmarks/channel_growth.py --data-root data [--seeds 0 1 2] [--workers 2]

Runs examples/channels.py once for every seed, sparsity and growth (and dense), each in a process of
its own on one thread: the same network, images, epochs and learning rates, and the same number of
kept channels. What is new against pruning alone is only which channels are kept. A run that has
finished is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from measure import environment, write_csv

EXAMPLE = Path(__file__).parent.parent / "examples" / "channels.py"

SETTINGS = {
    "dataset": "cifar10",
    "train_images": 4096,  # the first ones of the training set
    "test_images": 2000,
    "epochs": 12,  # masks change at the end of the first nine
    "time_steps": 2,
    "widths": (16, 32, 64),
    "blocks": 1,
    "reduce": 4,
}
REGROW = {0.5: 0.1, 0.7: 0.1, 0.85: 0.05}  # sparsity -> fraction of all channels that growth picks
GROWTHS = {
    "gradient": [],  # as published: |dL/dgamma|
    "none": ["--regrow", "0"],
    "random": ["--set", "growth=random"],
}


def cases(args: argparse.Namespace) -> list[tuple[int, float, str]]:
    """Return (seed, sparsity, growth) of every run."""
    pruned = [(sparsity, growth) for sparsity in args.sparsities for growth in args.growths]
    return [(seed, *case) for case in [(0.0, "dense"), *pruned] for seed in args.seeds]


def command(case: tuple[int, float, str], args: argparse.Namespace, out: Path) -> list[str]:
    """Return the command of one run."""
    seed, sparsity, growth = case
    found = [sys.executable, str(EXAMPLE), "--threads", "1", "--seed", str(seed), "--out", str(out)]
    found += ["--device", "cpu", "--no-dense", "--data-root", str(args.data_root)]
    for name, value in SETTINGS.items():
        values = value if isinstance(value, tuple) else (value,)
        found += [f"--{name.replace('_', '-')}", *map(str, values)]
    if growth == "dense":
        return [*found, "--method", "dense"]
    regrow = [] if growth == "none" else ["--regrow", str(REGROW[sparsity])]
    return [*found, "--sparsity", str(sparsity), *regrow, *GROWTHS[growth]]


def run(case: tuple[int, float, str], args: argparse.Namespace) -> dict[str, object]:
    """Run one case, unless it is done, and return its row."""
    out = args.out / "_".join(map(str, case))
    if not (out / "cpu_seconds").exists():
        out.mkdir(parents=True, exist_ok=True)
        with (out / "output.txt").open("w") as log:
            process = subprocess.Popen(command(case, args, out), stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"Expected {case} to finish: read {out / 'output.txt'}")
        (out / "cpu_seconds").write_text(f"{usage.ru_utime + usage.ru_stime:.1f}")
    row = _row(case, json.loads((out / "result.json").read_text()))
    row["cpu_seconds"] = (out / "cpu_seconds").read_text()
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


def _row(case: tuple[int, float, str], result: dict[str, float]) -> dict[str, object]:
    seed, sparsity, growth = case
    row: dict[str, object] = {"seed": seed, "sparsity": sparsity, "growth": growth}
    row["regrow"] = REGROW[sparsity] if growth in ("gradient", "random") else 0.0
    if growth == "dense":
        names = {"accuracy": "accuracy_dense", "macs": "macs_dense", "synops": "synops_dense"}
    else:
        names = {
            "accuracy": "accuracy_compact",
            "macs": "macs_dense_after",
            "synops": "synops_after",
        }
    row |= {name: round(result[key], 4) for name, key in names.items()}
    for name in ("channels_before", "channels_after"):
        row[name] = "" if growth == "dense" else int(result[name])
    # The masked network, as wide as the dense one, is timed in turns with the compact one.
    dense = growth == "dense"
    row["latency_ratio"] = (
        1.0 if dense else round(result["latency_after"] / result["latency_before"], 4)
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/channel_growth"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsities", type=float, choices=[*REGROW], nargs="+", default=[*REGROW])
    parser.add_argument("--growths", choices=[*GROWTHS], nargs="+", default=[*GROWTHS])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, a thread each")
    args = parser.parse_args()
    torch.set_num_threads(1)  # of every run too, and said so in the rows
    where = {key: str(value) for key, value in SETTINGS.items()} | environment("cpu")
    with ThreadPoolExecutor(args.workers) as pool:
        rows = list(pool.map(lambda case: run(case, args), cases(args)))
    print(write_csv("channel_growth_cpu", [row | where for row in rows]))


if __name__ == "__main__":
    main()
