"""The only module of `sj_prune.data` that imports SpikingJelly, and only when it is called."""

from __future__ import annotations

import contextlib
import io
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sj_prune._host import release

_H = _W = 128


def CIFAR10DVS() -> Any:  # noqa: ANN401, N802 - the host's class, under its own name
    """Return SpikingJelly's ``CIFAR10DVS``.

    Raises:
        ImportError: ``spikingjelly.datasets`` does not import here; says what to install.
    """
    return _datasets().cifar10_dvs.CIFAR10DVS


def archives() -> list[tuple[str, str, str]]:
    """Return file name, URL and MD5 of the archives of DVS-CIFAR10."""
    return list(CIFAR10DVS().resource_url_md5())


def frames_folder(frames: int) -> str:
    """Return how both releases name the folder of frames by number of events."""
    return f"frames_number_{frames}_split_by_number"


def open_frames(root: Path, frames: int) -> Any:  # noqa: ANN401 - the host's data set
    """Open ``CIFAR10DVS`` on frames by number; it makes them unless their folder is there."""
    # 0.0.0.0.14 prints two lines a recording.
    with contextlib.redirect_stdout(io.StringIO()):
        return CIFAR10DVS()(str(root), data_type="frame", frames_number=frames, split_by="number")


def integrate(events: dict[str, npt.NDArray[Any]], frames: int) -> npt.NDArray[np.float64]:
    """Sum events to frames of equal number of events ``[frames, 2, 128, 128]`` as the host does."""
    by_number = _datasets().integrate_events_by_fixed_frames_number
    made: npt.NDArray[np.float64] = by_number(events, "number", frames, _H, _W)
    return made


def _datasets() -> Any:  # noqa: ANN401
    try:
        import_module("spikingjelly.datasets.cifar10_dvs")
        return import_module("spikingjelly.datasets")
    # A torchaudio or torchvision of another build fails with OSError or RuntimeError, a too new
    # NumPy with AttributeError: the user is to read what to do in each case.
    except Exception as error:
        raise ImportError(
            f"Expected spikingjelly.datasets (release {release()}) to import but got {error!r}: "
            "install torch<2.15 with the torchvision and torchaudio of the same release, and "
            "numpy<1.24 if SpikingJelly 0.0.0.0.14 asks for np.int or np.bool"
        ) from error
