"""Tiny-ImageNet: 200 classes of 64x64 images, decoded once and kept as arrays."""

from __future__ import annotations

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sj_prune._files import replace_file
from sj_prune.data.download import fetch, install, torchvision_module
from sj_prune.data.images import ImageSet

_URL = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"
_NAME = "tiny-imagenet-200"
_SIZE = 64
_MEAN, _STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)


def tiny_imagenet(
    root: str | os.PathLike[str], download: bool = False
) -> tuple[ImageSet, ImageSet]:
    """Load Tiny-ImageNet to memory (1.4 GB); the validation images are the test set.

    Decoding takes minutes once; the result is kept beside the images as ``train.npz`` and
    ``val.npz``, written whole or not at all, and made anew if damaged.

    Args:
        root: folder that holds ``tiny-imagenet-200``, or will.
        download: fetch it if it is not there (248 MB, checked by SHA-256).

    Returns:
        Training set of 100,000 and test set of 10,000 images ``[3, 64, 64]``.

    Raises:
        FileNotFoundError: it is not there or incomplete; says how to get it.
        ImportError: torchvision does not import here.
        RuntimeError: the download failed; says what to fetch elsewhere.
    """
    folder = Path(root) / _NAME
    if not folder.exists() and download:
        install(fetch(_URL, Path(root), f"{_NAME}.zip", _MD5, _SHA256), folder)
    try:
        classes = tuple(sorted((folder / "wnids.txt").read_text().split()))
        train, test = (_load(folder, part, classes) for part in ("train", "val"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder}: Expected the files of Tiny-ImageNet but got {str(error)!r}: pass "
            f"download=True, or fetch {_URL} (SHA-256 {_SHA256}) and unpack it in {root}"
        ) from error
    return train, test


def _load(folder: Path, part: str, classes: tuple[str, ...]) -> ImageSet:
    cache = folder / f"{part}.npz"
    try:
        with np.load(cache, allow_pickle=False) as stored:
            x, y = stored["x"], stored["y"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        x, y = _decode_all(_list(folder, part, classes))
        with replace_file(cache, durable=False) as temporary:
            # Not compressed: photographs do not get smaller, only slower.
            np.savez(temporary, x=x, y=y)
    return ImageSet(torch.from_numpy(x), torch.from_numpy(y), classes, _MEAN, _STD)


def _list(folder: Path, part: str, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Return images and labels; labels number the sorted names of the classes."""
    number = {name: label for label, name in enumerate(classes)}
    if part == "train":
        return [
            (path, label)
            for name, label in number.items()
            for path in sorted((folder / "train" / name / "images").iterdir())
        ]
    lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    # Name of the file, class, and a box that nobody needs here.
    pairs = [line.split("\t")[:2] for line in lines]
    return [(folder / "val" / "images" / file, number[name]) for file, name in pairs]


def _decode_all(
    files: list[tuple[Path, int]],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    loader = torchvision_module("datasets.folder").default_loader
    x = np.empty((len(files), 3, _SIZE, _SIZE), dtype=np.uint8)

    def decode(index: int) -> None:
        x[index] = np.asarray(loader(str(files[index][0]))).transpose(2, 0, 1)

    # Decoding releases the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, range(len(files))))
    return x, np.array([label for _, label in files], dtype=np.int64)
