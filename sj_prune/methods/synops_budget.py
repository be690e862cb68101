"""SynOpsBudget: a Lagrange multiplier holds the accumulations of training to a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sj_prune._checks import check_factor, check_integer
from sj_prune.masks.schedule import Manual
from sj_prune.methods.parts import Penalty, magnitude
from sj_prune.methods.plan import Plan, Planned, plan_of
from sj_prune.methods.view import NetView

_BUDGET, _MULTIPLIER = "synops_budget", "synops_multiplier"
#: part of the budget up to which `damping` counts what is off it
_NEAR = 0.1


@dataclass(frozen=True, kw_only=True)
class SynOpsBudget:
    """SynOps in the loss, alone or beside any method: ``L + lambda (S / B - 1)``.

    `S` are the SynOps a sample of the batch, as `sj_prune.cost` counts them: one for every spike
    that meets a kept weight. Their gradient goes through the surrogates of the neurons. After each
    backward pass ``lambda = max(0, lambda + rate (S / B - 1))``: it rises until the budget is met.
    Without a method no weight is pruned, and neurons spike less.

    Ours is `damping`: the term pulls with ``lambda + damping (S / B - 1)``, at least 0, as an
    augmented Lagrangian does, of what is off by up to 10 % of the budget: near it that holds `S`,
    and far from it `lambda` decides, for a pull of that size would undo what was learned. Without
    it `lambda` goes on rising while spikes vanish, and overshoots. And `begin`: a network that has
    learned nothing yet obeys by falling silent where spikes cost most, and stays so.

    ::

        SynOpsBudget(fraction=0.3, begin=6 * len(loader))
        SynOpsBudget(fraction=0.3, method=RigL(sparsity=0.9, end=20000))

    Args:
        fraction: `B` over the SynOps of the dense network, positive.
        method: what prunes beside it: a method, or a plan.
        rate: of `lambda`, a step; ours. Small ones take long, large ones overshoot.
        damping: pull beside `lambda` near the budget; 0 = the rule as it is known.
        dense: SynOps a sample that `fraction` is of, as `sj_prune.cost.measure` finds on a trained
            network; None: those of the first batch after `begin`, with every weight. Spikes of a
            network that has not been trained tell little.
        begin: optimizer steps before the budget counts.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is not positive; in training, if the batch that `fraction` is of has
            no SynOps.
    """

    fraction: float
    method: Planned | Plan | None = None
    rate: float = 0.001
    damping: float = 1.0
    dense: float | None = None
    begin: int = 0

    def __post_init__(self) -> None:
        check_integer("begin", self.begin, 0)
        for name in ("fraction", "rate") + ("dense",) * (self.dense is not None):
            check_factor(name, getattr(self, name), positive=True)
        check_factor("damping", self.damping)
        self.plan()

    def plan(self) -> Plan:
        """Return the plan of the method, or one that drops nothing, with a penalty on SynOps."""
        drops_nothing = Plan(schedule=Manual(final=0.0), drop=magnitude)
        plan = drops_nothing if self.method is None else plan_of(self.method)
        penalty = Penalty(prepare=self.adjust, synops=self.slope, remembers={_MULTIPLIER: 0.0})
        return replace(plan, penalties=(*plan.penalties, penalty), name=type(self).__name__)

    def adjust(self, net: NetView) -> None:
        """Set the budget with the first batch, and adjust `lambda` to every one."""
        if net.step <= self.begin or (found := net.synops()) is None:
            return
        if _BUDGET not in net.memory:
            dense = found[1] if self.dense is None else torch.full_like(found[1], self.dense)
            if not dense > 0:  # asked once in a training
                raise ValueError(
                    f"Expected SynOps in the first batch after step {self.begin}, for fraction is "
                    "of them, but no spike meets a weight: neurons are silent (give dense=, or a "
                    "later begin=), or no layer reads spikes (averages of spikes are none)"
                )
            net.memory[_BUDGET] = self.fraction * dense
        excess = found[0] / net.memory[_BUDGET] - 1
        grown = net.memory[_MULTIPLIER] + self.rate * excess
        net.memory[_MULTIPLIER] = grown.clamp_min(0)

    def slope(self, memory: Mapping[str, Tensor], found: Tensor) -> Tensor:
        """Return ``max(0, lambda + damping (S / B - 1)) / B``, near `B`; 0 before there is one."""
        if _BUDGET not in memory:
            return torch.zeros_like(found)
        budget = memory[_BUDGET]
        excess = (found / budget - 1).clamp(-_NEAR, _NEAR)
        pull = memory[_MULTIPLIER] + self.damping * excess
        return pull.clamp_min(0) / budget
