"""Everything that only a GPU can prove, in one command of at most eight minutes.

    python benchmarks/gpu_all.py [--out FOLDER] [--limit 480]

Runs the `gpu` tests and every CUDA benchmark, each in a process of its own with what is left of the
time, and copies logs and CSVs to FOLDER. Ends with one line a part, and with exit code 1 if a part
failed; a part that ran out of time is reported as not measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import RESULTS

HERE = Path(__file__).parent
PARTS = {
    "environment": [sys.executable, "-m", "sj_prune"],
    "gpu tests": [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"],
    "neuron step": [sys.executable, str(HERE / "neuron_step.py"), "--device", "cuda"],
    "training step": [sys.executable, str(HERE / "training_step.py"), "--device", "cuda"],
    "training step bfloat16": [
        *[sys.executable, str(HERE / "training_step.py"), "--device", "cuda"],
        *["--amp", "bfloat16"],
    ],
    "mask update": [sys.executable, str(HERE / "mask_update.py"), "--device", "cuda"],
    "holding": [sys.executable, str(HERE / "holding.py"), "--device", "cuda"],
}


def run(name: str, command: list[str], folder: Path, seconds: float) -> str:
    log = folder / f"{name.replace(' ', '_')}.log"
    # The tests choose their engine; a forced one would hide what `auto` does.
    environment = {k: v for k, v in os.environ.items() if k != "SJ_PRUNE_ENGINE"}
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command,
                cwd=HERE.parent,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=max(1.0, seconds),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "not measured: out of time"
    return "ok" if done.returncode == 0 else f"failed with exit code {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "gpu_all")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds for everything")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("Expected a CUDA device but torch finds none: nothing was measured")
    args.out.mkdir(parents=True, exist_ok=True)
    start, results = time.monotonic(), {}
    for name, command in PARTS.items():
        began = time.monotonic()
        results[name] = run(name, command, args.out, args.limit - (began - start))
        print(f"{name:24} {results[name]} ({time.monotonic() - began:.0f} s)", flush=True)
        log = (args.out / f"{name.replace(' ', '_')}.log").read_text().splitlines()
        print("\n".join(f"    {line}" for line in log[-12:]), flush=True)
    for path in RESULTS.glob("*.csv"):
        if "cpu" not in path.name:
            shutil.copy(path, args.out / path.name)
    if any(result != "ok" for result in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
