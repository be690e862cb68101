"""LAMP (Lee et al., 2021): layer-adaptive magnitudes under one global ranking."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView


@dataclass(frozen=True, kw_only=True)
class LAMP(ScheduledMethod):
    """Layer-adaptive magnitude pruning (Lee et al., ICLR 2021, arXiv 2010.07611), eq. (6).

    ``score(u) = w_u^2 / sum of w_v^2 over w_v^2 >= w_u^2`` within each layer, then one global
    ranking at the cubic sparsity: the densities of layers follow by themselves, and as every
    layer's largest weight scores 1, none is emptied before all others are down to one weight.
    Suffix sums are taken in float64; equal weights of a layer score alike.

    Args:
        sparsity: fraction pruned after the last update, in [0, 1).
        interval: optimizer steps between updates.
        begin: updates start after this step.
        end: step of the last update.
    """

    sparsity: float = 0.95
    interval: int = 2000

    def plan(self) -> Plan:
        """Drop by the layer-adaptive magnitude, over all layers together."""
        return self._plan(schedule=self.cubic(), drop=adaptive_magnitude)


def adaptive_magnitude(layer: LayerView) -> Tensor:
    """Return the LAMP score of every weight, in float64."""
    sizes, order = layer.weight.abs().flatten().sort()
    squares = sizes.double().square()
    left = squares.flip(0).cumsum(0).flip(0)  # of it and all behind it
    # Where sizes are equal, the sum is that of the first of them.
    first = torch.arange(len(sizes), device=sizes.device)
    first[1:].masked_fill_(sizes[1:] == sizes[:-1], 0)
    rest = left[first.cummax(0).values].clamp_min(torch.finfo(left.dtype).tiny)  # of zeros alone
    return torch.empty_like(squares).scatter_(0, order, squares / rest).view_as(layer.weight)
