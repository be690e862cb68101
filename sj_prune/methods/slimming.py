"""Network slimming (Liu et al., 2017): channels whose scale at the norm is driven to 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sj_prune.masks.allocation import Allocation, Global
from sj_prune.methods.base import LayerView
from sj_prune.methods.channels import ChannelMethod, add_gamma_l1, check_factor

__all__ = ["NetworkSlimming"]


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

    allocation: Allocation = Global()  # type: ignore[assignment]
    l1: float = 1e-4

    needs_norm: ClassVar[bool] = True
    penalizes: ClassVar[str] = "norm"

    def __post_init__(self) -> None:
        check_factor("l1", self.l1)
        super().__post_init__()

    def drop_score(self, view: LayerView) -> Tensor | None:
        """Return `|gamma|`, ``[C_out]``; None where another layer has the norm."""
        gamma = view.gamma
        return None if gamma is None else gamma.abs()

    def on_gradient(self, view: LayerView) -> None:
        """Add ``l1 * sign(gamma)``, before the last update."""
        # The update of a step comes before its penalties, so that at `end` itself there is none.
        if self.end is not None and self.begin < view.step < self.end:
            add_gamma_l1(view, self.l1)
