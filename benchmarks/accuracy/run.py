"""Accuracy over sparsity: every method on the same network, data, epochs and augmentation.

    python -m benchmarks.accuracy --suite cpu --workers 2 --data-root data   # about an hour
    python -m benchmarks.accuracy --suite gpu --minutes 30 --data-root data  # as far as it gets
    python -m benchmarks.accuracy --quick                                    # under a minute
    python -m benchmarks.accuracy.pages                                      # table, plot, docs

A cell is one training by a script under examples/. Its checkpoints are in --out, its row goes to
the CSV once it is done: a cell with a row is skipped, one that was stopped, by --budget, --minutes,
Ctrl-C or worse, goes on where it was at the next run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from benchmarks.accuracy.cells import SUITES, Cell, shortened
from benchmarks.accuracy.rows import append_row, locked, make_row, read_rows, write_text
from benchmarks.measure import RESULTS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
GRACE = 120  # seconds that a training gets to finish its step and save

# ---- one cell, in a process of its own -----------------------------------------------------------


def train_cell(cell: Cell, args: argparse.Namespace) -> None:
    """Train, or go on; write ``row.json`` when it is done. Ends as the script does if stopped."""
    out = args.out / cell.name
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out), _clock(out):
        result = _script(cell.setup.script).main([*cell.arguments, *_running(args, out)])
    row = make_row(cell, result, json.loads((out / "clock.json").read_text()), args.device)
    write_text(json.dumps(row, indent=1), out / "row.json")


def _script(name: str):
    sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def _running(args: argparse.Namespace, out: Path) -> list[str]:
    """Return the arguments that the result does not depend on."""
    device = ["--device", args.device, "--threads", str(args.threads)]
    data = ["--data-root", str(args.data_root), *(["--download"] if args.download else [])]
    return ["--out", str(out), *device, *data]


@contextmanager
def _alone(out: Path):
    """Refuse to train a cell that another process trains."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out / "lock", wait=False))
        except BlockingIOError:
            raise SystemExit(f"Expected {out} to be free but another process trains it") from None
        yield


@contextmanager
def _clock(out: Path):
    """Note wall and CPU seconds of this session, start of the process included."""
    path = out / "clock.json"
    sessions = json.loads(path.read_text()) if path.exists() else []
    write_text(json.dumps([*sessions, None]), path)  # so it stays if the session is killed
    start = time.perf_counter()
    before = time.process_time()
    try:
        yield
    finally:
        spent = {"wall": before + time.perf_counter() - start, "cpu": time.process_time()}
        write_text(json.dumps([*sessions, spent]), path)


# ---- all cells -----------------------------------------------------------------------------------


