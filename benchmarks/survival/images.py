"""CIFAR-10 kept on the training device; an epoch is cropped and flipped there at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sj_prune import data

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = 10
FIRST = 10_000  # training images, one file of the archive, that subsets are taken of
FILES = ("train_x", "train_y", "test_x", "test_y")


@dataclass(frozen=True)
class Images:
    """CIFAR-10, or a part of it.

    Attributes:
        x: training images, uint8 ``[N, 3, 32, 32]``.
        y: their labels ``[N]``.
        test_x: to test with, likewise.
        test_y: their labels.
        note: what is to be said of them; empty for the published images.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    note: str = ""

    def subset(self, number: int) -> Images:
        """Return the same test images and so many of the first training images, all classes alike.

        Raises:
            ValueError: if there are fewer of a class.
        """
        if not number:
            return self
        labels = self.y[:FIRST].cpu()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        found = [order[labels[order] == c][: number // CLASSES] for c in range(CLASSES)]
        if min(map(len, found)) < number // CLASSES:
            raise ValueError(
                f"Expected {number // CLASSES} of the first {FIRST:,} training images in each "
                f"class but got {min(map(len, found))} in one: give the whole set"
            )
        chosen = torch.cat(found).sort().values.to(self.x.device)
        return Images(self.x[chosen], self.y[chosen], self.test_x, self.test_y, self.note)

    def epoch(
        self, batch: int, seed: int, epoch: int, crops: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches ``x [N, 3, 32, 32]`` and ``y [N]`` in a new order, cropped and flipped.

        Args:
            batch: images of each; what is left over is left out.
            seed: of order and augmentation, the same on any device.
            epoch: from 0.
            crops: False: flipped alone.
        """
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        order = torch.randperm(len(self.y), generator=generator).to(self.x.device)
        augment = data.CropFlip() if crops else data.CropFlip(padding=0)
        x = augment(self.x[order], generator)
        y = self.y[order]
        for start in range(0, len(y) - batch + 1, batch):
            yield self._normal(x[start : start + batch]), y[start : start + batch]

    def test(self, batch: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all test images, as `epoch`."""
        for start in range(0, len(self.test_y), batch):
            chosen = slice(start, start + batch)
            yield self._normal(self.test_x[chosen]), self.test_y[chosen]

    def _normal(self, x: Tensor) -> Tensor:
        return _NORMALIZE(x).contiguous(memory_format=torch.channels_last)


_NORMALIZE = data.Normalize(MEAN, STD)


def load(folder: Path | None, root: Path, device: str) -> Images:
    """Return CIFAR-10 on a device.

    Args:
        folder: of ``train_x.npy, train_y.npy, test_x.npy, test_y.npy``, and perhaps a
            ``note.txt`` that says what was done to them; None: by torchvision, of `root`.
        root: folder that holds ``cifar-10-batches-py``.
        device: to keep them on.

    Raises:
        FileNotFoundError: nothing is there; says how to get it.
    """
    if folder is None:
        train, test = data.cifar10(root)
        found, note = [train.x, train.y, test.x, test.y], ""
    else:
        found = [torch.from_numpy(np.load(folder / f"{name}.npy")) for name in FILES]
        path = folder / "note.txt"
        note = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    x, y, test_x, test_y = found
    labels = [labels.long().to(device) for labels in (y, test_y)]
    return Images(x.to(device), labels[0], test_x.to(device), labels[1], note)


def generated(device: str) -> Images:
    """Return drawn images, to see that everything runs."""
    x, y = data.synthetic_images(30, classes=CLASSES, size=32, seed=0)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y, cut = x[order].to(device), y[order].to(device), 200
    return Images(x[:cut], y[:cut], x[cut:], y[cut:], "generated images")
