"""APoZ (Hu et al., 2016): channels whose neurons are silent most of the time go first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sj_prune.methods.base import LayerView
from sj_prune.methods.channels import ChannelMethod, statistic

__all__ = ["APoZ"]


@dataclass(frozen=True, kw_only=True)
class APoZ(ChannelMethod):
    """Channel pruning by the average percentage of zeros (arXiv 1607.03250).

    The zeros of a spiking neuron are its silent time steps, ``APoZ = 1 - firing_rate``: channels
    with the lowest firing rate are dropped first. Uniform over layers by default. Arguments are
    those of `ChannelMethod`; layers that no recording neuron follows have no score of their own.
    """

    scores_neurons: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The firing rate, and what growth reads."""
        return super().needs | {"firing_rate"}

    def drop_score(self, view: LayerView) -> Tensor | None:
        """Return the firing rate, ``[C_out]``; None without recording neurons."""
        return statistic(view, "firing_rate")
