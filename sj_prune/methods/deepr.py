"""Deep R (Bellec et al., 2018): weights that cross 0 fall asleep, and as many others wake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune._checks import check_factor, check_flag, check_fraction
from sj_prune.masks.allocation import Allocation, Uniform
from sj_prune.masks.bindings import Hidden
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import FILL, Growth, Penalty, RandomMasks, magnitude, noise
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView, NetView

_SIGN, _CHOSEN = "sign", "deepr_signs"


@dataclass(frozen=True, kw_only=True)
class DeepR(ScheduledMethod):
    """Deep rewiring (Bellec et al., ICLR 2018, arXiv 1711.05136): Algorithm 2, or 1 if `soft`.

    Every weight has a fixed sign `s`, that of its first value, or a random one where that is 0.
    After each step an active weight moves by ``-lr_t l1 s + T sqrt(lr_t) nu`` with
    ``nu ~ N(0, 1)`` and ``lr_t = lr / (1 - beta1^t)``, outside of the optimizer's moments; then
    ``w = s relu(s w)``: what crosses 0 falls asleep. At an update exactly as many random dormant
    weights of the layer wake as fell asleep (in the released code only in expectation).

    What wakes starts at 0, the limit of the paper's small epsilon, moves by its gradient in the
    step after the update, and is judged then. The start is random, with the same density in each
    layer. Each update writes a record and a line of the log; a larger `interval` exchanges more at
    once. The paper trains by Adam at 1e-4 and prunes all layers.

    The soft version enforces no number. Behind ``w = s relu(theta)`` a dormant `theta` goes on
    moving by the noise alone, down to ``theta_min = -T^2/2 sparsity / (l1 (1 - sparsity))``, and
    wakes where it comes above 0: by chance that many are dormant, so the sparsity **emerges**. All
    weights start awake. A dormant weight has no gradient, and what momentum would do to it is lost.

    Args:
        sparsity: fraction of dormant weights from the start on, in [0, 1); if `soft`, that of a
            walk without gradients.
        interval: optimizer steps between updates; if `soft`, between records.
        begin: weights wake after this step.
        end: step of the last update; what falls asleep later stays 0.
        l1: strength of the pull towards 0.
        temperature: `T` of the noise; the released script takes 0; above 0 if `soft`.
        beta1: of Adam; 0 with SGD.
        allocation: `Uniform()`, `ERK()` or `Global()`; not used if `soft`.
        soft: Algorithm 1.
    """

    sparsity: float = 0.95
    interval: int = 1
    l1: float = 1e-3
    temperature: float = 0.0
    beta1: float = 0.9
    allocation: Allocation = Uniform()
    soft: bool = False

    def __post_init__(self) -> None:
        check_factor("l1", self.l1)
        check_factor("temperature", self.temperature)
        check_fraction("beta1", self.beta1)
        check_flag("soft", self.soft)
        if self.soft and not self.l1 * self.temperature > 0:
            raise ValueError(
                "Expected l1 and temperature above 0 with soft=True, where nothing else moves "
                f"dormant weights, but got {self.l1} and {self.temperature}"
            )
        super().__post_init__()

    @property
    def least(self) -> float:
        """Return `theta_min`."""
        odds = self.sparsity / (1.0 - self.sparsity)
        return -(self.temperature**2) / 2.0 * odds / self.l1 if self.soft else 0.0

    def plan(self) -> Plan:
        """Drop what is 0 and grow as many at random; a proximal term keeps the signs."""
        if self.soft:
            penalty = Penalty(prepare=complete_signs, gradient=hide_dormant, proximal=self.wander)
            return self._plan(
                schedule=self.constant(), binding=Hidden(Dormant()), penalties=(penalty,)
            )
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
            size -= self.temperature * rate**0.5 * sign * _noise(layer, size)
        layer.weight.copy_(sign * size.clamp_min_(0))

    def wander(self, layer: LayerView, lr: float) -> None:
        """Pull active `theta` towards 0, shake all of them, and stop them at `theta_min`."""
        if layer.grad is None:  # the step did not move it either
            return
        rate, theta = lr / (1.0 - self.beta1**layer.step), layer.state["theta"]
        theta.sub_(layer.state["active"].to(theta), alpha=rate * self.l1)
        theta.sub_(_noise(layer, theta), alpha=self.temperature * rate**0.5)
        theta.clamp_min_(self.least)


@dataclass(frozen=True)
class Dormant:
    """``w = s relu(theta)`` with a fixed sign `s`; a step moves active `theta` alone."""

    def start(self, weight: Tensor, hidden: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``theta = |w|`` in at least float32, the sign, 0 as long as none is known."""
        wide = weight if weight.dtype == torch.float64 else weight.float()
        sign = torch.where(wide == 0, hidden.get(_SIGN, torch.zeros_like(wide)), wide.sign())
        return {"theta": wide.abs().clone(), _SIGN: sign, "active": wide != 0}

    def absorb(self, hidden: dict[str, Tensor], weight: Tensor) -> None:
        """Move active `theta` to ``s`` times the weight, and note which they were."""
        theta = hidden["theta"]
        hidden["active"] = theta > 0
        theta.copy_(torch.where(hidden["active"], hidden[_SIGN] * weight.to(theta), theta))

    def weight(self, hidden: dict[str, Tensor]) -> Tensor:
        """Return ``s relu(theta)``."""
        return hidden[_SIGN] * hidden["theta"].clamp_min(0)


def hide_dormant(layer: LayerView) -> None:
    """Let the loss have no gradient where `theta` is dormant."""
    if layer.grad is not None:
        layer.grad.masked_fill_(layer.state["theta"] <= 0, 0.0)


def choose_signs(net: NetView) -> None:
    """Give every weight its sign before the first step."""
    for layer in net.layers.values():
        if _SIGN not in layer.state:
            layer.state[_SIGN] = _tossed(layer, layer.weight.sign())


def complete_signs(net: NetView) -> None:
    """Give those weights a sign that were 0 before the first step."""
    if _CHOSEN not in net.memory:
        for layer in net.layers.values():
            layer.state[_SIGN] = _tossed(layer, layer.state[_SIGN])
            net.memory[_CHOSEN] = layer.weight.new_ones(())


def _tossed(layer: LayerView, signs: Tensor) -> Tensor:
    """Return the signs, random ones in place of 0."""
    coin = torch.rand(layer.weight.shape, device=layer.weight.device, generator=layer.generator)
    return torch.where(signs == 0, torch.where(coin < 0.5, -1.0, 1.0).to(signs), signs)


def _noise(layer: LayerView, like: Tensor) -> Tensor:
    """Return normal noise, another one in every step."""
    generator = torch.Generator(like.device).manual_seed(layer.seed + layer.step)
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
