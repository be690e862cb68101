"""Grad R (Chen et al., 2021): rewiring through a hidden variable behind every weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune._checks import check_factor, check_fraction
from sj_prune.masks.bindings import Hidden
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import Penalty
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView

# Far above any use, and below what makes weights infinite.
_STRONGEST = 1000


@dataclass(frozen=True, kw_only=True)
class GradR(ScheduledMethod):
    """Gradient rewiring: ``w = s relu(theta)`` with a fixed sign `s` and a hidden `theta`.

    The gradient moves `theta` where it is dormant (``theta < 0``) too, so a connection can come
    back. After every step a prior pulls `theta` towards ``mu = ln(2 (1 - p)) / alpha`` by
    ``lr alpha sign(theta - mu)``, outside of the optimizer's moments as in the released code; the
    sparsity **emerges**, it is not enforced. The weight stays the optimizer's leaf: the change that
    a step makes to it is the change of `theta`. A layer without a gradient is left as it is.

    Args:
        sparsity: target `p` of the prior, in (0.5, 1).
        alpha: strength of the prior, in (0, 1000]; 1e-3 in the paper.
        interval: optimizer steps between records of the sparsity reached (one log line each).
        begin: recording starts after this step; rewiring runs from the start.
        end: step of the last record.
    """

    sparsity: float = 0.95
    alpha: float = 1e-3
    interval: int = 100
    end: int = 2**62

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity, least=0.5, open_below=True)
        check_factor("alpha", self.alpha, positive=True)
        if self.alpha > _STRONGEST:
            raise ValueError(
                f"Expected alpha of at most {_STRONGEST} but got {self.alpha}: in every step the "
                "prior moves every hidden variable by lr * alpha; the paper has 1e-3"
            )
        super().__post_init__()

    @property
    def mu(self) -> float:
        """Location of the prior."""
        return math.log(2.0 * (1.0 - self.sparsity)) / self.alpha

    def plan(self) -> Plan:
        """A hidden variable decides; the interval of the schedule is that of the records."""
        return self._plan(
            schedule=self.constant(),
            binding=Hidden(Rewired()),
            penalties=(Penalty(proximal=Prior(self.mu, self.alpha)),),
        )


@dataclass(frozen=True)
class Rewired:
    """``w = s relu(theta)`` with a fixed sign `s`."""

    def start(self, weight: Tensor, hidden: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``theta = |w|`` in at least float32 and the sign, +1 where ``w = 0``."""
        wide = weight if weight.dtype == torch.float64 else weight.float()
        return {"theta": wide.abs().clone(), "sign": torch.where(weight < 0, -1.0, 1.0).to(wide)}

    def absorb(self, hidden: dict[str, Tensor], weight: Tensor) -> None:
        """Move `theta` by ``s`` times what the step did to the weight."""
        theta, moved = hidden["theta"], hidden["sign"] * weight.to(hidden["theta"])
        # The weight was s*theta where theta > 0 and 0 elsewhere: no difference has to be rounded.
        theta.copy_(torch.where(theta > 0, moved, theta + moved))

    def weight(self, hidden: dict[str, Tensor]) -> Tensor:
        """Return ``s relu(theta)``."""
        return hidden["sign"] * hidden["theta"].clamp_min(0)


@dataclass(frozen=True)
class Prior:
    """Pulls `theta` towards `mu` by ``lr alpha sign(theta - mu)`` a step."""

    mu: float
    alpha: float

    def __call__(self, layer: LayerView, lr: float) -> None:
        """Move `theta` by ``lr alpha``, after the step: a moment would rescale the prior."""
        if layer.grad is None:  # the step did not move it either
            return
        theta = layer.state["theta"]
        theta.sub_(torch.sign(theta - self.mu), alpha=lr * self.alpha)
