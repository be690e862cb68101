"""APoZ (Hu et al., 2016): channels whose neurons are silent most of the time go first."""

from __future__ import annotations

from dataclasses import dataclass

from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.parts import Statistic
from sj_prune.methods.plan import Plan


@dataclass(frozen=True, kw_only=True)
class APoZ(ChannelMethod):
    """Channel pruning by the average percentage of zeros (arXiv 1607.03250).

    The zeros of a spiking neuron are its silent time steps, ``APoZ = 1 - firing_rate``: channels
    with the lowest firing rate are dropped first. Uniform over layers by default. Arguments are
    those of `ChannelMethod`; layers that no recording neuron follows have no score of their own.
    """

    def plan(self) -> Plan:
        """Drop by the firing rate."""
        return self._channel_plan(Statistic("firing_rate", self.batches))
