"""What every benchmark shares: the environment of a row, timing by medians, CSV files."""

from __future__ import annotations

import csv
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

#: where results go; a run on a foreign machine collects them elsewhere
RESULTS = Path(os.environ.get("SJ_PRUNE_RESULTS") or Path(__file__).parent / "results")


def environment(device: str) -> dict[str, str]:
    """Return the columns that say where a number comes from."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    # A rented machine may have neither git nor a history: whoever carries the tree there names it.
    commit = os.environ.get("SJ_PRUNE_COMMIT")
    if not commit and shutil.which("git"):
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(torch.device(device))
    else:
        name = f"cpu {platform.machine()} x{torch.get_num_threads()}"
    return {
        "commit": commit or "unknown",
        "device": name,
        "torch": torch.__version__,
        "spikingjelly": version("spikingjelly"),
        "python": platform.python_version(),
    }


def label(device: str) -> str:
    """Return the part of a result file's name that tells the environment."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device)).lower().replace(" ", "-")
    return f"cpu{torch.get_num_threads()}"


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(torch.device(device))


def seconds(
    run: Callable[[], object],
    device: str,
    repeats: int,
    warmup: int = 1,
    before: Callable[[], object] = lambda: None,
) -> float:
    """Return the median wall time of `run`; what is to be done before each is not in it."""
    times = []
    for i in range(warmup + repeats):
        before()
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def write_csv(name: str, rows: Sequence[dict[str, object]]) -> Path:
    """Replace ``results/<name>.csv`` by `rows`, which share their keys."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
