"""Growth: by what, how much, and how what is grown anew begins."""

from __future__ import annotations

from dataclasses import dataclass

from sj_prune._checks import (
    check_choice,
    check_flag,
    check_fraction,
    check_integer,
    check_number,
)
from sj_prune.masks.schedule import Schedule
from sj_prune.methods.parts.scores import Score

#: nothing is exchanged; what is missing to the target is grown
FILL = 0.0


@dataclass(frozen=True)
class Growth:
    """Regrowth of pruned units, the highest score first.

    What starts anew moves from the next step on: in the step of the update its gradient is 0,
    whatever the score, of which only some have such gradients at all.

    Args:
        score: what units are grown by; a layer where it is None never grows.
        fraction: of the units that are exchanged at an update, in [0, 1), or a schedule of it;
            `FILL`: none, only what is missing is grown.
        of: what it is a fraction of: the units "kept", "all" units, or those alive "before"; or
            "zero": exchanged are those with a drop score of 0, however many.
        initial: what the weights of new units start at.
        ties: a score that decides between equal ones (then a seeded order does), or "all": every
            unit that ties with the last one is grown, more than asked.
        across_layers: rank growth over all layers together, instead of within each.
        keeps_value: what is dropped and regrown in one update keeps its weight and slots.
        skips_step: the optimizer step of an update is skipped, of all weights.
        grace: number of later updates in which what has been grown is not dropped, as far as the
            sparsity leaves room for it.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range.
    """

    score: Score
    fraction: float | Schedule
    of: str = "kept"
    initial: float = 0.0
    ties: Score | str | None = None
    across_layers: bool = False
    keeps_value: bool = False
    skips_step: bool = False
    grace: int = 0

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise TypeError(
                f"Expected a growth score, a function of a layer, but got {self.score!r}"
            )
        given = self.fraction
        ends = (given.initial, given.final) if isinstance(given, Schedule) else (given,)
        for value in ends:
            check_fraction("fraction of growth", value)
        check_choice("of", self.of, ("kept", "all", "before", "zero"))
        check_number("initial", self.initial)
        check_integer("grace", self.grace, 0)
        for name in ("across_layers", "keeps_value", "skips_step"):
            check_flag(name, getattr(self, name))
        if self.ties is not None and not callable(self.ties):
            check_choice("ties", self.ties, ("all",))

    @property
    def exact_ties(self) -> bool:
        """Whether exactly as many are grown as asked."""
        return self.ties != "all"

    def at(self, step: int) -> float:
        """Return the fraction at a step."""
        return self.fraction.at(step) if isinstance(self.fraction, Schedule) else self.fraction
