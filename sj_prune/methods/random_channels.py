"""Random channels: the control that any score for channels has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.parts import noise
from sj_prune.methods.plan import Plan


@dataclass(frozen=True, kw_only=True)
class RandomChannels(ChannelMethod):
    """Channel pruning with random scores. Arguments are those of `ChannelMethod`."""

    def plan(self) -> Plan:
        """Drop by uniform noise, seeded."""
        return self._channel_plan(noise)
