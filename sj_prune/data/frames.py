"""SpikingJelly's cached frames: made whole, checked when read, mended one by one."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sj_prune.data import host
from sj_prune.data.aedat import SENSOR_SIZE
from sj_prune.data.files import publish, save_npz, workspace

# What numpy raises on a file that is cut, overwritten, of another kind or without the array.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_LOGGER = logging.getLogger("sj_prune")


class CheckedFrames:
    """A loader of cached frames that rebuilds a damaged file from the recording's events.

    Args:
        root: folder of the data set.
        frames: how many frames a recording has.
    """

    def __init__(self, root: Path, frames: int) -> None:
        self.root = root
        self.frames = frames

    def __call__(self, path: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
        """Return the frames in `path`, float32 ``[T, 2, 128, 128]``.

        Raises:
            RuntimeError: frames and events are both damaged; says what to delete.
        """
        try:
            return self._read(Path(path))
        except _DAMAGE as error:
            _LOGGER.warning("%s: damaged frames (%r) are made anew", path, error)
        return self.rebuild(Path(path))

    def _read(self, path: Path) -> npt.NDArray[np.float32]:
        with np.load(path, allow_pickle=False) as stored:
            frames = stored["frames"]
        expected = (self.frames, 2, SENSOR_SIZE, SENSOR_SIZE)
        if frames.shape != expected:
            raise ValueError(f"Expected frames of shape {expected} but got {frames.shape}")
        return np.asarray(frames, dtype=np.float32)

    def rebuild(self, path: Path) -> npt.NDArray[np.float32]:
        """Make the file anew from ``events_np`` and return its frames."""
        events = read_events(self.root / "events_np" / path.parent.name / path.name)
        frames = host.integrate(events, self.frames)
        save_npz(path, frames=frames)
        return frames.astype(np.float32)


def read_events(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read a file of ``events_np``.

    Raises:
        RuntimeError: it is damaged or missing; says what to delete.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            events = {key: stored[key] for key in ("t", "x", "y", "p")}
    except _DAMAGE as error:
        raise RuntimeError(
            f"{path}: Expected readable events but got {error!r}: delete the folder "
            f"{path.parents[1]} and open the data set again, it is converted anew"
        ) from error
    return events


def open_checked(root: Path, frames: int) -> Any:  # noqa: ANN401 - the host's data set
    """Open SpikingJelly's ``CIFAR10DVS`` on frames by number, complete and checked when read.

    Args:
        root: folder of the data set with ``events_np``.
        frames: frames of a recording, each of the same number of events.
    """
    target = root / host.frames_folder(frames)
    if not target.exists():
        _make(root, target, frames)
    checked = CheckedFrames(root, frames)
    # A data set that another program was interrupted in has gaps, and a class without files fails.
    for missing in sorted(_names(root / "events_np") - _names(target)):
        _LOGGER.warning("%s: missing frames are made", target / missing)
        (target / missing).parent.mkdir(exist_ok=True)
        checked.rebuild(target / missing)
    dataset = host.open_frames(root, frames)
    dataset.loader = checked
    return dataset


def _make(root: Path, target: Path, frames: int) -> None:
    """Let SpikingJelly make the frames aside, since it leaves a torso when it is interrupted."""
    events = root / "events_np"
    with workspace(root, target.name) as folder:
        (folder / "events_np").symlink_to(events.resolve(), True)
        try:
            host.open_frames(folder, frames)
        except _DAMAGE:
            # SpikingJelly does not say which file it stumbled over.
            for name in sorted(_names(events)):
                read_events(events / name)
            raise
        # 0.0.0.0.14 passes over a recording that it cannot read.
        for name in sorted(_names(events) - _names(folder / target.name)):
            read_events(events / name)
        publish(folder / target.name, target)


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/*.npz")}
