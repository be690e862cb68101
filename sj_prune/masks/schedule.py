"""Schedules: frozen functions of the integer step alone.

`step` counts optimizer steps from 1. Updates happen at the steps ``k`` with
``begin < k <= end`` and ``(k - begin) % interval == 0``; they are numbered t = 1..n, so the n-th
has the final value exactly, whatever the division leaves over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sj_prune._checks import check_integer, check_number


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """From `initial` before the first update to `final` at the last one.

    Args:
        final: value at update n.
        initial: value before any update.
        interval: optimizer steps between updates.
        begin: the first update happens at step ``begin + interval``.
        end: step of the last update at the latest.

    Raises:
        TypeError: if a step is not an integer or a value not a number.
        ValueError: if no update falls into ``(begin, end]``.
    """

    final: float
    initial: float = 0.0
    interval: int
    begin: int = 0
    end: int

    def __post_init__(self) -> None:
        check_number("final", self.final)
        check_number("initial", self.initial)
        check_integer("interval", self.interval, 1)
        check_integer("begin", self.begin, 0)
        check_integer("end", self.end, 1)
        if self.end - self.begin < self.interval:
            raise ValueError(
                f"Expected end - begin >= interval, so that one update happens, but got "
                f"begin={self.begin}, end={self.end}, interval={self.interval}"
            )

    @property
    def updates(self) -> int:
        """The number n of updates."""
        return (self.end - self.begin) // self.interval

    def due(self, step: int) -> bool:
        """Tell whether an update happens inside step call `step` (1-based)."""
        return self.begin < step <= self.end and (step - self.begin) % self.interval == 0

    def next_due(self, step: int) -> int | None:
        """Return the first step after `step` with an update, or None when all are done."""
        later = self.begin + self.interval * max(1, (step - self.begin) // self.interval + 1)
        return later if later <= self.end else None

    def index(self, step: int) -> int:
        """Return how many updates have happened when step `step` is done: t in 0..n."""
        return min(max(0, (step - self.begin) // self.interval), self.updates)

    def at(self, step: int) -> float:
        """Return the value that is in force once step `step` is done."""
        t, n = self.index(step), self.updates
        if t == n:
            return self.final
        return self.final + (self.initial - self.final) * self._remaining(t / n)

    def _remaining(self, progress: float) -> float:
        """Return which part of the way is still to go, 1 at progress 0 and 0 at progress 1."""
        raise NotImplementedError


class Linear(Schedule):
    """Straight line over the updates."""

    def _remaining(self, progress: float) -> float:
        return 1.0 - progress


class Cubic(Schedule):
    """``final + (initial - final) (1 - t/n)^3``, eq. (15) of arXiv 2311.16141."""

    def _remaining(self, progress: float) -> float:
        return (1.0 - progress) ** 3


@dataclass(frozen=True, kw_only=True)
class CubicHold(Cubic):
    """`Cubic` up to the step `until`; the final value holds at the updates after it.

    Args:
        final: value from `until` on.
        initial: value before any update.
        interval: optimizer steps between updates.
        begin: the first update happens at step ``begin + interval``.
        end: step of the last update at the latest.
        until: step of the last update at the latest at which the value changes.

    Raises:
        ValueError: if no update falls into ``(begin, until]``, or `until` lies behind `end`.
    """

    until: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("until", self.until, 1)
        if self.until > self.end:
            raise ValueError(f"Expected until <= end = {self.end} but got {self.until}")
        self._rise()

    def _rise(self) -> Cubic:
        return Cubic(
            final=self.final,
            initial=self.initial,
            interval=self.interval,
            begin=self.begin,
            end=self.until,
        )

    def at(self, step: int) -> float:
        """Return the value that is in force once step `step` is done."""
        return self._rise().at(step)


class Cosine(Schedule):
    """``final + (initial - final) (1 + cos(pi t/n)) / 2``."""

    def _remaining(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class Constant(Schedule):
    """`final` at every update and before the first."""

    def _remaining(self, progress: float) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class OneShot(Schedule):
    """One update, at step `end`."""

    interval: int = 0  # derived: the whole way

    def __post_init__(self) -> None:
        check_integer("begin", self.begin, 0)
        check_integer("end", self.end, 1)
        object.__setattr__(self, "interval", max(1, self.end - self.begin))
        super().__post_init__()

    def _remaining(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Manual(Schedule):
    """`final` at every call, and no update by itself."""

    interval: int = 1
    end: int = 1

    @property
    def updates(self) -> int:
        """None."""
        return 0

    def due(self, step: int) -> bool:
        """Return False: updates are the caller's."""
        return False

    def next_due(self, step: int) -> int | None:
        """Return None."""
        return None
