"""Bytes that one neuron layer moves to and from device memory, counted by the hardware (`ncu`).

    python benchmarks/neuron_bytes.py [--device cuda] [--quick]

One forward and one backward pass of each contender after a warm-up, on a layer larger than any
cache; beside them the bytes that are needed: every operand once (x, spikes; x, dS, dx). Needs
NVIDIA's Nsight Compute in PATH, and nothing else that runs on the device; without it nothing is
written. A quick run prints the command alone.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from measure import environment, label, write_csv
from neuron_step import SURROGATES, contenders

SHAPE = (4, 128, 64, 32, 32)
OURS = ("sj_prune, recording off", "sj_prune, all statistics")
# In half precision the stock node is its torch reference: hundreds of kernels.
CONTENDERS = {"float32": ("stock", *OURS), "float16": OURS}
METRICS = {
    "dram__bytes_read.sum": "read",
    "dram__bytes_write.sum": "written",
    "gpu__time_duration.sum": "nanoseconds",
}
COMMAND = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
COMMAND += ["--profile-from-start", "off", "--metrics", ",".join(METRICS)]
MARK = "spin_kernel"  # what torch.cuda._sleep launches: it opens a section


def child() -> None:
    """Run every section once between marks, under the profiler."""
    for name, names in CONTENDERS.items():
        x = torch.randn(SHAPE, device="cuda").to(getattr(torch, name)).requires_grad_()
        grad = torch.randn_like(x)
        runs = contenders(x.device, SURROGATES["ATan"])
        for contender in names:
            for _ in range(3):
                torch.autograd.grad(runs[contender](x), x, grad)
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            for half in range(2):
                torch.cuda._sleep(1000)
                if half == 0:
                    out = runs[contender](x)
                else:
                    torch.autograd.grad(out, x, grad)
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


def sections(lines: Iterable[str]) -> Iterator[dict[str, float]]:
    """Yield the sums over the kernels of each section of what `ncu` prints."""
    rows = csv.DictReader(line for line in lines if line.startswith('"'))
    found: dict[str, float] | None = None
    for row in rows:
        if not row["ID"]:  # the line of units
            continue
        if MARK in row["Kernel Name"]:
            if found is not None:
                yield found
            found = dict.fromkeys(["kernels", *METRICS.values()], 0.0)
        elif found is not None:
            found["kernels"] += 1
            for metric, name in METRICS.items():
                found[name] += float(row[metric].replace(",", ""))
    if found is not None:
        yield found


def rows_of(found: list[dict[str, float]], device: str) -> list[dict[str, object]]:
    passes = ("forward", "backward")
    keys = [(d, c, half) for d, names in CONTENDERS.items() for c in names for half in passes]
    rows = []
    for (dtype, contender, half), section in zip(keys, found, strict=True):
        size = getattr(torch, dtype).itemsize * torch.Size(SHAPE).numel()
        needed = size * (2 if half == "forward" else 3)
        moved = section["read"] + section["written"]
        rows.append(
            {
                "contender": contender,
                "pass": half,
                "shape": "x".join(map(str, SHAPE)),
                "dtype": dtype,
                "kernels": int(section["kernels"]),
                "bytes_needed": needed,
                "bytes_read": int(section["read"]),
                "bytes_written": int(section["written"]),
                "moved_to_needed": round(moved / needed, 3),
                "microseconds": round(section["nanoseconds"] / 1e3, 1),
                **environment(device),
            }
        )
        last = rows[-1]
        print(
            f"{dtype:8} {contender:26} {half:9} {last['kernels']:4} kernels"
            f" x{last['moved_to_needed']} of what is needed, {last['microseconds']} us"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="print the command alone")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    command = [*COMMAND, sys.executable, str(Path(__file__)), "--child"]
    if args.child:
        child()
    elif args.quick:
        print(" ".join(command))
    elif shutil.which("ncu") is None:
        print("not measured: there is no ncu here")
    else:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"ncu failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        found = list(sections(done.stdout.splitlines()))
        print(write_csv(f"neuron_bytes_{label(args.device)}", rows_of(found, args.device)))


if __name__ == "__main__":
    main()
