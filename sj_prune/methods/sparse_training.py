"""Sparse training by the gradient or at random: SET, RigL and GraNet."""

from __future__ import annotations

from dataclasses import dataclass

from sj_prune._checks import check_fraction, check_integer
from sj_prune.masks.allocation import ERK, Allocation
from sj_prune.masks.schedule import Cosine, CubicHold
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import Growth, RandomMasks, gradient_magnitude, magnitude, noise
from sj_prune.methods.plan import Plan


@dataclass(frozen=True, kw_only=True)
class SET(ScheduledMethod):
    """Sparse evolutionary training (Mocanu et al., 2018): constant sparsity, random regrowth.

    Starts from random masks with Erdos-Renyi densities; at every update each layer drops its
    smallest `|w|` and grows as many at random, from 0.

    Args:
        sparsity: fraction pruned from the start on, in [0, 1).
        regrow: fraction zeta of a layer's kept weights that is dropped and grown anew, in [0, 1).
        interval: optimizer steps between updates; the paper updates once an epoch.
        begin: updates start after this step.
        end: step of the last update.
        allocation: `ERK()`, `Uniform()` or `Uniform(first_dense=True)`.
    """

    sparsity: float = 0.95
    regrow: float = 0.3
    interval: int = 100
    allocation: Allocation = ERK()

    def __post_init__(self) -> None:
        check_fraction("regrow", self.regrow)
        super().__post_init__()

    def plan(self) -> Plan:
        """Drop by `|w|` and grow at random, from random masks on."""
        return self._sparse(Growth(noise, self.regrow))

    def _sparse(self, grow: Growth) -> Plan:
        return self._plan(
            schedule=self.constant(),
            drop=magnitude,
            grow=grow,
            allocation=self.allocation,
            start=RandomMasks(),
        )


@dataclass(frozen=True, kw_only=True)
class RigL(SET):
    """The rigged lottery (Evci et al., 2020): constant sparsity, regrowth by the dense gradient.

    At every update each layer drops the fraction ``regrow/2 (1 + cos(pi t / T_end))`` of its kept
    weights and grows as many by the dense gradient's magnitude among **all** that did not survive,
    the just dropped included: one dropped and regrown keeps its value and slots, a new one starts
    at 0. The optimizer step of an update is skipped: its gradients are set to None.

    Args:
        sparsity: fraction pruned from the start on, in [0, 1).
        regrow: alpha, the fraction dropped at the start, in [0, 1).
        interval: optimizer steps between updates.
        begin: updates start after this step.
        end: step of the last update; the paper stops at 75 % of training.
        allocation: `ERK()` or `Uniform(first_dense=True)`.
    """

    def plan(self) -> Plan:
        """Drop by `|w|` and grow by the dense gradient, a fraction on a cosine from alpha to 0."""
        fraction = self.schedule_of(Cosine, 0.0, self.regrow)
        return self._sparse(Growth(gradient_magnitude, fraction, keeps_value=True, skips_step=True))


@dataclass(frozen=True, kw_only=True)
class GraNet(ScheduledMethod):
    """GraNet (Liu et al., 2021): gradual global magnitude pruning with zero-cost neuroregeneration.

    At every update the network is pruned by global magnitude to the cubic sparsity; then each layer
    drops the fraction `r_t` of what it keeps by `|w|` and grows as many by the dense gradient's
    magnitude, with `r_t` on a cosine from `regrow` to `regrow_final`.

    Args:
        sparsity: fraction pruned after the last update, in [0, 1).
        regrow: first `r_t`, in [0, 1).
        regrow_final: last `r_t`, in [0, 1).
        interval: optimizer steps between updates.
        begin: updates start after this step.
        end: step of the last update that prunes.
        regrow_until: step of the last update at all: from `end` to it layers drop and grow at the
            final sparsity, and the cosine of `r_t` ends there. The released code goes on to the end
            of training; None: until `end`.
    """

    sparsity: float = 0.95
    regrow: float = 0.5
    regrow_final: float = 0.005
    interval: int = 1000
    regrow_until: int | None = None

    def __post_init__(self) -> None:
        check_fraction("regrow", self.regrow)
        check_fraction("regrow_final", self.regrow_final)
        if self.regrow_until is not None:
            check_integer("regrow_until", self.regrow_until)
            if self.end is None or self.regrow_until < self.end:
                raise ValueError(
                    f"Expected regrow_until of at least end = {self.end} but got "
                    f"{self.regrow_until}: give both, or leave it out"
                )
        super().__post_init__()

    def plan(self) -> Plan:
        """Drop by global `|w|` and grow by the dense gradient, a fraction on a cosine."""
        if self.end is None or self.regrow_until is None:
            schedule = self.cubic()
            fraction = self.schedule_of(Cosine, self.regrow_final, self.regrow)
        else:
            when = {"interval": self.interval, "begin": self.begin, "end": self.regrow_until}
            schedule = CubicHold(final=self.sparsity, until=self.end, **when)
            fraction = Cosine(final=self.regrow_final, initial=self.regrow, **when)
        grow = Growth(gradient_magnitude, fraction, keeps_value=True)
        return self._plan(schedule=schedule, drop=magnitude, grow=grow)
