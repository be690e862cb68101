"""What the README's command takes and finds: one process a seed, as a visitor runs it.

    python benchmarks/first_minutes.py --seeds 0 1 2

Writes the rows of all seeds to results/quickstart_cpu.csv; its column `run_cpu_seconds` is the
processor time of the whole process, of what it loads and of the compilers that it calls, whose
libraries are not cached yet.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def one(seed: int, folder: Path) -> list[dict[str, str]]:
    """Run the quickstart on one core and return its rows."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "examples/quickstart.py", "--seeds", str(seed), "--out", str(folder)]
    caches = os.environ | {"SJ_PRUNE_CACHE": str(folder / "cache")}
    subprocess.run(command, cwd=ROOT, env=caches, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with (folder / "results.csv").open() as file:
        return [row | {"run_cpu_seconds": f"{seconds:.1f}"} for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    rows = []
    for seed in parser.parse_args().seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows += one(seed, Path(folder))
    with (ROOT / "benchmarks" / "results" / "quickstart_cpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
