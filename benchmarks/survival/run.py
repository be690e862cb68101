"""What criticality adds, in pairs; and a real training, on CIFAR-10.

    python -m benchmarks.survival --suite settle --workers 2          # on the CPU: days of it
    python -m benchmarks.survival --suite settle --device cuda --workers 16 --limit 300
    python -m benchmarks.survival --suite confirm --arms best --device cuda --workers 16
    python -m benchmarks.survival --suite cifar --arms dense --workers 2     # then all arms:
    python -m benchmarks.survival --suite cifar --workers 2
    python -m benchmarks.survival.pages                               # tables, plots, docs

Every finished cell is a row of the CSV at once, and a cell with a row is skipped: a run that was
stopped goes on where it was. `settle` compares all arms at 95 % on a part of CIFAR-10; `confirm`
the best of them, trained longer and with the paper's SGD, on seeds on which nothing was chosen;
`cifar` trains on all of it, saved after each epoch, its first epochs dense and once for all arms of
a seed (so one arm of each comes first); `quick` shows that everything runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.accuracy.rows import append_row, read_rows
from benchmarks.measure import RESULTS, label
from benchmarks.survival.cells import SUITES, Cell, cells
from benchmarks.survival.pool import Pool, Settings, run_here
from benchmarks.survival.tables import best_arms, read


def seeds(text: str) -> range:
    """Return the seeds of ``A-B``, or of ``A`` alone."""
    first, _, last = text.partition("-")
    found = range(int(first), int(last or first) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"Expected A-B with A <= B but got {text!r}")
    return found


def whole(text: str) -> int:
    """Return a number of 0 or more."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"Expected 0 or more but got {text}")
    return int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", choices=list(SUITES), default="settle")
    add(
        "--arms",
        nargs="+",
        default=[],
        help="of the suite; best: by settle's rows",
    )
    add("--recipes", nargs="+", default=[], help="of the suite, as x4 and sgd; all")
    add("--seeds", type=seeds, metavar="A-B", help="from A to B; the suite's")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--workers", type=whole, default=1, help="processes; 0: in this one")
    add("--limit", type=float, default=0, help="seconds after which no cell starts; 0: none")
    add("--data", type=Path, default=None, help="folder of train_x.npy, ...; by torchvision")
    add("--data-root", type=Path, default=Path("data"), help="of torchvision")
    add("--out", type=Path, default=Path("runs/survival"), help="checkpoints")
    add("--results", type=Path, default=None, help="the CSV")
    add("--list", action="store_true", help="name the cells and which are done, and stop")
    args = parser.parse_args(arguments)
    folder = args.out if args.suite == "quick" else RESULTS
    args.results = args.results or folder / f"survival_{label(args.device)}.csv"
    return args


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """Return the cells that are asked for."""
    try:
        best = args.arms == ["best"]
        arms = ["magnitude", *best_arms(read(args.results.parent))] if best else args.arms
        return cells(args.suite, arms, args.seeds or (), args.recipes)
    except ValueError as error:
        raise SystemExit(str(error)) from error


class Teller:
    """Writes rows, and says what comes of the cells."""

    def __init__(self, results: Path, out: Path, number: int) -> None:
        self.results, self.out, self.number = results, out, number
        self.ends: Counter[str] = Counter()
        self.start = time.monotonic()

    def __call__(self, end: str, what: object) -> None:
        self.ends[end] += 1
        if isinstance(what, dict):
            append_row(self.results, what, self.out / "lock")
            what = (
                f"{what['cell']}: {what['accuracy']:.2f} %, {what['energy_nj']:.0f} nJ, "
                f"{what['wall_seconds']:.1f} s, of the processor {what['cpu_seconds']:.1f} s"
            )
        seconds = time.monotonic() - self.start
        place = f"{sum(self.ends.values())}/{self.number}"
        print(f"{seconds:6.1f} s [{place}] {end}: {what}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    end = time.time() + args.limit if args.limit else float("inf")
    done = {row["cell"] for row in read_rows(args.results)}
    wanted = cells_of(args)
    if args.list:
        for cell in wanted:
            print("done " if cell.name in done else "     ", cell.name, "-", cell.what.title)
        return
    todo = [cell for cell in wanted if cell.name not in done]
    print(f"{len(wanted)} cells, {len(wanted) - len(todo)} done before.", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    tell = Teller(args.results, args.out, len(todo))
    drawn = args.suite == "quick"
    settings = Settings(args.device, args.data, args.data_root, drawn, args.out, end)
    if args.workers and todo:
        Pool(todo, settings, args.workers, tell).run()
    elif todo:
        run_here(todo, settings, tell)
    left = len(todo) - tell.ends["done"]
    print(f"{dict(tell.ends)}, {left} cells left. {args.results}")
    if tell.ends["failed"]:
        sys.exit(1)
