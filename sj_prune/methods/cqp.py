"""CQP: the magnitude of a weight times the criticality of the neuron that it feeds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sj_prune._checks import check_choice, check_steps
from sj_prune.masks.allocation import Allocation, Global
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import Reads, Statistic
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView


@dataclass(frozen=True, kw_only=True)
class CQP(ScheduledMethod):
    """Pruning by ``|w| * criticality`` of the post-synaptic neuron, without regrowth.

    The criticality is that of arXiv 2311.16141, eq. (13), here in the drop score: small weights
    of neurons near their threshold outlive larger ones of neurons far from it. It is divided by the
    peak of each surrogate, so it lies in [0, 1]. A layer that no neuron follows, such as a
    classifier, counts with 1: what reads it gets every change in full. That, the schedule and the
    window are ours; the paper leaves them open.

    Args:
        sparsity: fraction pruned after the last update, in [0, 1).
        interval: optimizer steps between updates.
        begin: updates start after this step.
        end: step of the last update.
        batches: optimizer steps before an update whose batches are scored.
        aggregate: "max" over the map, or "mean".
        allocation: `Global()`, `Uniform()` or `ERK()`.
    """

    sparsity: float = 0.95
    interval: int = 2000
    batches: int = 1
    aggregate: str = "max"
    allocation: Allocation = Global()

    def __post_init__(self) -> None:
        check_choice("aggregate", self.aggregate, ("max", "mean"))
        super().__post_init__()
        check_steps("batches", self.batches, self.interval)

    def plan(self) -> Plan:
        """Drop by magnitude times criticality, on a cubic schedule."""
        drop = CriticalMagnitude(f"criticality_{self.aggregate}", self.batches)
        return self._plan(schedule=self.cubic(), drop=drop, allocation=self.allocation)


@dataclass(frozen=True)
class CriticalMagnitude:
    """``|w|`` times the criticality of the neuron that the weight feeds.

    Args:
        statistic: the criticality that is read.
        batches: optimizer steps before an update whose batches are scored.
    """

    statistic: str
    batches: int = 1

    @property
    def reads(self) -> Reads:
        """The statistic."""
        return Reads(frozenset({self.statistic}), self.batches)

    def __call__(self, layer: LayerView) -> Tensor:
        """Return the score, in the shape of the weight."""
        criticality = Statistic(self.statistic, relative=True)(layer)
        size = layer.weight.double().abs()
        if criticality is None:
            return size
        return size * layer.per_weight(criticality)
