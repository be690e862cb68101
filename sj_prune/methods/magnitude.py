"""Global magnitude pruning (GMP), and its control with random scores."""

from __future__ import annotations

from dataclasses import dataclass

from sj_prune.masks.allocation import Allocation, Global
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import magnitude, noise
from sj_prune.methods.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Magnitude(ScheduledMethod):
    """Gradual pruning by weight magnitude, without regrowth: the baseline of every table.

    Importance is `|w|` under one global threshold, eq. (14), at the cubic sparsity of eq. (15) of
    arXiv 2311.16141. Global ranking by default.

    Args:
        sparsity: fraction pruned after the last update, in [0, 1).
        interval: optimizer steps between updates; the paper uses 2000.
        begin: updates start after this step.
        end: step of the last update.
        allocation: `Global()`, `Uniform()` or `ERK()`.
    """

    sparsity: float = 0.95
    interval: int = 2000
    allocation: Allocation = Global()

    def plan(self) -> Plan:
        """Drop by `|w|`, on a cubic schedule."""
        return self._plan(schedule=self.cubic(), drop=magnitude, allocation=self.allocation)


@dataclass(frozen=True, kw_only=True)
class Random(Magnitude):
    """As `Magnitude` with random scores: what any criterion has to beat. Same arguments."""

    def plan(self) -> Plan:
        """Drop by uniform noise, seeded, on a cubic schedule."""
        return self._plan(schedule=self.cubic(), drop=noise, allocation=self.allocation)
