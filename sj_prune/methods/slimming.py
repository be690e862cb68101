"""Network slimming (Liu et al., 2017): channels whose scale at the norm is driven to 0."""

from __future__ import annotations

from dataclasses import dataclass

from sj_prune._checks import check_factor
from sj_prune.masks.allocation import Allocation, Global
from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.parts import Penalty, add_gamma_l1, gamma_magnitude
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView


@dataclass(frozen=True, kw_only=True)
class NetworkSlimming(ChannelMethod):
    """Channel pruning by `|gamma|` after training with an L1 penalty on it (arXiv 1708.06519).

    The loss gets ``l1 * sum |gamma|`` (eq. (16) of arXiv 2311.16141) until the update; then the
    channels with the smallest `|gamma|` over all layers go, and training goes on without penalty.
    Needs norms: channels without one stay dense. No layer is emptied (``min_keep`` of `Channels`).

    Args:
        sparsity: fraction of the channels that ends up pruned, in [0, 1).
        regrow: fraction of the **kept** channels that is grown anew at an update, in [0, 1); the
            paper has none.
        growth: score of regrowth: "gradient", "criticality", "random" or "score".
        interval: optimizer steps between updates (cubic sparsity); None: one shot, at `end`.
        begin: penalty and updates start after this step.
        end: step of the last update; the penalty ends there. None: masks change by `update_masks`
            and `sj_prune.prune`, and nothing is penalized.
        structure: `Channels(linear=..., min_keep=..., multiple=...)`.
        allocation: `Global()` or `Uniform()`.
        wake: "restore" or "zero": gamma and beta of a waking channel.
        batches: optimizer steps before an update that growth by criticality looks at; None: all.
        l1: strength of the penalty; the paper uses 1e-4 (VGG) and 1e-5 (ResNet, DenseNet).
    """

    allocation: Allocation = Global()
    l1: float = 1e-4

    def __post_init__(self) -> None:
        check_factor("l1", self.l1)
        super().__post_init__()

    def plan(self) -> Plan:
        """Drop by `|gamma|`, which an L1 penalty drives to 0 before the last update."""
        return self._slimming_plan()

    def _slimming_plan(self, statistic: str = "criticality_max") -> Plan:
        penalty = Penalty(gradient=GammaL1(self.l1, self.begin, self.end), of="gamma")
        return self._channel_plan(
            gamma_magnitude, grow=self._growth(statistic=statistic), penalties=(penalty,)
        )


@dataclass(frozen=True)
class GammaL1:
    """``l1 * sum |gamma|`` in the steps between `begin` and the last update, at `end`."""

    l1: float
    begin: int
    end: int | None

    def __call__(self, layer: LayerView) -> None:
        """Add ``l1 * sign(gamma)``."""
        # The update of a step comes before its penalties, so that at `end` itself there is none.
        if self.end is not None and self.begin < layer.step < self.end:
            add_gamma_l1(layer, self.l1)
