"""GReg (Wang et al., 2021): a growing penalty drives the chosen filters to 0 before they go."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune._checks import check_choice, check_factor, check_number, check_steps
from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.parts import Penalty
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView, NetView


@dataclass(frozen=True, kw_only=True)
class GReg(ChannelMethod):
    """Neural pruning via growing regularization (arXiv 2012.09243), GReg-1 and GReg-2.

    GReg-1 chooses the filters with the smallest L1 norm at the first step. Their L2 factor is then
    raised by `delta` every `every` steps up to `ceiling`, and stays there until they are removed,
    at `end`: the gradient of a filter gets ``factor * W_c``. GReg-2 first raises the factor of
    **all** filters by `pick_delta` up to `pick_ceiling`, so that their magnitudes move apart as the
    curvature of the loss lets them, and ranks then; the chosen go on as in GReg-1 from where they
    are, and the others are set free. (The released code differs in two constants: `kept_factor`,
    `stop_ratio`.)

    With the published values the ceiling is reached after 50,000 steps. `regrow` and `interval` are
    for experiments; the method has one update and no regrowth.

    Args:
        sparsity: fraction of the channels that ends up pruned, in [0, 1).
        regrow: fraction of the **kept** channels that is grown anew at an update, in [0, 1).
        growth: score of regrowth: "gradient", "criticality", "random" or "score".
        interval: optimizer steps between updates (cubic sparsity); None: one shot, at `end`.
        begin: the penalty starts after this step.
        end: step of the last update; the penalty ends there. None: masks change by `update_masks`
            and `sj_prune.prune`, the penalty stays on, and what is chosen by then goes first.
        structure: `Channels(linear=..., min_keep=..., multiple=...)`.
        allocation: `Uniform()` or `Global()`.
        wake: "restore" or "zero": gamma and beta of a waking channel.
        batches: optimizer steps before an update that growth by criticality looks at; None: all.
        variant: 1 or 2.
        every: optimizer steps between two raises of the factor.
        delta: raise of the chosen filters' factor.
        ceiling: the highest factor.
        pick_delta: raise of all factors before the choice (variant 2).
        pick_ceiling: factor at which the choice is made (variant 2).
        kept_factor: factor of the filters that are not chosen, from the choice on: 0 in the paper,
            -1e-4 in the released code.
        stop_ratio: a layer's factor is not raised any more once the mean `|w|` of the filters that
            stay is more than this many times that of the chosen: 1000 in the released code. None:
            up to `ceiling`, as in the paper.
    """

    variant: int = 1
    every: int = 5
    delta: float = 1e-4
    ceiling: float = 1.0
    pick_delta: float = 1e-5
    pick_ceiling: float = 1e-2
    kept_factor: float = 0.0
    stop_ratio: float | None = None

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, (1, 2))
        check_steps("every", self.every)
        for name in ("delta", "ceiling", "pick_delta", "pick_ceiling"):
            check_factor(name, getattr(self, name), positive=True)
        check_number("kept_factor", self.kept_factor)
        if self.stop_ratio is not None:
            check_factor("stop_ratio", self.stop_ratio, positive=True)
        if self.variant == 2 and self.pick_ceiling > self.ceiling:
            raise ValueError(
                f"Expected pick_ceiling <= ceiling = {self.ceiling} but got {self.pick_ceiling}"
            )
        super().__post_init__()
        needed = self.every * (self._pick_raises + self._raises) + 1
        if self.end is not None and self.end - self.begin < needed:
            raise ValueError(
                f"Expected end - begin of at least {needed} steps, to raise the factor to "
                f"ceiling={self.ceiling} by {self.delta} every {self.every} steps, but got "
                f"begin={self.begin}, end={self.end}: raise end or delta, or lower ceiling"
            )

    def plan(self) -> Plan:
        """Drop by the mean `|w|` of a filter, the chosen first; the penalty chooses them."""
        penalty = Penalty(gradient=self.add_decay, prepare=self.choose, keeps=nothing_chosen)
        return self._channel_plan(chosen_first, penalties=(penalty,))

    # ---- the factor, a function of the step ----------------------------------------------------

    @property
    def _start(self) -> float:
        """Factor of the chosen before their own raises."""
        return self.pick_ceiling if self.variant == 2 else 0.0

    @property
    def _pick_raises(self) -> int:
        return _steps_to(self.pick_ceiling, self.pick_delta) if self.variant == 2 else 0

    @property
    def _raises(self) -> int:
        return _steps_to(self.ceiling - self._start, self.delta)

    @property
    def _choice(self) -> int:
        """Step in which filters are chosen; from it on their own raises count."""
        return self.begin + 1 + self.every * self._pick_raises

    def _raised(self, step: int, since: int) -> int:
        """Return the number of raises up to `step`, the first in step `since`."""
        return (step - since) // self.every + 1

    def factor(self, layer: LayerView) -> Tensor:
        """Return the L2 factor of every filter in this step, ``[C_out]``."""
        none = layer.weight.new_zeros(len(layer.weight))
        over = self.end is not None and layer.step >= self.end
        if layer.step <= self.begin or over:
            return none
        if layer.step < self._choice:
            raised = self.pick_delta * self._raised(layer.step, self.begin + 1)
            return none + min(self.pick_ceiling, raised)
        if not (chosen := layer.state["chosen"]).any():
            return none
        stopped = int(layer.state["stopped"])
        last = layer.step if stopped < 0 else min(layer.step, stopped)
        raised = self._start + self.delta * self._raised(last, self._choice)
        return (none + self.kept_factor).masked_fill(chosen, min(self.ceiling, raised))

    # ---- the phases ----------------------------------------------------------------------------

    def choose(self, net: NetView) -> None:
        """Keep which filters are to be driven to 0: those that an update would drop now."""
        if net.step == self._choice:
            for name, dropped in net.would_drop().items():
                net.layer(name).state["chosen"] = dropped.clone()
        elif self.stop_ratio is not None and (net.step - self._choice) % self.every == 0:
            for layer in net.layers.values():
                _stop(layer, self.stop_ratio)

    def add_decay(self, layer: LayerView) -> None:
        """Add ``factor * W_c``."""
        if layer.grad is not None:
            factor = self.factor(layer).view(-1, *[1] * (layer.weight.ndim - 1))
            layer.grad.add_((factor * layer.weight).to(layer.grad))


def nothing_chosen(layer: LayerView) -> dict[str, Tensor]:
    """Return that no filter is to be driven to 0 yet, and that no raise was the last: -1."""
    weight = layer.weight
    chosen = weight.new_zeros(len(weight), dtype=torch.bool)
    return {"chosen": chosen, "stopped": weight.new_full((), -1, dtype=torch.int64)}


def chosen_first(layer: LayerView) -> Tensor:
    """Return the mean `|w|` of every filter, ``[C_out]``; the chosen lie below all others."""
    score = layer.weight.abs().flatten(1).mean(1)
    if not layer.state["chosen"].any():
        return score
    # Into [0, 1/2] and up from 1: coupled layers agree on who is chosen, whatever their scale.
    order = 0.5 * score / score.max().clamp_min(torch.finfo(score.dtype).tiny)
    return order + (~layer.state["chosen"]).to(order)


def _stop(layer: LayerView, ratio: float) -> None:
    """Let no raise of a layer's factor follow the step before, if the chosen are small enough."""
    chosen = layer.state["chosen"]
    if int(layer.state["stopped"]) >= 0 or chosen.all() or not chosen.any():
        return
    size = layer.weight.abs().flatten(1).mean(1)
    if size[~chosen].mean() > ratio * size[chosen].mean():
        layer.state["stopped"].fill_(layer.step - 1)


def _steps_to(height: float, delta: float) -> int:
    """Return how many raises by `delta` reach `height`, forgiving the rounding of the division."""
    return max(0, math.ceil(height / delta - 1e-6))
