"""Wheels of what a GPU machine lacks, to carry there: `gpu_all.py --wheels FOLDER` installs them.

    python benchmarks/gpu_wheels.py FOLDER [--python 3.12] [PACKAGE ...]

For a machine that has torch, CuPy, SciPy, pytest and hypothesis but no network. Dependencies are
not followed: torch must not travel.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PACKAGES = ["spikingjelly==2.0.0", "loguru", "SciencePlots", "Torch-Pruning>=1.6"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", nargs="*", default=PACKAGES)
    parser.add_argument("--python", default="3.12", help="of that machine")
    args = parser.parse_args()
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", args.python, "-d", str(args.folder), *args.packages]
    subprocess.run(command, check=True)
    for wheel in sorted(args.folder.glob("*.whl")):
        print(f"{wheel.name}  {wheel.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
