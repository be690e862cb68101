"""Random channels: the control that any score for channels has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune.methods.base import LayerView
from sj_prune.methods.channels import ChannelMethod

__all__ = ["RandomChannels"]


@dataclass(frozen=True, kw_only=True)
class RandomChannels(ChannelMethod):
    """Channel pruning with random scores. Arguments are those of `ChannelMethod`."""

    def drop_score(self, view: LayerView) -> Tensor:
        """Return uniform noise, seeded, ``[C_out]``."""
        weight = view.weight
        return torch.rand(len(weight), device=weight.device, generator=view.generator)
