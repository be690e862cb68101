"""A simulated event sensor: a pixel speaks when its log intensity has changed by a threshold.

The pixel model is that of Lichtsteiner, Posch and Delbruck (2008), "A 128x128 120 dB 15 us latency
asynchronous temporal contrast vision sensor": each pixel remembers a level of log intensity and
sends one event for every threshold by which the light has left that level. Thresholds differ from
pixel to pixel, noise adds events anywhere, and after an event a pixel is deaf for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class PixelEvents(NamedTuple):
    """Events by pixel: time in microseconds, flat index of the pixel, whether brightness rose."""

    t: IntArray
    pixel: IntArray
    on: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sensor:
    """The settings of the simulated sensor.

    Args:
        threshold: mean change of natural-log intensity for one event, for both polarities.
        mismatch: standard deviation of the threshold over pixels, relative to `threshold`.
        noise: background events per pixel and second, uniform over pixels, time and polarity.
        refractory: microseconds after an event during which a pixel sends none. Its level goes on
            following the light, so such events are lost and not late.
        dark: intensity in (0, 1] that is added to black, relative to white: the floor of the log.

    Raises:
        ValueError: a setting is out of range.
    """

    threshold: float = 0.25
    mismatch: float = 0.04
    noise: float = 0.5
    refractory: int = 500
    dark: float = 0.05

    def __post_init__(self) -> None:
        for name in ("threshold", "dark"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"Expected {name} > 0 but got {getattr(self, name)}")
        for name in ("mismatch", "noise", "refractory"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"Expected {name} >= 0 but got {getattr(self, name)}")

    def thresholds(self, shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
        """Draw the thresholds of a sensor.

        Returns:
            ``[2, H, W]``: for rising and for falling light. None is below a tenth of the mean.
        """
        spread = 1 + self.mismatch * rng.standard_normal((2, *shape))
        return self.threshold * np.maximum(spread, 0.1)

    def record(
        self,
        views: Iterable[FloatArray],
        times: IntArray,
        thresholds: FloatArray,
        rng: np.random.Generator,
    ) -> PixelEvents:
        """Record what the sensor sends while it sees `views`.

        Args:
            views: log intensities ``[H, W]``, one for each of `times`; linear in between.
            times: rising times in microseconds ``[S]``.
            thresholds: ``[2, H, W]``, from :meth:`thresholds`.
            rng: source of the noise.

        Returns:
            The events in order of time.
        """
        signal = crossings(views, times, thresholds)
        noise = self._noise(int(times[0]), int(times[-1]), thresholds[0].size, rng)
        merged = [np.concatenate(pair) for pair in zip(signal, noise, strict=True)]
        order = np.argsort(merged[0], kind="stable")
        t, pixel, on = (array[order] for array in merged)
        kept = past_refractory(t, pixel, self.refractory)
        return PixelEvents(t[kept], pixel[kept], on[kept])

    def _noise(self, start: int, stop: int, pixels: int, rng: np.random.Generator) -> PixelEvents:
        count = int(rng.poisson(self.noise * pixels * (stop - start) * 1e-6))
        return PixelEvents(
            rng.integers(start, stop, count),
            rng.integers(0, pixels, count),
            rng.integers(0, 2, count).astype(bool),
        )


def crossings(views: Iterable[FloatArray], times: IntArray, thresholds: FloatArray) -> PixelEvents:
    """Return the events of noiseless pixels without refractory period.

    Between two views the log intensity is linear in time. A pixel whose level is ``M`` sends its
    k-th event of that stretch when the intensity passes ``M + k * threshold``, and its level moves
    there.

    Args:
        views: log intensities ``[H, W]``, one for each of `times`.
        times: rising times in microseconds ``[S]``.
        thresholds: ``[2, H, W]``: for rising and for falling light.

    Returns:
        The events, in order of time within a pixel but not over pixels.
    """
    rise, fall = thresholds.reshape(2, -1)
    flat = (np.ravel(view) for view in views)
    level: FloatArray | None = None
    found: list[PixelEvents] = []
    for (before, after), (start, stop) in zip(pairwise(flat), pairwise(times), strict=True):
        level = before.copy() if level is None else level
        change = after - level
        count = np.trunc(change / np.where(change > 0, rise, fall)).astype(np.int64)
        active = np.flatnonzero(count)
        step = np.sign(count[active]) * np.where(count > 0, rise, fall)[active]
        number = np.abs(count[active])
        # One row an event: which active pixel it belongs to, and the how-manieth it is there.
        row = np.repeat(np.arange(active.size), number)
        kth = 1 + np.arange(row.size) - np.repeat(np.cumsum(number) - number, number)
        passed = level[active][row] + kth * step[row] - before[active][row]
        slope = (after - before)[active][row]
        # A crossing that rounding put off to a stretch without change happens at its end.
        part = np.divide(passed, slope, out=np.ones_like(passed), where=slope != 0).clip(0, 1)
        t = start + (part * (stop - start)).astype(np.int64)
        found.append(PixelEvents(t, active[row], step[row] > 0))
        level[active] += number * step
    t, pixel, on = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return PixelEvents(t, pixel, on)


def past_refractory(t: IntArray, pixel: IntArray, refractory: int) -> npt.NDArray[np.bool_]:
    """Return which events are at least `refractory` after the last kept event of their pixel.

    Args:
        t: times in microseconds, sorted ``[events]``.
        pixel: flat indices of pixels ``[events]``.
        refractory: the shortest time between two kept events of a pixel, in microseconds.
    """
    kept = np.ones(t.size, dtype=bool)
    alive = np.argsort(pixel, kind="stable")
    while alive.size:
        here, when = pixel[alive], t[alive]
        early = np.zeros(alive.size, dtype=bool)
        early[1:] = (here[1:] == here[:-1]) & (np.diff(when) < refractory)
        # An event that is not early for its neighbor is kept for certain, so an early one right
        # after it is dropped for certain. What follows is judged anew without the dropped ones.
        dropped = early.copy()
        dropped[1:] &= ~early[:-1]
        if not dropped.any():
            break
        kept[alive[dropped]] = False
        alive = alive[~dropped]
    return kept
