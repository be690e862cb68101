"""What deploy() brings: latency of pruned networks, packed and sparse, beside stock SpikingJelly.

    python benchmarks/deploy.py [--clock wall|cpu] [--cases main|all] [--compile] [--no-onnx]

Random weights, each network pruned at random in every layer ("uniform") or by magnitude over all
layers ("global"), norms shifted so that each neuron layer fires at the given rate on the input.
Contenders run in turns on the same input, T = 4; a time is the median over turns, a ratio the
median over turns of a turn's ratio to the deployed network. "folded" has its norms folded into the
weights; "nodes" has sj_prune's fused neurons besides, recording off. ONNX Runtime runs the same
network exported over all steps, where it is installed; ``--compile`` adds `torch.compile` with
freezing for pruned VGG16 and one image. ``--clock cpu`` times one thread by its processor time,
which other processes on the machine disturb little; "wall" needs an idle machine and uses torch's
number of threads. The main cases take 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from deploy_contenders import Run, contenders, onnx_missing
from deploy_networks import NETWORKS, prune, set_rate
from measure import environment, label, write_csv

import sj_prune

STEPS = 4
# network, densities, sparsity, rate, N
MAIN = [
    *(("VGG16", "uniform", s, 0.1, 1) for s in (0.0, 0.9, 0.95, 0.98)),
    ("VGG16", "global", 0.98, 0.1, 1),
    ("VGG16 average", "uniform", 0.95, 0.1, 1),
    ("ResNet19", "uniform", 0.95, 0.1, 1),
    ("SEW-ResNet18", "uniform", 0.95, 0.1, 1),
    *(("VGG16", "uniform", s, 0.1, 32) for s in (0.0, 0.9, 0.95, 0.98)),
    ("VGG16", "global", 0.98, 0.1, 32),
]
COMPILED = [("VGG16", "uniform", s, 0.1, 1) for s in (0.9, 0.95, 0.98)]  # a minute each
ALL = [
    (name, kind, s, rate, n)
    for name in NETWORKS
    for kind in ("uniform", "global")
    for s in (0.8, 0.9, 0.95, 0.98, 0.99)
    for rate in (0.05, 0.1, 0.2)
    for n in (1, 32)
]
Case = tuple[str, str, float, float, int]


_BUILD = """
import time, torch
from sj_prune.engines import deploy_engine
from sj_prune.neurons.reference import LIF, Equations
start = time.perf_counter()
deploy_engine.library(Equations(LIF, 2.0, True, 1.0, 0.0, True))
print(time.perf_counter() - start)
"""


def build_seconds() -> dict[str, str]:
    """Return how long the engine takes for one kind of neuron: compiled, and from the cache."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("build_seconds", "cached_seconds"):
            done = subprocess.run(
                [sys.executable, "-c", _BUILD],
                env=os.environ | {"SJ_PRUNE_CACHE": folder},
                capture_output=True,
                text=True,
                check=True,
            )
            found[name] = f"{float(done.stdout):.2f}"
    return found


def timed(runs: dict[str, Run], turns: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            run()  # caches hold this contender's data, not the last one's
            start = clock()
            run()
            if turn:
                times[name].append(clock() - start)
    return times


def measure(case: Case, args: argparse.Namespace) -> list[dict[str, object]]:
    name, kind, sparsity, rate, samples = case
    torch.manual_seed(0)
    net, size = NETWORKS[name]()
    x = torch.rand(1, samples, 3, size, size).expand(STEPS, -1, -1, -1, -1).contiguous()
    prune(net, sparsity, kind)
    rates = set_rate(net, x, rate)
    start = time.perf_counter()
    fast = sj_prune.deploy(net, x, check=False)
    seconds = time.perf_counter() - start
    names: tuple[str, ...] = () if args.no_onnx or onnx_missing() else ("ONNX Runtime",)
    if args.compile and case in COMPILED:
        names += ("torch.compile",)
    runs = contenders(net, x, names)
    runs["deployed"] = lambda: fast(x)
    expected = runs["stock"]()
    differences = {k: float((run() - expected).abs().max()) for k, run in runs.items()}
    clock = time.thread_time if args.clock == "cpu" else time.perf_counter
    times = timed(runs, args.turns, clock)
    rows = []
    for contender, found in times.items():
        ratios = [a / b for a, b in zip(found, times["deployed"], strict=True)]
        rows.append(
            {
                "network": name,
                "densities": kind,
                "sparsity": sparsity,
                "rate": f"{statistics.mean(rates):.3f}",
                "N": samples,
                "contender": contender,
                "milliseconds": f"{1e3 * statistics.median(found):.3f}",
                "ratio_to_deployed": f"{statistics.median(ratios):.2f}",
                "ratio_lowest": f"{min(ratios):.2f}",
                "ratio_highest": f"{max(ratios):.2f}",
                "turns": args.turns,
                "clock": args.clock,
                "deploy_seconds": f"{seconds:.1f}",
                "kernels": " ".join(sorted({r.kernel for r in fast.report().rows})),
                "output_difference": f"{differences[contender]:.2g}",
                **environment("cpu"),
            }
        )
        print(rows[-1]["contender"], rows[-1]["milliseconds"], rows[-1]["ratio_to_deployed"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--cases", choices=("main", "all"), default="main")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="torch.compile with freezing too")
    parser.add_argument("--no-onnx", action="store_true", help="leave ONNX Runtime out")
    args = parser.parse_args()
    if problem := onnx_missing():
        print("ONNX Runtime is left out:", problem)
    if args.clock == "cpu":
        torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    build = build_seconds()
    print(build)
    for case in MAIN if args.cases == "main" else ALL:
        print(*case)
        rows += [row | build for row in measure(case, args)]
        print(write_csv(f"deploy_{label('cpu')}", rows))


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()
