"""SCA (arXiv 2406.01072): channels kept by the activity of their neurons, grown by gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sj_prune._checks import check_choice, check_factor
from sj_prune.masks.allocation import Allocation, Global
from sj_prune.masks.bindings import AtUpdates
from sj_prune.masks.schedule import Schedule
from sj_prune.masks.structure import Channels
from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.parts import Penalty, Reads, Statistic
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView

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
    allocation: Allocation = Global()
    score: str = "code"
    enforce: str = "always"
    l1: float = 3e-5

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

    def channel_schedule(self) -> Schedule:
        """Return `sparsity` at every update."""
        return self.constant()

    def plan(self) -> Plan:
        """Drop by activity, grow by the gradient of gamma, with an L1 penalty on 3x3 kernels."""
        parts: dict[str, Any] = {"binding": AtUpdates()} if self.enforce == "update" else {}
        drop = SpikingActivity(_SCORES[self.score], self.batches)
        penalty = Penalty(gradient=KernelL1(self.l1))
        return self._channel_plan(drop, grow=self._growth(of="all"), penalties=(penalty,), **parts)


@dataclass(frozen=True)
class SpikingActivity:
    """The sum of some statistics, ``[C_out]``; None without recording neurons."""

    statistics: tuple[str, ...]
    batches: int | None = None

    @property
    def reads(self) -> Reads:
        """The statistics."""
        return Reads(frozenset(self.statistics), self.batches)

    def __call__(self, layer: LayerView) -> Tensor | None:
        """Return the activity of every channel."""
        relative = "criticality_max" in self.statistics
        found = [Statistic(name, relative=relative)(layer) for name in self.statistics]
        known = [value for value in found if value is not None]
        return torch.stack(known).sum(0) if known else None


@dataclass(frozen=True)
class KernelL1:
    """``l1 * sum |w|`` over 3x3 convolutions."""

    l1: float

    def __call__(self, layer: LayerView) -> None:
        """Add ``l1 * sign(w)`` to the gradient of a 3x3 convolution."""
        if layer.grad is not None and layer.weight.shape[2:] == (3, 3):
            layer.grad.add_(torch.sign(layer.weight).to(layer.grad), alpha=self.l1)
