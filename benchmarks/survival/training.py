"""One training: a cell on images that are on the device. Nothing waits for the device in a step."""

from __future__ import annotations

import copy
import json
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from torch import Tensor

import sj_prune
from benchmarks.measure import environment
from benchmarks.survival.cells import Cell
from benchmarks.survival.images import Images
from sj_prune import cost
from sj_prune.run.history import UpdateRecord, totals

COSTED = 500  # test images that operations are counted on


class Training:
    """The state of one cell, and the loop over it."""

    def __init__(
        self, cell: Cell, images: Images, device: str, shared: dict[str, Any] | None = None
    ) -> None:
        self.cell, self.recipe, self.device = cell, cell.recipe, torch.device(device)
        self.images = images.subset(self.recipe.train_images)
        self.batches = len(self.images.y) // self.recipe.batch
        torch.manual_seed(cell.seed)
        net = self.recipe.build().to(self.device, memory_format=torch.channels_last)
        if shared:
            net.load_state_dict(shared["model"])
        make = cell.what.method
        # The neurons of a dense network are ours too: one implementation in all cells.
        self.model = (
            sj_prune.to_recording(net)
            if make is None
            else sj_prune.PruningWrapper(net, make(self.recipe.when(self.batches)), seed=cell.seed)
        )
        self.optimizer = self.recipe.make_optimizer(self.model.parameters())
        self.step, self.epoch, self.curve = 0, 0, []
        self.seconds = [0.0, 0.0]  # by the clock, and of the processor
        if shared:
            self.optimizer.load_state_dict(shared["optimizer"])
            own = {} if make is None else {"seconds": [0.0, 0.0]}  # counted once, by dense
            self._take_up({**shared["progress"], **own})
        if make is not None:
            self.model.attach(self.optimizer)

    def run_epoch(self) -> None:
        """Train for an epoch; test after the last one, and where an epoch is long after each."""
        clock = time.perf_counter(), time.process_time()
        torch.manual_seed(1_000_003 * self.cell.seed + self.epoch)  # of dropout
        self.model.train()
        crops = self.recipe.crops(self.epoch)
        for x, y in self.images.epoch(self.recipe.batch, self.cell.seed, self.epoch, crops):
            self._step(x, y)
        self.epoch += 1
        if not self.recipe.train_images or self.epoch == self.recipe.epochs:
            self.curve.append(self._accuracy())
        self.seconds[0] += time.perf_counter() - clock[0]
        self.seconds[1] += time.process_time() - clock[1]

    def _output(self, x: Tensor) -> Tensor:
        """Return the mean over time of the outputs, ``[N, classes]``."""
        functional.reset_net(self.model)
        half = self.recipe.bfloat16 and self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            output = self.model(x)
        return output.float().mean(0)

    def _step(self, x: Tensor, y: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step, self.batches)
        loss = F.cross_entropy(self.recipe.scale * self._output(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1

    @torch.no_grad()
    def _accuracy(self) -> float:
        """Return the accuracy on all test images, in percent."""
        self.model.eval()
        right = sum((self._output(x).argmax(1) == y).sum() for x, y in self.images.test())
        return 100 * int(right) / len(self.images.test_y)

    # ---- what it comes to ----------------------------------------------------------------------

    def row(self) -> dict[str, object]:
        """Return the row of a training that is done; the network is finalized."""
        pruned = self.cell.what.method is not None
        history = list(self.model.history) if pruned else []
        sparsity = self.model.sparsity() if pruned else {"total": 0.0}
        net = self.model.finalize() if pruned else self.model
        x, _ = next(self.images.test(COSTED))
        counts = cost.measure(net, x, samples=len(x)).values()
        return {
            "cell": self.cell.name,
            "suite": self.cell.suite,
            "recipe": self.recipe.name,
            "arm": self.cell.arm,
            "seed": self.cell.seed,
            "epochs": self.recipe.epochs,
            "steps": self.step,
            "accuracy": round(self.curve[-1], 4),
            "sparsity": round(sparsity["total"], 6),
            "synops": round(sum(c.synops for c in counts)),
            "analog_macs": round(sum(c.macs for c in counts)),
            "energy_nj": round(sum(c.energy for c in counts) / 1000, 3),
            "parameters": sum(c.parameters for c in counts),
            "parameters_nonzero": sum(c.parameters_nonzero for c in counts),
            "density": _text({k: 1 - v for k, v in sparsity.items() if k != "total"}),
            "survival": _text(survival_counts(history)),
            "regrown": _text(totals(history, "grown")),
            "curve": _text(self.curve),
            "wall_seconds": round(self.seconds[0], 2),
            "cpu_seconds": round(self.seconds[1], 2),
            "train_images": len(self.images.y),
            "test_images": len(self.images.test_y),
            "images": self.images.note or "CIFAR-10",
            **environment(str(self.device)),
            "sj_prune": sj_prune.__version__,
        }

    # ---- checkpoints ---------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return everything that the rest depends on."""
        progress = {"step": self.step, "epoch": self.epoch, "curve": self.curve}
        return {
            "recipe": self._how(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": {**progress, "seconds": self.seconds},
        }

    def _how(self) -> str:
        images = self.images
        return f"the recipe {self.recipe} on {len(images.y)} images, {images.note or 'CIFAR-10'}"

    def save(self, path: Path) -> None:
        """Save the state."""
        path.parent.mkdir(parents=True, exist_ok=True)
        sj_prune.save(path, self.state())

    def load(self, path: Path) -> None:
        """Take up what `save` wrote.

        Raises:
            ValueError: if that was trained otherwise, or is damaged.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"Expected {path} to be a checkpoint: remove it ({error})") from error
        if state.get("recipe") != self._how():
            raise ValueError(
                f"Expected {path} to be of {self._how()} but it is of {state.get('recipe')}: "
                "remove it, or give another --out"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._take_up(state["progress"])

    def _take_up(self, progress: dict[str, Any]) -> None:
        for name, value in progress.items():
            setattr(self, name, copy.copy(value))


def train(
    cell: Cell,
    images: Images,
    device: str,
    out: Path,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, object] | None:
    """Train a cell, or the rest of it; return its row, or None if it was stopped and saved.

    Args:
        cell: what to train.
        images: all of them, on the device.
        device: that it runs on.
        out: folder of checkpoints.
        stop: asked after every epoch of a cell that can be taken up again.
    """
    path, shared = out / f"{cell.name}.pt", None
    if cell.recipe.shared and not path.exists():
        shared = shared_state(cell, images, device, out, stop)
        if shared is None:
            return None
    training = Training(cell, images, device, shared)
    if cell.recipe.resumable and path.exists():
        training.load(path)
    return training.row() if _go_on(training, cell.recipe.epochs, path, stop) else None


def _go_on(training: Training, epochs: int, path: Path, stop: Callable[[], bool]) -> bool:
    """Train up to so many epochs, saved after each; tell whether that was reached."""
    while training.epoch < epochs:
        training.run_epoch()
        if training.recipe.resumable:
            training.save(path)
            if stop() and training.epoch < training.recipe.epochs:
                return False
    return True


def shared_state(
    cell: Cell, images: Images, device: str, out: Path, stop: Callable[[], bool]
) -> dict[str, Any] | None:
    """Return the dense training after the epochs that all arms of a seed share; None: stopped.

    Workers that begin a seed side by side each train them: run one arm of each seed first.
    """
    training = Training(replace(cell, arm="dense"), images, device)
    path = out / f"{cell.recipe.name}-shared-s{cell.seed}.pt"
    if path.exists():
        training.load(path)
    return training.state() if _go_on(training, cell.recipe.shared, path, stop) else None


def survival_counts(history: Sequence[UpdateRecord]) -> list[list[int]]:
    """Return, an update, its step, how many weights the one before grew, and it kept of these."""
    return [
        [after.step, sum(before.grown.values()), sum(after.survived.values())]
        for before, after in pairwise(history)
    ]


def _text(value: object) -> str:
    rounded = json.loads(json.dumps(value), parse_float=lambda number: round(float(number), 6))
    return json.dumps(rounded, separators=(",", ":"))
