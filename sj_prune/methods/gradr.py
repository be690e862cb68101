"""Grad R (Chen et al., 2021): rewiring through a hidden variable behind every weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sj_prune.masks.schedule import Constant, Schedule
from sj_prune.methods.base import LayerView, ScheduledMethod, check_fraction

__all__ = ["GradR"]


@dataclass(frozen=True, kw_only=True)
class GradR(ScheduledMethod):
    """Gradient rewiring: ``w = s relu(theta)`` with a fixed sign `s` and a hidden `theta`.

    The gradient moves `theta` where it is dormant (``theta < 0``) too, so a connection can come
    back. A prior pulls every `theta` towards ``mu = ln(2 (1 - p)) / alpha`` by
    ``alpha sign(theta - mu)``; the sparsity **emerges**, it is not enforced. The weight stays the
    optimizer's leaf: the change that a step makes to it is the change of `theta`.

    Args:
        sparsity: target `p` of the prior, in (0.5, 1).
        alpha: strength of the prior, positive.
        interval: optimizer steps between records of the sparsity reached (one log line each).
        begin: recording starts after this step; rewiring runs from the start.
        end: step of the last record.
    """

    sparsity: float = 0.95
    alpha: float = 1e-3
    interval: int = 100
    end: int = 2**62

    gradient: ClassVar[str] = "always"
    emergent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity, least=0.5, open_below=True)
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, (int, float)):
            raise TypeError(f"Expected alpha to be a number but got {self.alpha!r}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"Expected alpha to be positive and finite but got {self.alpha}")
        super().__post_init__()

    @property
    def schedule(self) -> Schedule:
        """Constant target; the interval is that of the records."""
        return self.schedule_of(Constant, self.sparsity, self.sparsity)

    @property
    def mu(self) -> float:
        """Location of the prior."""
        return math.log(2.0 * (1.0 - self.sparsity)) / self.alpha

    def initial_state(self, view: LayerView) -> dict[str, Tensor]:
        """Return ``theta = |w|`` in at least float32 and the sign, +1 where ``w = 0``."""
        weight = view.weight
        wide = weight if weight.dtype == torch.float64 else weight.float()
        return {"theta": wide.abs().clone(), "sign": torch.where(weight < 0, -1.0, 1.0).to(wide)}

    def on_gradient(self, view: LayerView) -> None:
        """Add the prior's gradient; as `theta` moves by ``s`` times the weight, times `s`."""
        if view.grad is not None:
            theta, sign = view.state["theta"], view.state["sign"]
            view.grad.add_((sign * torch.sign(theta - self.mu)).to(view.grad), alpha=self.alpha)

    def on_step(self, view: LayerView) -> None:
        """Move `theta` by what the step did to the weight, and make the weight follow it."""
        theta, sign = view.state["theta"], view.state["sign"]
        moved = sign * view.weight.to(theta)
        # The weight was s*theta where theta > 0 and 0 elsewhere: no difference has to be rounded.
        theta.copy_(torch.where(theta > 0, moved, theta + moved))
        view.weight.copy_(sign * theta.clamp_min(0))
