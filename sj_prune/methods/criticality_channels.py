"""Structured criticality (arXiv 2311.16141): slim, then bring back the most critical channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sj_prune._checks import check_choice
from sj_prune.methods.plan import Plan
from sj_prune.methods.slimming import NetworkSlimming


@dataclass(frozen=True, kw_only=True)
class CriticalityChannels(NetworkSlimming):
    """Structured pruning of arXiv 2311.16141, Algorithm 2.

    Trained with an L1 penalty on gamma (16), all channels are ranked by `|gamma|` together and
    pruned to the temporary sparsity ``s' = s + r (1 - s)`` (11); then the ``k = r (1 - s) N``
    pruned channels whose neurons are most critical, (12) and (13), come back with the filter, gamma
    and beta that they had. One update, at `end`; what follows is fine-tuning without penalty (the
    paper starts a fresh optimizer for it).

    A channel's criticality is the surrogate derivative at the potential before reset of its
    neurons, averaged over time, its maximum over the map, averaged over samples, divided by the
    peak of the layer's surrogate.

    Args:
        sparsity: fraction of the channels that ends up pruned, in [0, 1).
        regrow: fraction `r` of the **kept** channels that is reactivated, in [0, 1). (SCA's
            `regrow` is a fraction of all channels.) The paper pairs sparsity 0.512 with 0.3, and
            0.658 with 0.1; 0 = pruning only.
        growth: score of reactivation: "criticality", or "gradient", "random", "score".
        interval: optimizer steps between updates (cubic sparsity); None: one shot, at `end`.
        begin: penalty and updates start after this step.
        end: step of the last update; the penalty ends there. None: masks change by `update_masks`
            and `sj_prune.prune`, and nothing is penalized.
        structure: `Channels(linear=..., min_keep=..., multiple=...)`.
        allocation: `Global()` or `Uniform()`.
        wake: "restore" or "zero": gamma and beta of a waking channel.
        batches: optimizer steps before an update whose batches are scored; the paper scores the
            whole training set with the trained network, so give the steps of the last epoch. None:
            all since the update before (or since the start).
        l1: strength of the penalty.
        aggregate: criticality's "max" over the map, as published, or "mean".
        normalize: ours: "layer" compares criticality within each layer only, so that each keeps as
            many channels as the ranking by `|gamma|` leaves it; None: as channels are pruned, over
            all layers where `allocation` is global.
    """

    sparsity: float = 0.512
    regrow: float = 0.3
    growth: str = "criticality"
    aggregate: str = "max"
    normalize: str | None = None

    def __post_init__(self) -> None:
        check_choice("aggregate", self.aggregate, ("max", "mean"))
        check_choice("normalize", self.normalize, (None, "layer"))
        super().__post_init__()

    def plan(self) -> Plan:
        """Drop by `|gamma|`, eq. (16); reactivate by criticality, eqs. (12) and (13)."""
        plan = self._slimming_plan(f"criticality_{self.aggregate}")
        if self.normalize is None or plan.grow is None:
            return plan
        return replace(plan, grow=replace(plan.grow, across_layers=False))
