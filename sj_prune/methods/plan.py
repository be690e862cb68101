"""Plan: a method as the parts that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from sj_prune._checks import check_fraction
from sj_prune.masks.allocation import Allocation, Global
from sj_prune.masks.bindings import AtUpdates, Binding, Hidden, Strict
from sj_prune.masks.schedule import Schedule
from sj_prune.masks.structure import Structure, Unstructured
from sj_prune.methods.parts.gates import Gates
from sj_prune.methods.parts.growth import Growth
from sj_prune.methods.parts.penalties import Penalty
from sj_prune.methods.parts.scores import (
    GRADIENTS,
    Accumulating,
    Reads,
    Score,
    awake_score,
    reads_of,
)
from sj_prune.methods.parts.starts import Dense, Start
from sj_prune.methods.view import LayerView

#: called as ``rewrite(layer)`` by `sj_prune.prune` once masks are installed; returns new values of
#: the weight, of which the kept ones count
Rewrite: TypeAlias = Callable[[LayerView], Tensor]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to drop and grow, how much, when, and what a pruned unit is in between.

    Args:
        schedule: when updates happen, and to what sparsity.
        drop: score by which units are kept, low goes first; a layer (or group of channels) where it
            returns None stays dense and the sparsity does not count it. None in its place: the
            binding decides what is 0, and the sparsity emerges.
        grow: what is grown anew, and how much; None: nothing.
        structure: what is pruned as one piece.
        allocation: how the kept units are divided over layers.
        penalties: what training adds to the loss or does to the weights.
        gates: factors behind the neurons, which are learned; None: spikes are as they are.
        binding: what a pruned unit is between updates; `Strict()` lets channels sleep.
        start: masks of a network that has just been wrapped.
        threshold: a scheduled update drops whatever scores less, and the sparsity of the schedule
            is for the records; None: as many as the schedule says.
        rewrite: changes kept weights after pruning, in `sj_prune.prune` alone.
        name: for messages and checkpoints.

    Raises:
        TypeError: if a part is of the wrong type.
        ValueError: for parts that do not go together, with the reason.
    """

    schedule: Schedule
    drop: Score | None = None
    grow: Growth | None = None
    structure: Structure = Unstructured()
    allocation: Allocation = Global()
    penalties: tuple[Penalty, ...] = ()
    gates: Gates | None = None
    binding: Binding = Strict()
    start: Start = Dense()
    threshold: float | None = None
    rewrite: Rewrite | None = None
    name: str = field(default="Plan", compare=False)

    def __post_init__(self) -> None:
        _check_types(self)
        reason = self._refused()
        if reason is not None:
            raise ValueError(f"Expected parts of {self.name} that go together but {reason}")

    def _refused(self) -> str | None:
        hidden, grow = isinstance(self.binding, Hidden), self.grow
        only = self.structure.sparsity
        reasons = (
            (
                only is not None and abs(self.sparsity - only) > 1e-9,
                f"structure={self.structure!r} ends at one sparsity, {only}: sparsity={only}",
            ),
            (
                only is not None and grow is not None and grow.of == "zero",
                f"structure={self.structure!r} exchanges within blocks, and what has come to 0 is "
                "not the worst of each: structure=Unstructured()",
            ),
            (
                self.threshold is not None and (only is not None or self.drop is None),
                "threshold= lets as many go as score less than it: give drop=, without blocks",
            ),
            (
                self.drop is None and not hidden,
                "nothing says what is dropped: give drop=, a score, or a binding that decides by "
                "itself (Hidden)",
            ),
            (
                hidden and self.drop is not None,
                "a hidden variable decides what is 0, and would die where a score drops: leave "
                "drop= out",
            ),
            (hidden and grow is not None, "hidden variables grow by themselves: leave grow= out"),
            (
                hidden and not isinstance(self.start, Dense),
                "hidden variables start from the weights: start=Dense()",
            ),
            (
                self.structure.sleeps and grow is not None and grow.initial != 0,
                "a channel wakes with the filter that it fell asleep with: leave initial= out",
            ),
            (
                not self.structure.sleeps and awake_score in self.scores,
                "only channels sleep and have a score from when they were awake: "
                "structure=Channels()",
            ),
            (
                self.gates is not None and any(p.synops is not None for p in self.penalties),
                "behind gates spikes are real numbers, which are no SynOps: leave gates out",
            ),
        )
        return self.structure.refuse(self.allocation, self.binding) or next(
            (reason for true, reason in reasons if true), None
        )

    # ---- what follows from the parts -----------------------------------------------------------

    @property
    def sparsity(self) -> float:
        """The final one."""
        return self.schedule.final

    @property
    def emergent(self) -> bool:
        """Whether the weights themselves decide what is pruned."""
        return self.drop is None

    @property
    def scores(self) -> tuple[Score, ...]:
        """All scores."""
        grow = () if self.grow is None else (self.grow.score, self.grow.ties)
        return tuple(score for score in (self.drop, *grow) if callable(score))

    @property
    def accumulating(self) -> tuple[Accumulating, ...]:
        """Scores that add something up at every step."""
        known: tuple[object, ...] = self.scores
        found: list[Accumulating] = []
        for score in known:  # a score may be both what drops and what grows
            if isinstance(score, Accumulating) and not any(score is other for other in found):
                found.append(score)
        return tuple(found)

    @property
    def statistics(self) -> frozenset[str]:
        """What the neurons have to record."""
        return frozenset().union(*(reads_of(score).statistics for score in self.scores))

    @property
    def needs_graph(self) -> bool:
        """Whether it matters which norms and neurons follow a weight: else nothing is traced."""
        gamma = any(reads_of(score).what & {"gamma", "gamma gradient"} for score in self.scores)
        penalized = any(penalty.of == "gamma" for penalty in self.penalties)
        return (
            bool(self.statistics)
            or gamma
            or penalized
            or self.gates is not None
            or self.structure.needs_forward
        )

    @property
    def gradient(self) -> str:
        """When the *dense* gradient is needed: "never", at an "update", or "always"."""
        if isinstance(self.binding, Hidden):
            return "always"
        once = (s for s in self.scores if not isinstance(s, Accumulating))
        return "update" if any(reads_of(score).what & GRADIENTS for score in once) else "never"

    @property
    def needs_inputs(self) -> bool:
        """Whether a score adds up what goes into layers: in `sj_prune.prune` alone."""
        return any("inputs" in reads_of(score).what for score in self.accumulating)

    @property
    def window(self) -> int | None:
        """Optimizer steps before an update that count for the scores; None = all of them."""
        lasting = [s for s in self.scores if isinstance(s, Accumulating) or reads_of(s).statistics]
        batches = [reads_of(score).batches for score in lasting]
        known = [number for number in batches if number is not None]
        return max(known) if batches and len(known) == len(batches) else None

    @property
    def from_scratch(self) -> bool:
        """Whether an update ranks all units, pruned or not: in between all of them are active."""
        return isinstance(self.binding, AtUpdates)

    @property
    def needs_norm(self) -> bool:
        """Whether channels without a norm have nothing to be dropped by."""
        return "gamma" in self._drop_reads.what

    @property
    def scores_neurons(self) -> bool:
        """Whether layers without recording neurons have nothing to be dropped by."""
        return bool(self._drop_reads.statistics)

    @property
    def _drop_reads(self) -> Reads:
        return Reads() if self.drop is None else reads_of(self.drop)


