"""What published methods share: fields, their checks, and a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sj_prune._checks import check_fraction, check_integer
from sj_prune.masks.schedule import Constant, Cubic, Manual, OneShot, Schedule
from sj_prune.masks.structure import Structure, Unstructured
from sj_prune.methods.parts import Start
from sj_prune.methods.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of the published methods: a docstring, fields with the paper's defaults, and a `plan`.

    Args:
        sparsity: fraction of the prunable weights that ends up pruned, in [0, 1).
        structure: what is pruned as one piece.
        start: masks of a network that has just been wrapped, such as `FromZeros()`; None: as the
            method has it.
    """

    sparsity: float
    structure: Structure = Unstructured()
    start: Start | None = None

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)
        self.plan()  # its parts validate themselves

    def plan(self) -> Plan:
        """Return the parts that this method is made of."""
        raise NotImplementedError

    def _plan(self, **parts: Any) -> Plan:  # noqa: ANN401
        """Return a plan of this name and structure."""
        if self.start is not None:
            parts["start"] = self.start
        return Plan(**{"structure": self.structure, "name": type(self).__name__, **parts})


@dataclass(frozen=True, kw_only=True)
class ScheduledMethod(Method):
    """A method whose masks are updated every `interval` optimizer steps.

    Args:
        sparsity: fraction pruned after the last update, in [0, 1).
        interval: optimizer steps between updates.
        begin: updates start after this step.
        end: step of the last update; None: masks change by `update_masks` alone, as in
            `sj_prune.prune`.
    """

    interval: int
    begin: int = 0
    end: int | None = None

    def schedule_of(self, kind: type[Schedule], final: float, initial: float = 0.0) -> Schedule:
        """Return a schedule of `kind` over this method's updates."""
        if self.end is None:
            return Manual(final=final)
        return kind(
            final=final, initial=initial, interval=self.interval, begin=self.begin, end=self.end
        )

    def cubic(self) -> Schedule:
        """Return eq. (15) of arXiv 2311.16141: cubic from 0 to `sparsity`."""
        return self.schedule_of(Cubic, self.sparsity)

    def once(self) -> Schedule:
        """Return one update, to `sparsity` at `end`; until then something happens at intervals."""
        check_integer("interval", self.interval, 1)
        schedule = self.constant()  # the interval has to fit in
        if self.end is None:
            return schedule
        return OneShot(final=self.sparsity, begin=self.begin, end=self.end)

    def constant(self) -> Schedule:
        """Return `sparsity` at every update."""
        return self.schedule_of(Constant, self.sparsity, self.sparsity)
