"""Global magnitude pruning (GMP), and its control with random scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune.masks.allocation import Allocation, Global
from sj_prune.methods.base import LayerView, ScheduledMethod

__all__ = ["Magnitude", "Random"]


@dataclass(frozen=True, kw_only=True)
class Magnitude(ScheduledMethod):
    """Gradual pruning by weight magnitude, without regrowth: the baseline of every table.

    Importance is `|w|` under one global threshold, eq. (14), at the cubic sparsity of eq. (15) of
    arXiv 2311.16141. Global ranking by default.

    Args:
        sparsity: fraction pruned after the last update, in [0, 1).
        interval: optimizer steps between updates; the paper uses 2000.
        begin: updates start after this step.
        end: step of the last update.
        allocation: `Global()`, `Uniform()` or `ERK()`.
    """

    sparsity: float = 0.95
    interval: int = 2000
    allocation: Allocation = Global()  # type: ignore[assignment]

    def drop_score(self, view: LayerView) -> Tensor:
        """Return `|w|`."""
        return view.weight.abs()


@dataclass(frozen=True, kw_only=True)
class Random(Magnitude):
    """As `Magnitude` with random scores: what any criterion has to beat. Same arguments."""

    def drop_score(self, view: LayerView) -> Tensor:
        """Return uniform noise, seeded."""
        weight = view.weight
        return torch.rand(weight.shape, device=weight.device, generator=view.generator)
