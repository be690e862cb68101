"""Deep R (Bellec et al., 2018): weights that cross 0 fall asleep, and as many others wake."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sj_prune._checks import check_factor, check_fraction
from sj_prune.masks.allocation import Allocation, Uniform
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import FILL, Growth, Penalty, RandomMasks, magnitude, noise
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView, NetView

_SIGN = "sign"


@dataclass(frozen=True, kw_only=True)
class DeepR(ScheduledMethod):
    """Deep rewiring (Bellec et al., ICLR 2018, arXiv 1711.05136), its hard version, Algorithm 2.

    Every weight has a fixed sign `s`, that of its first value, or a random one where that is 0.
    After each step an active weight moves by ``-lr_t l1 s + T sqrt(lr_t) nu`` with
    ``nu ~ N(0, 1)`` and ``lr_t = lr / (1 - beta1^t)``, outside of the optimizer's moments; then
    ``w = s relu(s w)``: what crosses 0 falls asleep. At an update exactly as many random dormant
    weights of the layer wake as fell asleep (in the released code only in expectation).

    What wakes starts at 0, the limit of the paper's small epsilon, moves by its gradient in the
    step after the update, and is judged then. The start is random, with the same density in each
    layer. Each update writes a record and a line of the log; a larger `interval` exchanges more at
    once. The paper trains by Adam at 1e-4 and prunes all layers.

    Args:
        sparsity: fraction of dormant weights from the start on, in [0, 1).
        interval: optimizer steps between updates.
        begin: weights wake after this step.
        end: step of the last update; what falls asleep later stays 0.
        l1: strength of the pull towards 0.
        temperature: `T` of the noise; the released script takes 0.
        beta1: of Adam; 0 with SGD.
        allocation: `Uniform()`, `ERK()` or `Global()`.
    """

    sparsity: float = 0.95
    interval: int = 1
    l1: float = 1e-3
    temperature: float = 0.0
    beta1: float = 0.9
    allocation: Allocation = Uniform()

    def __post_init__(self) -> None:
        check_factor("l1", self.l1)
        check_factor("temperature", self.temperature)
        check_fraction("beta1", self.beta1)
        super().__post_init__()

    def plan(self) -> Plan:
        """Drop what is 0 and grow as many at random; a proximal term keeps the signs."""
        return self._plan(
            schedule=self.constant(),
            drop=magnitude,
            grow=Growth(noise, FILL, of="zero", grace=int(self.interval == 1)),
            allocation=self.allocation,
            start=RandomMasks(),
            penalties=(Penalty(prepare=choose_signs, proximal=self.walk),),
        )

    def walk(self, layer: LayerView, lr: float) -> None:
        """Pull active weights towards 0, shake them, and let none change its sign."""
        if layer.grad is None:  # the step did not move it either
            return
        rate, sign = lr / (1.0 - self.beta1**layer.step), layer.state[_SIGN]
        size = sign * layer.weight - rate * self.l1
        if self.temperature:
            generator = torch.Generator(size.device).manual_seed(layer.seed + layer.step)
            shake = torch.randn(
                size.shape, generator=generator, device=size.device, dtype=size.dtype
            )
            size -= self.temperature * rate**0.5 * sign * shake
        layer.weight.copy_(sign * size.clamp_min_(0))


def choose_signs(net: NetView) -> None:
    """Give every weight its sign before the first step."""
    for layer in net.layers.values():
        if _SIGN not in layer.state:
            coin = torch.rand(
                layer.weight.shape, device=layer.weight.device, generator=layer.generator
            )
            toss = torch.where(coin < 0.5, -1.0, 1.0).to(layer.weight)
            layer.state[_SIGN] = torch.where(layer.weight == 0, toss, layer.weight.sign())
