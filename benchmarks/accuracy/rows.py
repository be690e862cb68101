"""The rows of `benchmarks.accuracy`: a finished training, and a CSV that is whole at any moment."""

from __future__ import annotations

import csv
import io
import os
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.accuracy.cells import Cell, imp_epochs
from benchmarks.measure import environment

COLUMNS = (
    *("suite", "group", "dataset", "network", "method", "settings", "sparsity"),
    *("sparsity_reached", "seed", "epochs", "schedule", "accuracy", "best_accuracy"),
    *("synops", "analog_macs", "energy_nj", "parameters", "parameters_nonzero", "wall_seconds"),
    *("cpu_seconds", "sessions", "imp_epochs", "epochs_over_imp", "cell", "commit", "device"),
    *("sj_prune", "torch", "spikingjelly", "python", "arguments"),
)


def make_row(cell: Cell, result: dict, sessions: list, device: str) -> dict:
    """Return the row of a finished cell.

    Seconds are empty if a session was killed outright: what it took is not known.
    """
    import sj_prune

    known = all(sessions)
    reference = imp_epochs(cell.sparsity, cell.setup.epochs)
    row = {
        "suite": cell.suite,
        "group": cell.group,
        "dataset": cell.setup.dataset,
        "network": cell.setup.network,
        "method": cell.method,
        "settings": cell.settings_text,
        "sparsity": cell.sparsity,
        "sparsity_reached": round(result["sparsity"], 6),
        "seed": cell.seed,
        "epochs": cell.setup.epochs,
        "schedule": cell.setup.schedule,
        "accuracy": round(result["accuracy"], 4),
        "best_accuracy": round(result["best"], 4),
        "synops": round(result["synops"]),
        "analog_macs": round(result["analog_macs"]),
        "energy_nj": round(result["picojoules"] / 1000, 3),
        "parameters": result["parameters"],
        "parameters_nonzero": result["parameters_nonzero"],
        "wall_seconds": round(sum(s["wall"] for s in sessions), 1) if known else "",
        "cpu_seconds": round(sum(s["cpu"] for s in sessions), 1) if known else "",
        "sessions": len(sessions),
        "imp_epochs": reference,
        "epochs_over_imp": round(cell.setup.epochs / reference, 4),
        "cell": cell.name,
        **environment("cuda" if device == "auto" and torch.cuda.is_available() else device),
        "sj_prune": sj_prune.__version__,
        "arguments": f"{cell.setup.script}.py {' '.join(cell.arguments)}",
    }
    assert set(row) == set(COLUMNS), set(row) ^ set(COLUMNS)
    return {name: row[name] for name in COLUMNS}


@contextmanager
def locked(path: Path, wait: bool = True):
    """Hold a lock that ends with the process at the latest.

    Raises:
        BlockingIOError: another process has it, and `wait` is False.
    """
    import fcntl  # not on Windows

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def write_text(text: str, path: Path) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: dict, lock: Path) -> None:
    """Add a row, unless its cell has one; the file is whole at any moment.

    Several runs may write to it, if they share `lock`.
    """
    with locked(lock):
        rows = read_rows(path)
        if any(r["cell"] == row["cell"] for r in rows):
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(text.getvalue(), path)
