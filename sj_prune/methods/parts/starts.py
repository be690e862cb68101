"""Starts: what the masks are when a network is wrapped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from sj_prune._checks import check_fraction


@dataclass(frozen=True)
class Dense:
    """Everything is kept until the first update."""


@dataclass(frozen=True)
class FromZeros:
    """What is 0 in the network stays 0: one that is sparse already is trained on as it is.

    No update falls below the sparsity that it has.
    """


@dataclass(frozen=True)
class RandomMasks:
    """Random masks, divided over layers by the plan's allocation.

    Args:
        sparsity: of them, in [0, 1); None: the final one of the schedule.
    """

    sparsity: float | None = None

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            check_fraction("sparsity of the start", self.sparsity)


#: what a plan's `start` may be
Start: TypeAlias = Dense | FromZeros | RandomMasks
