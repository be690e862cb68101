"""Simulated DVS128 recordings in the on-disk form of DVS-CIFAR10, without the 10 GB download."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sj_prune._files import replace_file
from sj_prune.data.aedat import SENSOR_SIZE, Events, write_aedat
from sj_prune.data.files import build_folder
from sj_prune.data.motion import ClosedLoop, as_gray, log_canvas
from sj_prune.data.recordings import convert_recordings
from sj_prune.data.sensor import FloatArray, Sensor

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""The classes of CIFAR-10 in the order of its labels, which is the alphabet's."""

GENERATED = "generated.json"
"""The file in a data set's folder that says how its recordings were made."""
_FORMAT = 1
_LOGGER = logging.getLogger("sj_prune")


def generate_dvs(
    root: str | os.PathLike[str],
    images: Any,  # noqa: ANN401 - tensors and whatever numpy takes
    labels: Any,  # noqa: ANN401
    *,
    class_names: Sequence[str] | None = None,
    sensor: Sensor | None = None,
    motion: ClosedLoop | None = None,
    seed: int = 0,
    convert: bool = True,
) -> Path:
    """Play images before a simulated DVS128 sensor and write a data set as DVS-CIFAR10 unpacks.

    Writes ``root/extract/<class>/cifar10_<class>_<k>.aedat``, genuine AER-DAT 2.0 recordings, and
    from them ``root/events_np/<class>/cifar10_<class>_<k>.npz``, SpikingJelly's form, so that
    ``CIFAR10DVS(root, ...)`` and :func:`sj_prune.data.cifar10_dvs` run on the result. The files
    stand complete or not at all; what was generated already with the same arguments is kept.

    The camera of DVS-CIFAR10 stood turned by a quarter and SpikingJelly turns its recordings back.
    So do these: SpikingJelly's frames show the images upright.

    Args:
        root: folder of the data set.
        images: uint8 ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, H, W, C]`` with 1 or 3 channels.
        labels: integers ``[N]`` in ``0..len(class_names) - 1``.
        class_names: folder names in the order of the labels, which must be the alphabet's;
            default: the first of CIFAR-10's.
        sensor: the simulated sensor.
        motion: the path of the images; its steps and duration set the cost and length.
        seed: fixes the sensor's threshold mismatch and the noise of every recording.
        convert: also write ``events_np``.

    Returns:
        `root` as a path.

    Raises:
        FileExistsError: other recordings stand there.
        ValueError: images, labels or names do not fit.
    """
    sensor, motion, root = sensor or Sensor(), motion or ClosedLoop(), Path(root)
    gray, target = as_gray(images), torch.as_tensor(labels).cpu().long()
    names = _check_classes(gray, target, class_names)
    settings = {
        "format": _FORMAT,
        "sensor": repr(sensor),
        "motion": repr(motion),
        "seed": seed,
        "class_names": list(names),
        "images": hashlib.sha256(gray.numpy().tobytes()).hexdigest(),
        "labels": hashlib.sha256(target.numpy().tobytes()).hexdigest(),
    }
    if not _is_there(root, settings):
        _write_settings(root, settings)
        with build_folder(root / "extract") as folder:
            for name in names:
                (folder / name).mkdir()
            for index, file in enumerate(_file_names(target, names)):
                events = simulate(gray[index], sensor, motion, seed=seed, index=index)
                write_aedat(folder / file, events)
        _LOGGER.info("%s: %d recordings generated", root, len(target))
    if convert:
        convert_recordings(root)
    return root


def simulate(
    image: torch.Tensor,
    sensor: Sensor | None = None,
    motion: ClosedLoop | None = None,
    *,
    seed: int = 0,
    index: int = 0,
) -> Events:
    """Record one image.

    Args:
        image: gray ``[H, W]`` in 0..1, enlarged to cover the field of view all along the path.
        sensor: the simulated sensor.
        motion: the path of the image.
        seed: number of the sensor: fixes its thresholds.
        index: number of the recording: together with `seed` it fixes the noise.

    Returns:
        The events as :func:`sj_prune.data.read_aedat` returns them, turned as in DVS-CIFAR10:
        ``x`` is the row of the image from the top, ``127 - y`` the column, ``p`` is 0 where it
        brightened.
    """
    sensor, motion = sensor or Sensor(), motion or ClosedLoop()
    canvas = log_canvas(image.float(), SENSOR_SIZE + 2 * motion.margin, sensor.dark)
    thresholds = _thresholds(sensor, seed)
    noise = np.random.default_rng([seed, 1, index])
    found = sensor.record(motion.views(canvas), motion.times(), thresholds, noise)
    row, column = np.divmod(found.pixel, SENSOR_SIZE)
    return Events(t=found.t, x=row, y=SENSOR_SIZE - 1 - column, p=1 - found.on.astype(np.int64))


def _thresholds(sensor: Sensor, seed: int) -> FloatArray:
    # The second word keeps this stream apart from those of the recordings.
    rng = np.random.default_rng([seed, 0])
    return sensor.thresholds((SENSOR_SIZE, SENSOR_SIZE), rng)


def _file_names(labels: torch.Tensor, names: Sequence[str]) -> Iterator[str]:
    seen = dict.fromkeys(names, 0)
    for label in labels.tolist():
        name = names[label]
        yield f"{name}/cifar10_{name}_{seen[name]}.aedat"
        seen[name] += 1


def _check_classes(
    gray: torch.Tensor, labels: torch.Tensor, class_names: Sequence[str] | None
) -> tuple[str, ...]:
    if labels.shape != gray.shape[:1] or not len(labels) or labels.min() < 0:
        raise ValueError(
            f"Expected one label >= 0 for each of {len(gray)} images but got labels of shape "
            f"{tuple(labels.shape)}: pass at least one image and as many labels"
        )
    count = int(labels.max()) + 1
    names = tuple(CIFAR10_CLASSES[:count] if class_names is None else class_names)
    if len(names) < count:
        raise ValueError(
            f"Expected names of {count} classes but got {len(names)}: pass class_names"
        )
    if list(names) != sorted(set(names)) or any(Path(name).name != name for name in names):
        raise ValueError(
            f"Expected class_names to be different folder names in alphabetical order but got "
            f"{names}: a data set numbers its folders in that order"
        )
    if len(labels.unique()) < len(names):
        absent = sorted(set(range(len(names))) - set(labels.tolist()))
        raise ValueError(
            f"Expected at least one image of each class but got none of {absent}: "
            "a class without recordings cannot be loaded"
        )
    return names


def _is_there(root: Path, settings: dict[str, object]) -> bool:
    """Tell whether the recordings were generated; raise if they are others."""
    found = [folder for folder in ("extract", "events_np") if (root / folder).exists()]
    if not found:
        return False
    manifest = root / GENERATED
    known = json.loads(manifest.read_text()) if manifest.exists() else None
    if known != settings:
        what = "other settings" if known else "no settings: perhaps genuine recordings"
        raise FileExistsError(
            f"{root}: Expected no recordings or those of the same settings but got {found} with "
            f"{what}: choose another folder or delete this one"
        )
    return (root / "extract").exists()


def _write_settings(root: Path, settings: dict[str, object]) -> None:
    # Before the recordings: what stands under `extract` is then always what the file says.
    root.mkdir(parents=True, exist_ok=True)
    with replace_file(root / GENERATED) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n")
