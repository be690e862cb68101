"""Files and folders that appear whole or not at all, so that an interruption corrupts nothing."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sj_prune._files import current_umask, replace_file

_LOGGER = logging.getLogger("sj_prune")


@contextmanager
def workspace(root: Path, purpose: str) -> Iterator[Path]:
    """Give a temporary folder inside `root`, on the same file system; delete it in the end.

    A process that is killed leaves its folder behind. It is never read again; a later call names it
    in a warning and leaves it alone, since another process may be at work in it.
    """
    root.mkdir(parents=True, exist_ok=True)
    prefix = f".{purpose}.building-"
    for stale in sorted(root.glob(f"{prefix}*")):
        _LOGGER.warning("%s: left by another process; delete it unless one is still at work", stale)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    folder.chmod(0o777 & ~current_umask())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def build_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `target` if the block ends well.

    Args:
        target: the folder to make. If another process made it in the meantime, its result stays.

    Yields:
        An empty folder to fill.
    """
    with workspace(target.parent, target.name) as parent:
        folder = parent / target.name
        folder.mkdir()
        yield folder
        publish(folder, target)


def publish(folder: Path, target: Path) -> None:
    """Rename a finished `folder` to `target`; keep `target` if another process was first."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        _LOGGER.info("%s: made by another process in the meantime", target)


def save_npz(path: Path, **arrays: Any) -> None:  # noqa: ANN401 - whatever numpy stores
    """Write a compressed ``.npz`` that appears whole or not at all."""
    with replace_file(path, durable=False) as temporary:
        np.savez_compressed(temporary, **arrays)