@runtime_checkable
class Planned(Protocol):
    """Anything with a plan, such as the published methods."""

    def plan(self) -> Plan:
        """Return the plan."""
        ...


def plan_of(method: object) -> Plan:
    """Return the plan of a method, or the plan itself, named after its class.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(method, Plan):
        return method
    if isinstance(method, type) or not isinstance(method, Planned):
        hint = f": write {method.__name__}(...)" if isinstance(method, type) else ""
        raise TypeError(
            "Expected method to be an instance of a class in sj_prune.methods, or a Plan, but got "
            f"{method!r}{hint}"
        )
    plan = method.plan()
    if not isinstance(plan, Plan):
        raise TypeError(
            f"Expected {type(method).__name__}.plan() to return a Plan but got {plan!r}"
        )
    return plan if plan.name != "Plan" else replace(plan, name=type(method).__name__)


def _check_types(plan: Plan) -> None:
    name = plan.name
    _expect(isinstance(plan.schedule, Schedule), f"schedule of {name}", "a Schedule", plan.schedule)
    check_fraction("final sparsity of the schedule", plan.schedule.final)
    rewrite = plan.rewrite is None or callable(plan.rewrite)
    _expect(rewrite, f"rewrite of {name}", "a function of a layer", plan.rewrite)
    _expect(
        plan.drop is None or callable(plan.drop),
        f"drop of {name}",
        "a score, a function of a layer,",
        plan.drop,
    )
    _expect(
        plan.grow is None or isinstance(plan.grow, Growth),
        f"grow of {name}",
        "Growth(score, fraction)",
        plan.grow,
    )
    structure = not isinstance(plan.structure, type) and hasattr(plan.structure, "masks")
    _expect(structure, "structure", "Unstructured() or Channels()", plan.structure)
    if isinstance(plan.allocation, type) or not hasattr(plan.allocation, "pools"):
        raise TypeError(
            f"Expected allocation of {name} to be {plan.structure.allocations} but got "
            f"{plan.allocation!r}: give an instance, with parentheses"
        )
    penalties = isinstance(plan.penalties, tuple) and all(
        isinstance(penalty, Penalty) for penalty in plan.penalties
    )
    _expect(penalties, f"penalties of {name}", "a tuple, as in (Penalty(...),),", plan.penalties)
    gates = plan.gates is None or isinstance(plan.gates, Gates)
    _expect(gates, f"gates of {name}", "Gates(start=..., learn=...)", plan.gates)
    _expect(isinstance(plan.binding, Binding), f"binding of {name}", "a binding", plan.binding)
    _expect(
        isinstance(plan.start, Start),
        f"start of {name}",
        "Dense(), FromZeros() or RandomMasks()",
        plan.start,
    )


def _expect(true: bool, what: str, wanted: str, got: Any) -> None:  # noqa: ANN401
    if not true:
        raise TypeError(f"Expected {what} to be {wanted} but got {got!r}")
