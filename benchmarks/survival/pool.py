"""Many cells at a time: processes that load torch once and take one cell after the other.

Networks of this size keep a GPU waiting for the next launch, so a process a core shares it.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.survival.cells import Cell

PATIENCE = 60  # seconds past the limit that a cell on a GPU gets to end, before it is killed
FAILURES = 5  # then there is more wrong than one cell


@dataclass(frozen=True)
class Settings:
    """What workers are told.

    Attributes:
        device: that cells run on.
        data: folder of .npy files; None: by torchvision, of `root`.
        root: of torchvision.
        generated: train on drawn images instead.
        out: folder of checkpoints.
        end: no cell starts after this, in seconds as `time.time` counts.
    """

    device: str
    data: Path | None
    root: Path
    generated: bool
    out: Path
    end: float

    def over(self) -> bool:
        """Tell whether time is up."""
        return time.time() >= self.end


def load(settings: Settings) -> Any:
    """Return the images on the device."""
    from benchmarks.survival import images

    if settings.generated:
        return images.generated(settings.device)
    return images.load(settings.data, settings.root, settings.device)


def run_here(cells: Sequence[Cell], settings: Settings, tell: Callable[[str, Any], None]) -> None:
    """Run cells one after the other in this process."""
    from benchmarks.survival.training import train

    images = load(settings)
    for cell in cells:
        if settings.over():
            return
        row = train(cell, images, settings.device, settings.out, settings.over)
        tell("stopped" if row is None else "done", cell.name if row is None else row)


class Pool:
    """Workers over a list of cells; rows come back to this process.

    Args:
        cells: in the order in which they start.
        settings: of the workers.
        workers: how many.
        tell: called with "done" and a row, "stopped" and a cell's name, "failed" and a traceback.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        settings: Settings,
        workers: int,
        tell: Callable[[str, Any], None],
    ) -> None:
        self.cells, self.settings, self.tell = list(cells), settings, tell
        # A thread each, and none of them before torch is there to read it.
        os.environ["OMP_NUM_THREADS"] = "1"
        self.context = multiprocessing.get_context("spawn")  # CUDA survives no fork
        self.next = self.context.Value("i", 0)
        self.results = self.context.Queue()
        self.failures = 0
        self.workers = [self._start() for _ in range(min(workers, len(self.cells)))]

    def _start(self) -> Any:
        arguments = (self.cells, self.settings, self.next, self.results)
        worker = self.context.Process(target=_work, args=arguments, daemon=True)
        worker.start()
        return worker

    def run(self) -> None:
        """Return once all workers have ended, or been killed long after the limit."""
        try:
            while any(worker.is_alive() for worker in self.workers) or not self.results.empty():
                self._listen()
                late = time.time() > self.settings.end + PATIENCE
                if late and self.settings.device.startswith("cuda"):  # paid by the minute
                    self.tell("failed", f"a worker did not end within {PATIENCE} s of the limit")
                    return
            self._look_for_killed()  # the last one may have been
        finally:
            for worker in self.workers:
                worker.terminate()

    def _listen(self) -> None:
        try:
            end, what = self.results.get(timeout=1)
        except queue.Empty:
            self._look_for_killed()
            return
        self.tell(end, what)
        if end == "failed":
            # A process whose CUDA has failed is of no use, so it ended: another takes its place.
            self.failures += 1
            left = self.next.value < len(self.cells) and not self.settings.over()
            if left and self.failures < FAILURES:
                self.workers.append(self._start())

    def _look_for_killed(self) -> None:
        killed = [worker for worker in self.workers if worker.exitcode]
        for worker in killed:
            self.workers.remove(worker)
            what = f"a worker was killed (exit code {worker.exitcode}), by want of memory perhaps"
            self.tell("failed", f"{what}: the cell that it had is not done")


def _work(cells: Sequence[Cell], settings: Settings, place: Any, results: Any) -> None:
    """Take cells until there is none or time is up; end at the first that fails."""
    import torch

    torch.set_num_threads(1)

    def taken() -> Cell | None:
        with place.get_lock():
            if settings.over() or place.value >= len(cells):
                return None
            place.value += 1
            return cells[place.value - 1]

    name = "start of a worker"
    try:
        images = None
        while (cell := taken()) is not None:
            name = cell.name
            images = load(settings) if images is None else images
            from benchmarks.survival.training import train

            row = train(cell, images, settings.device, settings.out, settings.over)
            results.put(("stopped", name) if row is None else ("done", row))
    except Exception:  # whatever it was: told, and the other workers go on
        results.put(("failed", f"{name}\n{traceback.format_exc()}"))