class Runner:
    """Trains cells in processes of their own, a few at a time."""

    def __init__(self, args: argparse.Namespace, cells: list[Cell]) -> None:
        self.args, self.cells = args, cells
        self.stop = threading.Event()
        self.lock = threading.Lock()  # of the CSV and the terminal
        self.end = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
        self.ended = 0

    def run(self) -> dict[str, int]:
        """Train what is not done; return how many cells came to which end."""
        done = {row["cell"] for row in read_rows(self.args.results)}
        todo = [cell for cell in self.cells if cell.name not in done]
        print(f"{len(self.cells)} cells, {len(self.cells) - len(todo)} done before.", flush=True)
        self._prepare(todo)
        pool = ThreadPoolExecutor(self.args.workers)
        futures = [pool.submit(self._cell, cell) for cell in todo]
        try:
            ends = [future.result() for future in futures]
        except BaseException:  # Ctrl-C: the trainings save what they have
            self.stop.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return {end: ends.count(end) for end in ("done", "stopped", "failed", "not started")}

    def _prepare(self, cells: list[Cell]) -> None:
        """Make generated recordings and frames once, before several processes want them."""
        setups = {cell.setup for cell in cells if "dvs" in cell.setup.script}
        for setup in [setup for setup in setups if "--generated" in setup.arguments]:
            script = EXAMPLES / f"{setup.script}.py"
            arguments = ["--network", setup.network, *setup.arguments, "--dry-run"]
            running = _running(self.args, self.args.out / "prepare")
            command = [sys.executable, str(script), *arguments, *running]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=self._environment())

    def _environment(self) -> dict[str, str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | {
            "OMP_NUM_THREADS": str(self.args.threads),
            "PYTHONPATH": os.pathsep.join(paths),
        }

    def _cell(self, cell: Cell) -> str:
        if self.stop.is_set() or time.monotonic() >= self.end:
            return "not started"
        out = self.args.out / cell.name
        if not (out / "row.json").exists():
            code, stopped = self._train(cell, out)
            if code or not (out / "row.json").exists():
                end = "stopped" if stopped or code == 130 else "failed"
                self._say(f"{cell.name}: {end}, exit status {code}; see {out / 'output.txt'}")
                return end
        row = json.loads((out / "row.json").read_text())
        with self.lock:
            append_row(self.args.results, row, self.args.out / "csv.lock")
        self._say(f"{cell.name}: {row['accuracy']} %, {row['cpu_seconds']} s of CPU")
        return "done"

    def _train(self, cell: Cell, out: Path) -> tuple[int, bool]:
        """Run the process of a cell; stop it, so that it saves, when its time is over."""
        out.mkdir(parents=True, exist_ok=True)
        args = self.args
        command = [sys.executable, "-m", "benchmarks.accuracy", "--suite", args.suite]
        command += ["--cell", cell.name, "--part", str(args.part), *_running(args, args.out)]
        end = min(self.end, time.monotonic() + args.budget if args.budget else float("inf"))
        with (out / "output.txt").open("ab") as output:
            # A session of its own: Ctrl-C reaches it once, through us.
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment(),
            )
            stopped = False
            while process.poll() is None:
                if not stopped and (self.stop.is_set() or time.monotonic() >= end):
                    stopped, grace = True, time.monotonic() + GRACE
                    process.send_signal(signal.SIGTERM)
                if stopped and time.monotonic() >= grace:
                    process.kill()
                time.sleep(0.1)
        return process.returncode, stopped

    def _say(self, text: str) -> None:
        with self.lock:
            self.ended += 1
            print(f"[{self.ended}] {time.strftime('%H:%M:%S')} {text}", flush=True)


# ---- command line --------------------------------------------------------------------------------


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", choices=list(SUITES), default="cpu")
    add("--quick", action="store_true", help="the suite that only shows that everything runs")
    add("--only", default="", metavar="REGEX", help="cells whose name has it")
    add("--part", type=float, default=1.0, help="of the epochs; labelled as shortened")
    add("--list", action="store_true", help="name the cells and which are done, and stop")
    add("--workers", type=int, default=1, help="trainings at a time")
    add("--threads", type=int, default=1, help="of the CPU, a training")
    add("--budget", type=float, default=0, help="seconds a cell in this run; 0: no limit")
    add("--minutes", type=float, default=0, help="of this run as a whole; 0: no limit")
    add("--out", type=Path, default=Path("runs/accuracy"), help="checkpoints and output of cells")
    add("--results", type=Path, default=None, help="the CSV; benchmarks/results/accuracy_SUITE.csv")
    add("--data-root", type=Path, default=Path("data"))
    add("--download", action="store_true", help="fetch data sets that are not there")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--cell", default="", help=argparse.SUPPRESS)  # train this one in this process
    args = parser.parse_args(arguments)
    if args.quick:
        args.suite = "quick"
    default = args.out if args.suite == "quick" else RESULTS
    args.results = args.results or default / f"accuracy_{args.suite}.csv"
    if args.device == "auto" and not torch.cuda.is_available():
        args.device = "cpu"
    return args


def cells_of(args: argparse.Namespace) -> list[Cell]:
    cells = SUITES[args.suite]()
    if args.part != 1:
        cells = shortened(cells, args.part)
    return [cell for cell in cells if re.search(args.only, cell.name)]


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    cells = cells_of(args)
    if args.cell:
        train_cell(next(cell for cell in cells if cell.name == args.cell), args)
        return
    if args.list:
        done = {row["cell"] for row in read_rows(args.results)}
        for cell in cells:
            print("done " if cell.name in done else "     ", cell.name, cell.settings_text)
        return

    def terminate(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        ends = Runner(args, cells).run()
    except KeyboardInterrupt:
        sys.exit("\nStopped; the same command goes on from there.")
    print(", ".join(f"{number} {end}" for end, number in ends.items()) + f". {args.results}")
    if ends["failed"]:
        sys.exit(1)
