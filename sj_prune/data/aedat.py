"""AER-DAT 2.0 recordings of the DVS128 sensor, as jAER writes them and DVS-CIFAR10 holds them.

A text header of ``#`` lines, then pairs of big-endian 32-bit words: address, time in microseconds.
Bits of an address: 0 polarity, 1 to 7 column (mirrored), 8 to 14 row, 15 special event (a
synchronization pulse, not a pixel). DVS128 uses no bit above 15.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sj_prune._files import replace_file

IntArray = npt.NDArray[np.int64]

SENSOR_SIZE = 128
_SPECIAL = 1 << 15
_WRAP = 1 << 32
_KEYS = ("t", "x", "y", "p")
_HEADER = (
    b"#!AER-DAT2.0\r\n"
    b"# Data format is int32 address, int32 timestamp (8 bytes total), repeated for each event\r\n"
    b"# Timestamps tick is 1 us\r\n"
    b"# AEChip: ch.unizh.ini.jaer.chip.retina.DVS128\r\n"
)
_LOGGER = logging.getLogger("sj_prune")

_VERSION = re.compile(rb"#!AER-DAT\s*([\d.]*\d)", re.IGNORECASE)
_CHIP = re.compile(rb"#\s*AEChip:\s*(\S+)", re.IGNORECASE)
# Text has none of these; a line that starts with "#" and has one is data of some other sensor.
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class Events(dict[str, IntArray]):
    """The events of a recording: exactly the keys ``t``, ``x``, ``y``, ``p``.

    Attributes:
        special_events: how many special events (address bit 15) the recording held; they are
            dropped.
        header: the lines of the header, without line ends.
    """

    special_events: int = 0
    header: tuple[str, ...] = ()


def read_aedat(path: str | os.PathLike[str]) -> Events:
    """Read an AER-DAT 2.0 recording of a DVS128 sensor.

    The clock of the sensor is a 32-bit counter of microseconds that wraps after 71.6 minutes. A
    step back by more than half of that range is such a wrap and is unrolled, so that ``t`` goes on
    rising beyond ``2**32``; any smaller step back is an error.

    Args:
        path: the recording. Its header may have any number of lines, also none.

    Returns:
        int64 arrays of shape ``[events]`` in the order of the file: ``t`` in microseconds, not
        decreasing; ``x`` and ``y`` in 0..127, jAER's axes (``x = 127 - column bits``); ``p``, the
        polarity bit as stored, which on this sensor is 0 where the brightness rose (SpikingJelly
        stores ``1 - p``). The attribute ``special_events`` counts what was dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the recording is of another format or sensor, truncated, empty, or its time
            goes back.
    """
    raw = Path(path).read_bytes()
    header, start = _split_header(raw)
    _check_header(path, header)
    if (len(raw) - start) % 8:
        raise ValueError(
            f"{path}: Expected a multiple of 8 bytes after the header but got {len(raw) - start}: "
            "the recording is truncated, fetch or record it again"
        )
    words = np.frombuffer(raw, ">u4", offset=start).reshape(-1, 2).astype(np.int64)
    address, clock = words[:, 0], words[:, 1]
    _check_addresses(path, address)
    pixel = (address & _SPECIAL) == 0
    address = address[pixel]
    if address.size == 0:
        raise ValueError(
            f"{path}: Expected at least one event of a pixel but got none "
            f"({pixel.size} special events): delete the empty recording or record it again"
        )
    events = Events(
        t=_unroll(path, clock[pixel]),
        x=SENSOR_SIZE - 1 - ((address >> 1) & 0x7F),
        y=(address >> 8) & 0x7F,
        p=address & 1,
    )
    events.special_events = int(pixel.size - address.size)
    events.header = tuple(line.decode("utf-8", "replace").rstrip("\r\n") for line in header)
    if events.special_events:
        _LOGGER.info("%s: %d special events dropped", path, events.special_events)
    return events


def write_aedat(path: str | os.PathLike[str], events: Mapping[str, Any]) -> None:
    """Write `events` as an AER-DAT 2.0 recording of a DVS128 sensor; whole or not at all.

    Args:
        path: the file to write or to replace.
        events: integer arrays ``t``, ``x``, ``y``, ``p`` as :func:`read_aedat` returns them.

    Raises:
        ValueError: the events are none, out of range, or not in the order of time.
    """
    t, x, y, p = _check_events(events)
    address = ((SENSOR_SIZE - 1 - x) << 1) | (y << 8) | p
    words = np.stack((address, t % _WRAP), axis=1).astype(">u4")
    with replace_file(path) as temporary:
        temporary.write_bytes(_HEADER + words.tobytes())


def _split_header(raw: bytes) -> tuple[list[bytes], int]:
    """Return the lines of the header and where the data starts.

    No event of a DVS128 can be taken for a line: its first two bytes are 0.
    """
    lines: list[bytes] = []
    start = 0
    while raw[start : start + 1] == b"#":
        end = raw.find(b"\n", start)
        line = raw[start : end + 1] if end >= 0 else raw[start:]
        if _BINARY.search(line):
            break
        lines.append(line)
        start += len(line)
    return lines, start


def _check_header(path: str | os.PathLike[str], header: list[bytes]) -> None:
    for line in header:
        version = _VERSION.match(line)
        if version and version[1] not in (b"2", b"2.0"):
            raise ValueError(
                f"{path}: Expected AER-DAT 2.0 but got AER-DAT {version[1].decode()}: "
                "convert the recording with jAER"
            )
        chip = _CHIP.match(line)
        # jAER writes the class of the chip with its package.
        if chip and chip[1].rsplit(b".", 1)[-1].upper() != b"DVS128":
            raise ValueError(
                f"{path}: Expected a recording of a DVS128 sensor but got "
                f"AEChip {chip[1].decode('utf-8', 'replace')}: only DVS128 is supported"
            )


def _check_addresses(path: str | os.PathLike[str], address: IntArray) -> None:
    high = np.flatnonzero(address >> 16)
    if high.size:
        raise ValueError(
            f"{path}: Expected addresses of 16 bits as a DVS128 sensor sends but got "
            f"{address[high[0]]:#010x} in event {high[0]}: only DVS128 is supported"
        )


def _unroll(path: str | os.PathLike[str], clock: IntArray) -> IntArray:
    """Return the clock without its wraps, or raise where time goes back."""
    step = np.diff(clock)
    wrapped = step < -(_WRAP // 2)
    back = np.flatnonzero((step < 0) & ~wrapped)
    if back.size:
        first = int(back[0])
        raise ValueError(
            f"{path}: Expected time not to go back but got {clock[first + 1]} us after "
            f"{clock[first]} us at event {first + 1} ({back.size} such steps): "
            "sort or record it again"
        )
    unrolled = clock.copy()
    unrolled[1:] += _WRAP * np.cumsum(wrapped)
    return unrolled


def _check_events(events: Mapping[str, Any]) -> tuple[IntArray, ...]:
    if set(events) != set(_KEYS):
        raise ValueError(f"Expected the keys {_KEYS} but got {tuple(events)}: pass these four")
    arrays = [np.asarray(events[key]) for key in _KEYS]
    for key, array in zip(_KEYS, arrays, strict=True):
        if array.ndim != 1 or array.size != arrays[0].size or array.dtype.kind not in "iub":
            raise ValueError(
                f"Expected {key} to be a vector of {arrays[0].size} integers but got "
                f"{array.dtype} of shape {array.shape}: pass four integer vectors of one length"
            )
    if arrays[0].size == 0:
        raise ValueError("Expected at least one event but got none: an empty recording is refused")
    t, x, y, p = (array.astype(np.int64) for array in arrays)
    for key, array, stop in (("x", x, SENSOR_SIZE), ("y", y, SENSOR_SIZE), ("p", p, 2)):
        if array.min() < 0 or array.max() >= stop:
            raise ValueError(
                f"Expected {key} in 0..{stop - 1} but got {array.min()}..{array.max()}: "
                "clip or drop these events"
            )
    if t[0] < 0 or t[0] >= _WRAP or np.diff(t).min(initial=0) < 0:
        raise ValueError(
            "Expected t to start in 0..2**32-1 and not to go back but got "
            f"t[0] = {t[0]} and a smallest step of {np.diff(t).min(initial=0)}: sort by t"
        )
    # A longer step across a wrap reads like time that goes back.
    across = np.diff(t)[np.diff(t // _WRAP) > 0]
    if across.max(initial=0) >= _WRAP // 2:
        raise ValueError(
            "Expected less than 2**31 us between two events around a wrap of the 32-bit clock but "
            f"got {across.max()}: subtract the start, or split the recording"
        )
    return t, x, y, p
