"""Downloads through torchvision, with checksums and messages that say what to do offline."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from sj_prune.data.files import build_folder

__all__ = ["explain_offline", "fetch", "torchvision_module", "unpack"]


def torchvision_module(name: str) -> Any:  # noqa: ANN401 - a module
    """Import ``torchvision.<name>``.

    Raises:
        ImportError: torchvision is missing or does not match torch; says what to install.
    """
    try:
        return import_module(f"torchvision.{name}")
    # A torchvision of another build fails with RuntimeError (no operator torchvision::nms).
    except Exception as error:
        raise ImportError(
            f"Expected torchvision.{name} to import but got {error!r}: install the torchvision of "
            "the installed torch release (pip install 'torch<2.12' torchvision)"
        ) from error


@contextmanager
def explain_offline(what: str, source: str, folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors of a download into one that says what to put where.

    Raises:
        RuntimeError: the download failed or its checksum differs.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"Expected to download {what} but got {error!r}: without a network fetch {source} "
            f"elsewhere and put it in {folder}"
        ) from error


def fetch(url: str, folder: Path, name: str, md5: str) -> Path:
    """Download a file unless it is there with the right checksum.

    Args:
        url: where from.
        folder: where to; made if needed.
        name: name of the file there.
        md5: checksum of the file.

    Returns:
        The file.

    Raises:
        RuntimeError: offline, or the checksum differs; says which file to put where.
    """
    utils = torchvision_module("datasets.utils")
    with explain_offline(name, f"{url} (MD5 {md5})", folder):
        utils.download_url(url, str(folder), name, md5)
    return folder / name


def unpack(archives: Sequence[Path], target: Path) -> None:
    """Unpack all archives to one folder that appears when the last one is done."""
    utils = torchvision_module("datasets.utils")
    with build_folder(target) as folder:
        for archive in archives:
            utils.extract_archive(str(archive), str(folder))
