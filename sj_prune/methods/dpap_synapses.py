"""DPAP's second part (Han et al.): synapses of linear layers die that are seldom used together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune._checks import check_factor, check_fraction
from sj_prune.masks.allocation import Allocation, Global
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.dpap import Survival, see, unit
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView


@dataclass(frozen=True, kw_only=True)
class DPAPSynapses(ScheduledMethod):
    """Developmental plasticity-inspired adaptive pruning (Han et al., arXiv 2211.12714): synapses.

    As `DPAP`, but of the single weights of linear layers: ``b[out, in]`` adds up ``post[out]``
    times the `c` of the input, is never reset, and is what a synapse survives by: at update `t`,
    once an epoch, ``R = 0.999 R + delta exp(-int((t - 1)/13))`` with ``delta = 2 v(u(b)) - 1.5``,
    and 2 more where that is positive. A synapse with ``R < 0`` is pruned for good: the sparsity
    **emerges**. Convolutions, and layers without recording neurons behind them, stay dense.

    Not the paper's: behind a flatten each input has the `c` of its channel, for that is summed over
    the map; a layer without spiking neurons before it counts its inputs as 1.

    Args:
        sparsity: what is hoped for, beside what is reached in records; it decides nothing, but
            where `update_masks` or `sj_prune.prune` ask for one.
        interval: optimizer steps between updates: the steps of one epoch, ``len(loader)``.
        begin: updates start after this step: ``4 * len(loader)`` in the paper.
        end: step of the last update.
        allocation: of what `update_masks` and `sj_prune.prune` ask for.
        patience: `R` of every synapse at first, at least 0.
        decay: what is left of `R` at an update, in [0, 1).
        batches: optimizer steps before an update that count; None: all.
    """

    sparsity: float = 0.5
    allocation: Allocation = Global()
    patience: float = 10.0
    decay: float = 0.999
    batches: int | None = None

    def __post_init__(self) -> None:
        check_factor("patience", self.patience)
        check_fraction("decay", self.decay)
        super().__post_init__()

    def plan(self) -> Plan:
        """Drop whose `R` has fallen below 0."""
        score = SynapseSurvival(self.interval, self.begin, self.patience, self.decay, self.batches)
        return self._plan(
            schedule=self.constant(), drop=score, allocation=self.allocation, threshold=0.0
        )


@dataclass(frozen=True)
class SynapseSurvival(Survival):
    """`R` of every synapse of a linear layer, ``[C_out, C_in]``; adds up `b`, which lasts."""

    remembered = True

    def sums(self, layer: LayerView) -> dict[str, Tensor]:
        """Return zeros: `b`, ``[C_out, C_in]`` in float64, and what `Survival` has."""
        if layer.weight.ndim > 2:
            return {}
        return {**super().sums(layer), "b": torch.zeros_like(layer.weight, dtype=torch.float64)}

    def add(self, layer: LayerView) -> None:
        """Add the samples of the batch."""
        if layer.weight.ndim > 2 or (seen := see(layer)) is None:
            return
        post, before = seen
        features, channels = layer.weight.shape[1], before.shape[1]
        if features % channels:  # nothing tells which input is whose
            before, channels = torch.ones_like(before[:, :1]), 1
        each = before.repeat_interleave(features // channels, 1)
        layer.state["b"] += post.T @ each

    def __call__(self, layer: LayerView) -> Tensor | None:
        """Return `R` at this update; None of convolutions, and without recording neurons."""
        if layer.activity is None or layer.weight.ndim > 2:
            return None
        return self.survival(layer, unit(layer.state["b"]))
