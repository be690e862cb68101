"""Everything that only a GPU can prove, in one command of at most eight minutes.

    python benchmarks/gpu_all.py [--out FOLDER] [--limit 480] [--wheels FOLDER] [--only PART ...]
    python benchmarks/gpu_all.py --dry-run

A smoke test, the CUDA benchmarks, then the `gpu` tests, each in a process of its own with a limit
of its own. FOLDER receives ``summary.txt`` and one archive of every log and CSV, named after the
card; a part that ran out of time is reported as not measured, a part that failed makes exit code 1.
Neither git nor an installed sj_prune is needed: `gpu_wheels.py` makes the wheels to carry.

A dry run does all of it on a CPU: the same scripts on small inputs, the launches stubbed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import label

HERE = Path(__file__).parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Part:
    """A command, the same on a CPU, and its limit in seconds."""

    command: list[str]
    dry: list[str]
    seconds: float


def script(name: str, *arguments: str, quick: tuple[str, ...] = ("--quick",)) -> list[list[str]]:
    start = [sys.executable, str(HERE / name), *arguments, "--device"]
    return [[*start, "cuda"], [*start, "cpu", *quick]]


def tests(*arguments: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--dist", "load"]
    return [*command, "--hypothesis-profile=gpu", *arguments]


SMOKE = "capture or two_streams or gradient_error"
PARTS = {
    "environment": Part(*[[sys.executable, "-m", "sj_prune"]] * 2, seconds=45),
    "smoke": Part(
        tests("-m", "gpu", "-n", "6", "-k", SMOKE, "tests/engines/test_cuda_engine.py"),
        tests("-n", "0", "tests/engines/test_cuda_launch.py"),
        seconds=60,
    ),
    "neuron step": Part(*script("neuron_step.py"), seconds=75),
    "training step": Part(*script("training_step.py"), seconds=40),
    "training step bfloat16": Part(*script("training_step.py", "--amp", "bfloat16"), seconds=40),
    "holding": Part(*script("holding.py"), seconds=45),
    "mask update": Part(*script("mask_update.py"), seconds=30),
    "observe": Part(*script("observe.py"), seconds=45),
    "neuron bytes": Part(*script("neuron_bytes.py"), seconds=45),
    "gpu tests": Part(
        tests("-m", "gpu", "-n", "auto", "--durations=20"),
        tests("-m", "gpu", "-n", "0", "--collect-only"),
        seconds=240,
    ),
}


def installed(wheels: Path | None, folder: Path) -> list[str]:
    """Install `wheels` into `folder`; return what the children's path begins with."""
    if wheels is None:
        return [str(ROOT)]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    found = sorted(map(str, wheels.glob("*.whl")))
    subprocess.run([*command, "--target", str(folder), *found], check=True)
    return [str(ROOT), str(folder)]


def environment_of(path: list[str], results: Path) -> dict[str, str]:
    # The tests choose their engine; a forced one would hide what `auto` does.
    environment = {k: v for k, v in os.environ.items() if k != "SJ_PRUNE_ENGINE"}
    path = [*path, *filter(None, [os.environ.get("PYTHONPATH")])]
    return environment | {
        "PYTHONPATH": os.pathsep.join(path),
        "SJ_PRUNE_RESULTS": str(results),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def run(command: list[str], log: Path, environment: dict[str, str], seconds: float) -> str:
    if seconds < 5:
        return "not measured: out of time"
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "not measured in full: out of time"
    return "ok" if done.returncode == 0 else f"failed with exit code {done.returncode}"


def archive(folder: Path, out: Path, card: str) -> Path:
    """Pack `folder`, logs and results, into one file of `out`."""
    path = out / f"gpu_all_{card}.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, arcname=card)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu_all")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds for everything")
    parser.add_argument("--wheels", type=Path, help="folder that gpu_wheels.py filled")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, on small inputs")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("Expected a CUDA device but torch finds none: nothing was measured")
    args.out.mkdir(parents=True, exist_ok=True)
    card = label("cpu" if args.dry_run else "cuda")
    start, results = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "all"
        folder.mkdir()
        path = installed(args.wheels, Path(name) / "site")
        environment = environment_of(path, folder / "results")
        for part in args.only:
            began = time.monotonic()
            left = args.limit - (began - start)
            limit = left if args.dry_run else min(PARTS[part].seconds, left)
            command = PARTS[part].dry if args.dry_run else PARTS[part].command
            log = folder / f"{part.replace(' ', '_')}.log"
            results[part] = run(command, log, environment, limit)
            took = time.monotonic() - began
            print(f"{part:24} {results[part]} ({took:.0f} s)", flush=True)
            lines = log.read_text().splitlines() if log.exists() else []
            print("\n".join(f"    {line[:160]}" for line in lines[-8:]), flush=True)
        summary = "\n".join(f"{part:24} {result}" for part, result in results.items())
        (args.out / "summary.txt").write_text(f"{card}\n{summary}\n")
        print(archive(folder, args.out, card))
    if any(result != "ok" for result in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
