"""What mask updates did: one record an update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
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
    """

    step: int
    target: float
    sparsity: float
    kept: dict[str, int]
    dropped: dict[str, int]
    grown: dict[str, int]
    pruned: dict[str, list[int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)


def totals(history: Iterable[UpdateRecord], kind: str) -> dict[str, int]:
    """Return the sum of ``"dropped"`` or ``"grown"`` over a run, by layer name."""
    result: dict[str, int] = {}
    for record in history:
        for name, number in getattr(record, kind).items():
            result[name] = result.get(name, 0) + number
    return result
