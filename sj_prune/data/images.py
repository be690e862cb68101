"""CIFAR-10, CIFAR-100 and folders of images, through torchvision."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sj_prune.data.download import fetch, install, torchvision_module

Channels = tuple[float, float, float]

_STATISTICS: dict[str, tuple[Channels, Channels]] = {
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

# Of the archives, which torchvision states as MD5 alone.
_SHA256 = {
    "CIFAR10": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "CIFAR100": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
}


@dataclass(frozen=True)
class ImageSet:
    """Images in memory.

    Attributes:
        x: uint8 ``[N, 3, H, W]``.
        y: labels, int64 ``[N]``.
        classes: names in the order of the labels.
        mean: of the training images in 0..1, a value a channel.
        std: standard deviation, likewise.
    """

    x: torch.Tensor
    y: torch.Tensor
    classes: tuple[str, ...]
    mean: Channels
    std: Channels

    def __len__(self) -> int:
        return len(self.y)


def cifar10(root: str | os.PathLike[str], download: bool = False) -> tuple[ImageSet, ImageSet]:
    """Load CIFAR-10 to memory (180 MB).

    Args:
        root: folder that holds ``cifar-10-batches-py``, or will.
        download: fetch it if it is not there (170 MB, checked by SHA-256).

    Returns:
        Training set of 50,000 and test set of 10,000 images ``[3, 32, 32]``.

    Raises:
        FileNotFoundError: it is not there, or a checksum differs; says how to get it.
        ImportError: torchvision does not import here.
        RuntimeError: the download failed; says what to fetch elsewhere.
    """
    return _cifar("CIFAR10", root, download)


def cifar100(root: str | os.PathLike[str], download: bool = False) -> tuple[ImageSet, ImageSet]:
    """Load CIFAR-100 to memory; as :func:`cifar10` with 100 classes in ``cifar-100-python``."""
    return _cifar("CIFAR100", root, download)


def _cifar(name: str, root: str | os.PathLike[str], download: bool) -> tuple[ImageSet, ImageSet]:
    kind = getattr(torchvision_module("datasets"), name)
    folder = Path(root) / kind.base_folder
    if download and not _is_whole(kind, root):
        source = (kind.url, Path(root), kind.filename, kind.tgz_md5, _SHA256.get(name))
        install(fetch(*source, what=name), folder)
    try:
        parts = [kind(str(root), train=train, download=False) for train in (True, False)]
    # torchvision checks the MD5 of every file, and raises this for a missing one too.
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{folder}: Expected the files of {name} with their checksums but got "
            f"{str(error)!r}: pass download=True, or fetch {kind.url} "
            f"(MD5 {kind.tgz_md5}) and unpack it in {root}"
        ) from error
    mean, std = _STATISTICS[name]
    train, test = (
        ImageSet(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets),
            tuple(part.classes),
            mean,
            std,
        )
        for part in parts
    )
    return train, test


def _is_whole(kind: Any, root: str | os.PathLike[str]) -> bool:  # noqa: ANN401 - torchvision's class
    try:
        kind(str(root), train=True, download=False)
    except RuntimeError:
        return False
    return True


def image_folder(
    root: str | os.PathLike[str], size: int = 224, *, augment: bool = True
) -> tuple[Any, Any]:
    """Open ImageNet, or any data set of folders ``train/<class>`` and ``val/<class>``.

    Images are read when asked for, with the usual preparation: a random part resized and flipped
    for training, the middle for testing. Their statistics are
    ``sj_prune.data.Normalize.imagenet()``'s, to apply on the training device.

    Args:
        root: folder that holds ``train`` and ``val``.
        size: height and width of the images.
        augment: False prepares the training images like the test images.

    Returns:
        Training and test set of ``(x uint8 [3, size, size], label)``; torchvision's
        ``ImageFolder``.

    Raises:
        FileNotFoundError: a folder is missing or empty, or the classes differ; says what to do.
        ImportError: torchvision does not import here.
    """
    transforms = torchvision_module("transforms")
    middle = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    random = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    sets = []
    for part, steps in (("train", random if augment else middle), ("val", middle)):
        folder = Path(root) / part
        try:
            steps = [*steps, transforms.PILToTensor()]
            kind = torchvision_module("datasets").ImageFolder
            sets.append(kind(str(folder), transforms.Compose(steps)))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder}: Expected folders <class>/*.JPEG but got {str(error)!r}: ImageNet needs "
                "a login at image-net.org; unpack it to train/<class> and val/<class>"
            ) from error
    train, test = sets
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[:3]
        raise FileNotFoundError(
            f"{root}: Expected the same classes in train and val but got {odd} in one only: "
            "sort the validation images into folders of their classes"
        )
    return train, test
