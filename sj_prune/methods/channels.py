"""What all channel methods share: when, how much, what is recorded, how channels grow back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sj_prune._checks import check_choice, check_fraction, check_steps
from sj_prune.masks.allocation import Allocation, Uniform
from sj_prune.masks.bindings import Sleep
from sj_prune.masks.schedule import Manual, OneShot, Schedule
from sj_prune.masks.structure import Channels
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import Growth, Score, Statistic, awake_score, gate_gradient, noise
from sj_prune.methods.plan import Plan

#: what channels grow by; criticality is read as its method aggregates it
GROWTHS = ("gradient", "criticality", "random", "score")
_GROWTHS: dict[str, Score] = {"gradient": gate_gradient, "random": noise, "score": awake_score}


@dataclass(frozen=True, kw_only=True)
class ChannelMethod(ScheduledMethod):
    """Base of the methods that prune whole channels, with regrowth by a score of one's choice.

    Args:
        sparsity: fraction of the channels that ends up pruned, in [0, 1). Coupled channels count
            once.
        regrow: fraction that is grown anew at an update, in [0, 1): of the **kept** channels
            (`SCA`: of all). 0 = pruning only.
        growth: what a channel is grown by: "gradient", `|dL/dgamma|` of a channel that sleeps
            behind its norm, or the gate gradient `|<dL/dW, W> + dL/db b|` of one without;
            "criticality" of its neurons; "random"; or "score", the drop score when it was last
            awake.
        interval: optimizer steps between updates (cubic sparsity); None: one update, at `end`.
        begin: updates start after this step.
        end: step of the last update; None: masks change by `update_masks` and `sj_prune.prune`.
        structure: `Channels(linear=..., min_keep=..., multiple=...)`, of `sj_prune.masks`.
        allocation: `Global()` or `Uniform()`.
        wake: "restore" gives a waking channel the gamma and beta that it fell asleep with; "zero"
            starts them at 0.
        batches: optimizer steps before an update whose batches are scored, where a score reads
            neurons or gradients; None: all since the update before.
    """

    sparsity: float = 0.5
    regrow: float = 0.0
    growth: str = "gradient"
    interval: int | None = None  # type: ignore[assignment]
    structure: Channels = Channels()
    allocation: Allocation = Uniform()
    wake: str = "restore"
    batches: int | None = None

    def __post_init__(self) -> None:
        check_fraction("regrow", self.regrow)
        check_choice("growth", self.growth, GROWTHS)
        check_choice("wake", self.wake, ("restore", "zero"))
        if not isinstance(self.structure, Channels):
            raise TypeError(
                f"Expected structure of {type(self).__name__} to be Channels() but got "
                f"{self.structure!r}"
            )
        super().__post_init__()
        if self.interval is not None:
            check_steps("interval", self.interval)
        if self.batches is not None:
            check_steps("batches", self.batches, self._steps_between)

    @property
    def _steps_between(self) -> int | None:
        if self.interval is None:
            return None if self.end is None else self.end - self.begin
        return self.interval

    def channel_schedule(self) -> Schedule:
        """Return one update at `end`, or cubic over updates every `interval` steps."""
        if self.end is None:
            return Manual(final=self.sparsity)
        if self.interval is None:
            return OneShot(final=self.sparsity, begin=self.begin, end=self.end)
        return self.cubic()

    def _growth(self, of: str = "kept", statistic: str = "criticality_max") -> Growth | None:
        """Return what grows; None where nothing does."""
        if not self.regrow:
            return None
        by_criticality = Statistic(statistic, self.batches, relative=True)
        score = by_criticality if self.growth == "criticality" else _GROWTHS[self.growth]
        # Growth is ranked as pruning is: together where that is global.
        across = not isinstance(self.allocation, Uniform)
        return Growth(score, self.regrow, of=of, across_layers=across, keeps_value=True)

    def _channel_plan(self, drop: Score, **parts: Any) -> Plan:  # noqa: ANN401
        """Return a plan that drops by a score; what differs from the usual is in `parts`."""
        usual = {
            "schedule": self.channel_schedule(),
            "grow": self._growth(),
            "allocation": self.allocation,
            "binding": Sleep(self.wake),
        }
        return self._plan(drop=drop, **{**usual, **parts})
