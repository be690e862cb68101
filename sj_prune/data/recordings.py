"""From ``.aedat`` recordings to SpikingJelly's ``events_np``, all of them or none."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sj_prune.data.aedat import SENSOR_SIZE, read_aedat
from sj_prune.data.files import build_folder, save_npz

_LOGGER = logging.getLogger("sj_prune")


def to_spikingjelly(events: Mapping[str, Any]) -> dict[str, Any]:
    """Return the events of :func:`read_aedat` as SpikingJelly's ``CIFAR10DVS`` stores them.

    It turns the image by a quarter, as the camera of DVS-CIFAR10 stood, and writes 1 where the
    brightness rose.
    """
    last = SENSOR_SIZE - 1
    return {"t": events["t"], "x": last - events["y"], "y": events["x"], "p": 1 - events["p"]}


def convert_recordings(root: str | os.PathLike[str]) -> Path:
    """Convert ``root/extract/<class>/*.aedat`` to ``root/events_np/<class>/*.npz``.

    The result is SpikingJelly's own, value for value, but for special events, which it takes for
    pixels. Every recording is checked, and an interrupted conversion leaves no ``events_np``
    behind. Returns at once if it is there.

    Args:
        root: folder of the data set.

    Returns:
        The folder ``events_np``.

    Raises:
        FileNotFoundError: no recordings there.
        ValueError: a recording is damaged or of another sensor; the message names it.
        RuntimeError: SpikingJelly was interrupted while it converted.
    """
    root = Path(root)
    target, source = root / "events_np", root / "extract"
    marker = root / "events_np.building"
    if marker.exists():
        raise RuntimeError(
            f"{marker}: Expected a finished conversion but got the marker of an interrupted one: "
            f"delete it and {target}, then call again"
        )
    if target.exists():
        return target
    files = sorted(source.glob("*/*.aedat"))
    if not files:
        raise FileNotFoundError(
            f"{source}: Expected recordings <class>/*.aedat but found none: "
            "download or generate them first"
        )
    with build_folder(target) as folder:
        for name in sorted({file.parent.name for file in files}):
            (folder / name).mkdir()
        # Compression releases the interpreter lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda file: _convert(file, folder), files))
    _LOGGER.info("%s: %d recordings converted", target, len(files))
    return target


def _convert(file: Path, folder: Path) -> None:
    events = to_spikingjelly(read_aedat(file))
    # Small integers: a recording takes a quarter of the space and of the time to read.
    small = {"t": np.int64, "x": np.int16, "y": np.int16, "p": np.int8}
    save_npz(
        folder / file.parent.name / f"{file.stem}.npz",
        **{key: events[key].astype(dtype) for key, dtype in small.items()},
    )
