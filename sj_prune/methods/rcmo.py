"""RCMO (Chen et al., 2023): a minimax game finds how many weights can be driven to 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune._checks import check_factor
from sj_prune.masks.select import kth_largest
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import Penalty, magnitude
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import NetView


@dataclass(frozen=True, kw_only=True)
class RCMO(ScheduledMethod):
    """Resource constrained minimax optimization (Chen et al., ACM MM 2023, arXiv 2308.04672).

    ``min over W, s, max over y, z >= 0 of L(W) + y ||W||^2_{s,least} + z (R(s) - B)``: `s` is the
    number of weights to prune of all layers together, ``||W||^2_{s,least}`` the sum over the
    ``ceil(s)`` smallest ``w^2``, ``R = 1 - s/N`` the part that is left and ``B = 1 - sparsity``.
    Each step, after the optimizer's:

    1. the ``ceil(s)`` smallest weights shrink, ``w /= 1 + 2 lr y``;
    2. ``s -= lr_s (y w^2_(ceil(s)+1) + z dR/ds)``, clipped to ``[0, N (1 - B)]``;
    3. ``y += lr_y ||W||^2_{s,least}`` and ``z = max(0, z + lr_z (R - B))``.

    At `end` exactly the smallest go, and training goes on with these masks. The paper prunes to B =
    0.25, 0.12, 0.05, 0.0235 and 0.0073 and leaves the first layer dense: name it in `skip`. It
    does not say `lr_s`, nor what `s` and `y` start from: 0 here.

    Args:
        sparsity: fraction pruned at `end`, in [0, 1).
        interval: optimizer steps between two rounds of the game; the paper plays one each step.
        begin: the game starts after this step.
        end: step in which masks are installed and the game ends; None: masks change by
            `update_masks` alone, and the game goes on.
        lr_s: rate of the number of pruned weights.
        lr_y: rate of the price of weights that are to be 0.
        lr_z: rate of the price of resources.
    """

    sparsity: float = 0.95
    interval: int = 1
    lr_s: float = 1.0
    lr_y: float = 1e3
    lr_z: float = 1e10

    def __post_init__(self) -> None:
        for name in ("lr_s", "lr_y", "lr_z"):
            check_factor(name, getattr(self, name), positive=True)
        super().__post_init__()

    def plan(self) -> Plan:
        """Drop by global `|w|` once, at the end; until then a penalty shrinks what is to go."""
        penalty = Penalty(finish=self.play, remembers=dict.fromkeys("syz", 0.0))
        return self._plan(schedule=self.once(), drop=magnitude, penalties=(penalty,))

    def play(self, net: NetView) -> None:
        """Play a round, after a step."""
        over = self.end is not None and net.step >= self.end
        if over or net.step <= self.begin or (net.step - self.begin) % self.interval:
            return
        weights = {name: layer.weight for name, layer in net.layers.items()}
        total = sum(weight.numel() for weight in weights.values())
        s, y, z = (float(net.memory[key]) for key in "syz")
        values = list(weights.values())
        least = _threshold(values, math.ceil(s))
        for name, weight in weights.items():
            shrink = 1.0 + 2.0 * net.learning_rate(name) * y
            weight.copy_(torch.where(weight.abs() <= least, weight / shrink, weight))
        following = float(_threshold(values, math.ceil(s) + 1)) ** 2
        s = min(max(0.0, s - self.lr_s * (y * following - z / total)), self.sparsity * total)
        least = _threshold(values, math.ceil(s))
        small = (w.double().square().where(w.abs() <= least, 0.0).sum() for w in values)
        y += self.lr_y * sum(map(float, small))
        z = max(0.0, z + self.lr_z * (self.sparsity - s / total))  # R - B
        for key, value in zip("syz", (s, y, z), strict=True):
            net.memory[key] = values[0].new_tensor(value, dtype=torch.float64)


def _threshold(weights: list[Tensor], number: int) -> Tensor:
    """Return the largest `|w|` of so many smallest; below all of them for none."""
    if not number:
        return weights[0].new_tensor(-1.0)
    total = sum(weight.numel() for weight in weights)
    return kth_largest([weight.abs() for weight in weights], total - number + 1)
