"""Filter pruning by the L1 or L2 norm (Li et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from sj_prune._checks import check_choice
from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.parts import channel_norm
from sj_prune.methods.plan import Plan


@dataclass(frozen=True, kw_only=True)
class FilterNorm(ChannelMethod):
    """Channel pruning by the norm of the filters, smallest first (arXiv 1608.08710).

    ``||W_c||_p`` over all weights of filter `c`, which grows with the size of a filter: layers do
    not compare, so the same fraction of each goes by default.

    Args:
        sparsity: fraction of the channels that ends up pruned, in [0, 1).
        regrow: fraction of the **kept** channels that is grown anew at an update, in [0, 1).
        growth: score of regrowth: "gradient", "criticality", "random" or "score".
        interval: optimizer steps between updates (cubic sparsity); None: one shot, at `end`.
        begin: updates start after this step.
        end: step of the last update; None: masks change by `update_masks` and `sj_prune.prune`.
        structure: `Channels(linear=..., min_keep=..., multiple=...)`.
        allocation: `Uniform()` or `Global()`.
        wake: "restore" or "zero": gamma and beta of a waking channel.
        batches: optimizer steps before an update that growth by criticality looks at; None: all.
        p: 1 or 2.
    """

    p: int = 1

    def __post_init__(self) -> None:
        check_choice("p", self.p, (1, 2))
        super().__post_init__()

    def plan(self) -> Plan:
        """Drop by ``||W_c||_p``."""
        return self._channel_plan(partial(channel_norm, p=self.p))
