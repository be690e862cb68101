"""SCA (arXiv 2406.01072): channels kept by the activity of their neurons, grown by gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sj_prune.masks.allocation import Allocation, Global
from sj_prune.masks.schedule import Constant, Manual, Schedule
from sj_prune.masks.structure import Channels
from sj_prune.methods.base import LayerView
from sj_prune.methods.channels import ChannelMethod, check_choice, check_factor, statistic

__all__ = ["SCA"]

# Score -> the statistics that add up to it.
_SCORES = {
    "code": ("abs_potential", "firing_rate"),
    "paper": ("abs_potential",),
    "abs_charge": ("abs_charge",),
    "firing_rate": ("firing_rate",),
    "criticality": ("criticality_max",),
}


@dataclass(frozen=True, kw_only=True)
class SCA(ChannelMethod):
    """Spiking channel activity (Li et al., ICML 2024, arXiv 2406.01072): prune and regrow channels.

    At the end of every epoch all channels are ranked by activity, the mean over the epoch's
    batches: the top ``1 - (p + q)`` are kept, and the top `q` of the others by `|dL/dgamma|` of the
    last batch are grown. The sparsity is `p` from the first update on; there is no ramp. The
    gradient of 3x3 convolutions gets ``l1 * sign(w)``.

    A pruned channel is silent (gamma = beta = 0) and its filter sleeps unchanged, so that its
    `|dL/dgamma|` stays alive; its own activity is 0, so only growth brings it back.

    Args:
        sparsity: fraction `p` of the channels that ends up pruned, in [0, 1).
        regrow: fraction `q` of **all** channels that is grown at an update, in [0, 1), with
            p + q < 1. (The `regrow` of `Criticality` and `CriticalityChannels` is a fraction of the
            kept ones.) 0 = pruning only.
        growth: score of regrowth: "gradient", "criticality", "random" or "score".
        interval: optimizer steps between updates: the steps of one epoch, ``len(loader)``.
        begin: updates start after this step.
        end: step of the last update; None: masks change by `update_masks` and `sj_prune.prune`.
        structure: `Channels()` without linear layers, as published.
        allocation: `Global()`, or `Uniform()` (where q is taken of every layer's channels).
        wake: "restore" or "zero": gamma and beta of a waking channel.
        batches: optimizer steps before an update whose batches are scored; None: all since the
            update before, so an epoch.
        score: "code", mean of `|V| + S`, as the released code (after a hard reset to 0 a neuron
            that fired has V = 0, and its spike makes up for it); "paper", mean of `|V|`;
            "abs_charge", mean of `|H|`, the potential before reset; "firing_rate", mean of `S`, so
            that a strongly hyperpolarized neuron does not count as active; "criticality", as
            `Criticality` scores it.
        enforce: "always": silent from the update on; "update": masks bind at updates only and in
            between momentum revives what they zeroed, as in the released code. Then sparsity holds
            right after an update alone.
        l1: strength of the penalty; 0 = none.
    """

    regrow: float = 0.1
    structure: Channels = Channels(linear=False)
    allocation: Allocation = Global()  # type: ignore[assignment]
    score: str = "code"
    enforce: str = "always"
    l1: float = 3e-5

    regrow_of_all: ClassVar[bool] = True
    scores_neurons: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("score", self.score, tuple(_SCORES))
        check_choice("enforce", self.enforce, ("always", "update"))
        check_factor("l1", self.l1)
        if self.interval is None and self.end is not None:
            raise ValueError(
                "Expected interval, the optimizer steps between updates, but got None: SCA updates "
                "once an epoch, so give the steps of one, interval=len(loader)"
            )
        super().__post_init__()
        if self.sparsity + self.regrow >= 1:
            raise ValueError(
                f"Expected sparsity + regrow < 1 but got {self.sparsity} + {self.regrow}: SCA's "
                "regrow is a fraction of all channels (not of the kept ones, as that of "
                "Criticality), and the channels neither pruned nor regrown are kept by activity"
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The statistics of the score, and that of growth by criticality."""
        return super().needs.union(_SCORES[self.score])

    @property
    def schedule(self) -> Schedule:
        """Constant `sparsity`."""
        if self.end is None:
            return Manual(final=self.sparsity)
        return self.schedule_of(Constant, self.sparsity, self.sparsity)

    @property
    def binds(self) -> str:
        """As `enforce`."""
        return self.enforce

    @property
    def from_scratch(self) -> bool:
        """Masks that bind at updates only leave all channels active in between."""
        return self.enforce == "update"

    def drop_score(self, view: LayerView) -> Tensor | None:
        """Return the activity of every channel, ``[C_out]``; None without recording neurons."""
        relative = self.score == "criticality"
        found = [statistic(view, name, relative=relative) for name in _SCORES[self.score]]
        known = [value for value in found if value is not None]
        return torch.stack(known).sum(0) if known else None

    def on_gradient(self, view: LayerView) -> None:
        """Add ``l1 * sign(w)`` to the gradient of a 3x3 convolution."""
        if view.grad is not None and view.weight.shape[2:] == (3, 3):
            view.grad.add_(torch.sign(view.weight).to(view.grad), alpha=self.l1)
