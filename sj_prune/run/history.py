"""What mask updates did: one record an update."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class UpdateRecord:
    """One mask update, in numbers of weights by layer name, or of units by group of channels.

    Attributes:
        step: optimizer step it happened in.
        target: sparsity asked for.
        sparsity: sparsity reached.
        kept: alive afterwards.
        dropped: alive before and not a survivor.
        grown: not a survivor and alive afterwards.
        pruned: which units are pruned afterwards, by group of channels; empty for single weights.
        survived: of what the update before had grown, kept by the prune of this one; empty where
            there was none before, or an older release had made it.
    """

    step: int
    target: float
    sparsity: float
    kept: dict[str, int]
    dropped: dict[str, int]
    grown: dict[str, int]
    pruned: dict[str, list[int]] = field(default_factory=dict)
    survived: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)


def survival(history: Sequence[UpdateRecord]) -> dict[str, float]:
    """Return which fraction of what updates grew survived the prune of the next one.

    Args:
        history: consecutive records: of a run, or two for the survival at the second.

    Returns:
        By layer name, where anything was grown; that of all layers under ``"total"``.
    """
    kept: dict[str, int] = {}
    grown: dict[str, int] = {}
    for before, after in pairwise(history):
        for name, number in after.survived.items():
            for key in (name, "total"):
                kept[key] = kept.get(key, 0) + number
                grown[key] = grown.get(key, 0) + before.grown.get(name, 0)
    return {name: kept[name] / number for name, number in grown.items() if number}


def totals(history: Iterable[UpdateRecord], kind: str) -> dict[str, int]:
    """Return the sum of ``"dropped"`` or ``"grown"`` over a run, by layer name."""
    result: dict[str, int] = {}
    for record in history:
        for name, number in getattr(record, kind).items():
            result[name] = result.get(name, 0) + number
    return result
