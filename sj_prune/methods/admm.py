"""ADMM (Deng et al., 2021): an auxiliary sparse copy pulls the weights before they are pruned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune._checks import check_factor
from sj_prune.masks.allocation import Allocation, Uniform
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import Penalty, magnitude
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView, NetView

_SPARSE, _DUAL = "z", "u"


@dataclass(frozen=True, kw_only=True)
class ADMM(ScheduledMethod):
    """Alternating direction method of multipliers (Deng et al., TNNLS 2021, arXiv 1911.00822).

    Minimizes the loss with at most `k` nonzeros in each layer: the weights train on
    ``L + rho/2 ||W - Z + U||^2``; every `interval` steps ``Z = top-k(W + U)`` and ``U += W - Z``,
    from ``Z = top-k(W)`` and ``U = 0`` on. At `end` the `k` largest `|w|` of each layer are kept,
    and training goes on with these masks.

    To the loss ``activity * mean(S)`` is added for each neuron layer, the mean of its spikes, as
    long as it trains: fewer spikes cost fewer operations.

    The pull ``lr rho (W - Z + U)`` is taken after the step, at the weights that it left, so that no
    moment of the optimizer rescales it. Not the paper's: the values of `rho`, `interval` and
    `activity`, and that first and last layer are pruned too (name them in `skip`).

    Args:
        sparsity: fraction pruned at `end`, in [0, 1).
        interval: optimizer steps between two updates of `Z` and `U`.
        begin: the pull starts after this step.
        end: step in which masks are installed and the pull ends; None: masks change by
            `update_masks` alone, and the pull stays on.
        rho: strength of the pull, positive; 5e-4 to 1e-3 are usual.
        activity: strength of the penalty on spikes; 0 = none.
        allocation: `Uniform()`, `ERK()` or `Global()`: how many each layer keeps, of `Z` too.
    """

    sparsity: float = 0.9
    interval: int = 1000
    rho: float = 1e-3
    activity: float = 0.0
    allocation: Allocation = Uniform()

    def __post_init__(self) -> None:
        check_factor("rho", self.rho, positive=True)
        check_factor("activity", self.activity)
        super().__post_init__()

    def plan(self) -> Plan:
        """Drop by `|w|` once, at the end; a penalty pulls towards the sparse copy until then."""
        return self._plan(
            schedule=self.once(),
            drop=magnitude,
            allocation=self.allocation,
            penalties=(
                Penalty(
                    prepare=self.alternate,
                    proximal=self.pull,
                    spikes=MeanSpike(self.activity) if self.activity else None,
                ),
            ),
        )

    def alternate(self, net: NetView) -> None:
        """Update `Z` and `U`, if it is time; forget them at the end."""
        done = net.step - 1 - self.begin
        if done < 0 or (self.end is not None and net.step >= self.end):
            for layer in net.layers.values():
                layer.state.pop(_SPARSE, None), layer.state.pop(_DUAL, None)
        elif done % self.interval == 0:
            dropped = net.would_drop(_target)
            for name, layer in net.layers.items():
                known = layer.state.get(_DUAL)  # none at first, or of a layer that runs since now
                wanted = layer.weight if known is None else layer.weight + known
                layer.state[_SPARSE] = wanted.masked_fill(dropped[name], 0)
                # U + W - Z, which is 0 at first.
                layer.state[_DUAL] = wanted - (wanted if known is None else layer.state[_SPARSE])

    def pull(self, layer: LayerView, lr: float) -> None:
        """Pull the weights towards ``Z - U``."""
        if layer.grad is not None and _SPARSE in layer.state:
            gap = layer.weight - layer.state[_SPARSE] + layer.state[_DUAL]
            layer.weight.sub_(gap, alpha=lr * self.rho)


@dataclass(frozen=True)
class MeanSpike:
    """The gradient of ``strength * mean(S)``."""

    strength: float

    def __call__(self, spikes: Tensor) -> Tensor:
        """Return the same number for every spike."""
        return torch.full_like(spikes, self.strength / spikes.numel())


def _target(layer: LayerView) -> Tensor:
    """Return ``|W + U|``."""
    return (layer.weight + layer.state.get(_DUAL, 0.0)).abs()
