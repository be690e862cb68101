"""NDSNN (Huang et al., 2023): from sparse to sparser, growing ever fewer by the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from sj_prune._checks import check_fraction
from sj_prune.masks.allocation import ERK, Allocation
from sj_prune.masks.schedule import Cosine, Cubic
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import Growth, RandomMasks, gradient_magnitude, magnitude
from sj_prune.methods.plan import Plan


@dataclass(frozen=True, kw_only=True)
class NDSNN(ScheduledMethod):
    """Neurogenesis dynamics (Huang et al., DAC 2023): sparse training with falling density.

    Starts from random masks of sparsity `initial`. At update `t` of `n` the sparsity is
    ``theta_f + (theta_i - theta_f) (1 - t/n)^3``; each layer drops the fraction
    ``d_min + (d_0 - d_min)/2 (1 + cos(pi t/n))`` of its kept weights by `|w|` and grows as many by
    the dense gradient's magnitude as bring it to its share, never more than it dropped. Where that
    drops too little for the schedule, it drops more and grows none. New weights start at 0.

    The shares are those of `ERK()` at each update's sparsity: the paper's, who lets each layer's
    own sparsity run along the cubic, but for layers that are whole at the start. `interval` is not
    the paper's.

    Args:
        sparsity: theta_f, fraction pruned after the last update, in [0, 1).
        initial: theta_i, fraction pruned from the start on, at most `sparsity`; the paper takes 0.7
            and 0.8.
        drop: d_0, fraction of a layer's kept weights that is dropped at first, in [0, 1).
        drop_final: d_min, at the end.
        interval: optimizer steps between updates.
        begin: updates start after this step.
        end: step of the last update.
        allocation: `ERK()` or `Uniform()`.
    """

    sparsity: float = 0.95
    initial: float = 0.7
    drop: float = 0.5
    drop_final: float = 0.05
    interval: int = 1000
    allocation: Allocation = ERK()

    def __post_init__(self) -> None:
        for name in ("initial", "drop", "drop_final"):
            check_fraction(name, getattr(self, name))
        super().__post_init__()
        if self.initial > self.sparsity:
            raise ValueError(
                f"Expected initial <= sparsity = {self.sparsity} but got {self.initial}: the "
                "network starts sparse and becomes sparser"
            )

    def plan(self) -> Plan:
        """Drop a falling part of what is alive by `|w|`, and grow by the dense gradient."""
        fraction = self.schedule_of(Cosine, self.drop_final, self.drop)
        return self._plan(
            schedule=self.schedule_of(Cubic, self.sparsity, self.initial),
            drop=magnitude,
            grow=Growth(gradient_magnitude, fraction, of="before"),
            allocation=self.allocation,
            start=RandomMasks(self.initial),
        )
