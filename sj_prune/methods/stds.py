"""STDS (Chen et al., 2022): a threshold that rises pushes hidden weights into dormancy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune._checks import check_choice, check_factor
from sj_prune.masks.bindings import Hidden
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import Penalty
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView

#: of a layer: the threshold that its weights have now, a single number
THRESHOLD = "threshold"


@dataclass(frozen=True, kw_only=True)
class STDS(ScheduledMethod):
    """State transition of dendritic spines (Chen et al., ICML 2022).

    ``w = sign(theta) relu(|theta| - d)`` with ``dL/dtheta = dL/dw`` everywhere, of dormant weights
    too, so that a connection can come back, with either sign. The threshold `d` rises at every step
    from 0 to `ceiling` at step `end`: ``d = D t/N``, or ``d = D (1 + sin(pi (t/N - 1/2))) / 2``;
    the sparsity **emerges** from `D`, and is final once the weights have settled on it.

    The weight stays the optimizer's leaf: the change that a step makes to it is the change of
    `theta`. The paper trains `theta` by Adam at 1e-4 without weight decay (which would act on `w`
    here); it prunes convolutions alone: name linear layers in `skip`.

    Args:
        sparsity: what is hoped for, beside what is reached in records and the log; it decides
            nothing.
        ceiling: `D`, the last threshold, positive; published are 1 to 5 for CIFAR-10 and 0.1 to 5
            for ImageNet.
        rise: "linear" or "sine".
        interval: optimizer steps between records of the sparsity reached (one log line each).
        begin: the threshold rises after this step.
        end: step in which it reaches `ceiling`, and of the last record.
    """

    sparsity: float = 0.95
    ceiling: float = 1.0
    rise: str = "sine"
    interval: int = 100

    def __post_init__(self) -> None:
        check_factor("ceiling", self.ceiling, positive=True)
        check_choice("rise", self.rise, ("linear", "sine"))
        super().__post_init__()
        if self.end is None:
            raise ValueError(
                "Expected end, the step in which the threshold reaches its ceiling, but got None"
            )

    def plan(self) -> Plan:
        """A hidden variable decides, under a threshold that a penalty raises."""
        return self._plan(
            schedule=self.constant(),
            binding=Hidden(SoftThreshold()),
            penalties=(Penalty(proximal=self.raise_threshold),),
        )

    def threshold(self, step: int) -> float:
        """Return `d` once a step is done."""
        last = step if self.end is None else self.end
        part = min(max(0, step - self.begin), last - self.begin) / max(1, last - self.begin)
        if self.rise == "sine":
            part = (1.0 + math.sin(math.pi * (part - 0.5))) / 2.0
        return self.ceiling * part

    def raise_threshold(self, layer: LayerView, lr: float) -> None:
        """Set the threshold of this step, once `theta` has absorbed it."""
        theta = layer.state["theta"]
        layer.state[THRESHOLD] = theta.new_tensor(self.threshold(layer.step))


@dataclass(frozen=True)
class SoftThreshold:
    """``w = sign(theta) relu(|theta| - d)``, with `d` in the layer's state."""

    def start(self, weight: Tensor, hidden: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``theta = w + d sign(w)`` in at least float32."""
        wide = weight if weight.dtype == torch.float64 else weight.float()
        return {"theta": wide + torch.sign(wide) * hidden.get(THRESHOLD, 0.0)}

    def absorb(self, hidden: dict[str, Tensor], weight: Tensor) -> None:
        """Move `theta` by what the step did to the weight."""
        theta, d = hidden["theta"], hidden.get(THRESHOLD, 0.0)
        moved = weight.to(theta)
        # A live weight was theta less d, a dormant one 0: no difference has to be rounded.
        alive = moved + torch.sign(theta) * d
        theta.copy_(torch.where(theta.abs() > d, alive, theta + moved))

    def weight(self, hidden: dict[str, Tensor]) -> Tensor:
        """Return the weight above the threshold."""
        theta = hidden["theta"]
        return torch.sign(theta) * (theta.abs() - hidden.get(THRESHOLD, 0.0)).clamp_min(0)
