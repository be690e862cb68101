"""FPGM (He et al., 2019): filters near the geometric median of their layer are replaceable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView


@dataclass(frozen=True, kw_only=True)
class FPGM(ChannelMethod):
    """Filter pruning via the geometric median (CVPR 2019, arXiv 1811.00250), section 3.3.

    The point that minimizes the sum of Euclidean distances to a layer's filters is their geometric
    median; the filters with the smallest ``sum_j ||W_c - W_j||_2`` lie nearest to it, the others
    can stand in for them, and they go first, however large they are. At later updates distances to
    the filters that are left count. Uniform over layers by default. Arguments are those of
    `ChannelMethod`.
    """

    def plan(self) -> Plan:
        """Drop by the sum of distances to the filters that are kept."""
        return self._channel_plan(distance_to_others)


def distance_to_others(layer: LayerView) -> Tensor:
    """Return ``sum_j ||W_c - W_j||_2`` over the kept filters of the layer, ``[C_out]``."""
    filters = layer.weight.flatten(1).double()
    kept = layer.mask.reshape(len(filters), -1).any(1).to(filters.device)
    return torch.cdist(filters, filters[kept]).sum(1)
