"""SVS, the channel criterion of QP-SNN (2025): singular values of spike maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune._checks import check_choice
from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.parts import Statistic, function_name
from sj_prune.methods.plan import Plan


@dataclass(frozen=True, kw_only=True)
class SVS(ChannelMethod):
    """Channel pruning by the singular values of spike maps (QP-SNN, ICLR 2025).

    The score of a channel is the mean over samples of ``(1/T) sum_t sum_i sigma_i(S_t)``, `S_t` the
    map of its spikes at step `t`; channels with the lowest are dropped first, in each layer.
    Features of linear layers have no map: they go by the firing rate. The decomposition costs
    more than the forward: `batches=1` looks at one batch before an update. Arguments are those of
    `ChannelMethod`, and

    Args:
        of: "steps", singular values of the map of every step; or "mean", of the map of firing
            rates, which is not the paper's but T times cheaper.
    """

    of: str = "steps"

    def __post_init__(self) -> None:
        check_choice("of", self.of, tuple(_KINDS))
        super().__post_init__()

    def plan(self) -> Plan:
        """Drop by the singular values of spike maps."""
        return self._channel_plan(Statistic(function_name(_KINDS[self.of]), self.batches))


def of_steps(spikes: Tensor) -> Tensor:
    """Return the sum of singular values of each map, mean over steps.

    Args:
        spikes: ``[T, N, C, H, W]``, or without a map.

    Returns:
        ``[N, C]``.
    """
    if spikes.ndim == 3:
        return spikes.float().mean(0)
    maps = spikes if spikes.ndim > 4 else spikes.unsqueeze(-1)
    wide = maps if maps.dtype == torch.float64 else maps.float()
    return torch.linalg.svdvals(wide.flatten(4)).sum(-1).mean(0)


def of_mean(spikes: Tensor) -> Tensor:
    """Return the sum of singular values of the map of firing rates, ``[N, C]``; as `of_steps`."""
    wide = spikes if spikes.dtype == torch.float64 else spikes.float()
    return of_steps(wide.mean(0, keepdim=True))


_KINDS = {"steps": of_steps, "mean": of_mean}
