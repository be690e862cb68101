"""DVS-CIFAR10 as frames, through SpikingJelly's own ``CIFAR10DVS``."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from sj_prune.data import host
from sj_prune.data.download import fetch, unpack
from sj_prune.data.event_transforms import Compose, Resize, event_augmentation
from sj_prune.data.frames import open_checked
from sj_prune.data.generate import GENERATED
from sj_prune.data.recordings import convert_recordings

_LOGGER = logging.getLogger("sj_prune")

FrameTransform = Callable[[torch.Tensor], torch.Tensor]


class EventFrames(Dataset[tuple[torch.Tensor, int]]):
    """Part of a data set of event frames: ``(x [T, 2, H, W] float32, label)``.

    Args:
        base: SpikingJelly's data set of frames.
        indices: which of its samples.
        transform: applied to the frames.

    Attributes:
        classes: names in the order of the labels.
        targets: labels in the order of the samples, known without loading one.
    """

    def __init__(
        self,
        base: Any,  # noqa: ANN401 - the host's data set
        indices: Sequence[int],
        transform: FrameTransform | None = None,
    ) -> None:
        self.base = base
        self.indices = list(indices)
        self.transform = transform
        self.classes: list[str] = list(base.classes)
        self.targets: list[int] = [base.targets[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        frames, label = self.base[self.indices[item]]
        x = torch.from_numpy(frames)
        return (self.transform(x) if self.transform else x), int(label)


def cifar10_dvs(
    root: str | os.PathLike[str],
    frames: int = 10,
    size: int = 48,
    *,
    train_ratio: float = 0.9,
    split_seed: int | None = None,
    augment: bool = True,
    download: bool = False,
) -> tuple[EventFrames, EventFrames]:
    """Open DVS-CIFAR10, or recordings of the same form, as frames of equal number of events.

    What is missing is made from what is there: ``events_np`` from the recordings in ``extract``,
    frames from ``events_np``. Each folder appears whole or not at all. Cached frames are checked
    when they are read, and damaged ones made anew.

    Args:
        root: folder of the data set.
        frames: frames of a recording, the time steps ``T``.
        size: frames are resized to ``[size, size]``.
        train_ratio: part of each class that is for training; the count is rounded up.
        split_seed: None splits by file name, as SpikingJelly does; a number draws the split.
        augment: flip, roll and cut training frames (:func:`event_augmentation`).
        download: fetch the ten archives (about 7 GB, checked by MD5) if nothing is there.

    Returns:
        Training and test set.

    Raises:
        FileNotFoundError: no recordings; says how to get them.
        ImportError: SpikingJelly's data sets do not import here.
        ValueError: an argument is out of range or a recording damaged.
    """
    root = Path(root)
    if not isinstance(frames, int) or frames < 1:
        raise ValueError(f"Expected frames to be an integer >= 1 but got {frames}")
    resize = Resize(size)
    _provide(root, download)
    if (root / GENERATED).exists():
        _LOGGER.info("%s: these recordings are generated, not the genuine DVS-CIFAR10", root)
    base = open_checked(root, frames)
    train, test = split_per_class(base.targets, train_ratio, split_seed)
    changed = Compose((resize, event_augmentation())) if augment else resize
    return EventFrames(base, train, changed), EventFrames(base, test, resize)


def split_per_class(
    targets: Sequence[int], train_ratio: float = 0.9, seed: int | None = None
) -> tuple[list[int], list[int]]:
    """Split samples class by class from their labels alone.

    Without seed the first part of each class is for training: the split of SpikingJelly's
    ``split_to_train_test_set``, which loads every sample to learn its label.

    Args:
        targets: label of each sample.
        train_ratio: part of each class for training, in (0, 1); the count is rounded up.
        seed: draws the split.

    Returns:
        Indices for training and for testing, class after class.

    Raises:
        ValueError: the ratio is out of range, or a part would be empty.
    """
    if not 0 < train_ratio < 1:
        raise ValueError(f"Expected train_ratio in (0, 1) but got {train_ratio}")
    labels = np.asarray(targets)
    rng = None if seed is None else np.random.default_rng(seed)
    train: list[int] = []
    test: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if rng is not None:
            members = rng.permutation(members)
        cut = math.ceil(len(members) * train_ratio)
        train += members[:cut].tolist()
        test += members[cut:].tolist()
    if not test:
        raise ValueError(
            f"Expected samples to test with but got none of {len(labels)} at train_ratio="
            f"{train_ratio}: lower the ratio or add recordings"
        )
    return train, test


def stack(
    dataset: Dataset[tuple[torch.Tensor, int]], dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Load a whole data set to memory, for :class:`sj_prune.data.ResidentLoader`.

    Args:
        dataset: samples ``(x, label)`` of one shape; open it with ``augment=False``.
        dtype: how to keep `x`; float16 has 11 bits, more than event counts need.

    Returns:
        ``x [N, ...]`` and labels int64 ``[N]``. DVS-CIFAR10 at 48x48 with 10 frames takes 0.9 GB.
    """
    samples = [dataset[index] for index in range(len(dataset))]  # type: ignore[arg-type]
    x = torch.stack([sample.to(dtype) for sample, _ in samples])
    return x, torch.tensor([label for _, label in samples])


def _provide(root: Path, download: bool) -> None:
    """Make ``events_np`` from what is there, or from the network if that is allowed."""
    if not any((root / name).exists() for name in ("events_np", "extract")):
        if not download:
            urls = "\n".join(f"  {url} ({name})" for name, url, _ in host.archives())
            raise FileNotFoundError(
                f"{root}: Expected recordings in extract/<class>/*.aedat but found none: pass "
                "download=True, or fetch these archives, unpack them to extract/\n"
                f"{urls}\nor simulate recordings with sj_prune.data.generate_dvs"
            )
        folder = root / "download"
        archives = [fetch(url, folder, name, md5) for name, url, md5 in host.archives()]
        unpack(archives, root / "extract")
    convert_recordings(root)
