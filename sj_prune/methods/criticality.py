"""Criticality (arXiv 2311.16141): prune by magnitude, regrow what feeds neurons near threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sj_prune.masks.schedule import Constant, Schedule
from sj_prune.methods.base import LayerView, ScheduledMethod, check_fraction

__all__ = ["Criticality"]


@dataclass(frozen=True, kw_only=True)
class Criticality(ScheduledMethod):
    """Unstructured pruning of arXiv 2311.16141, Algorithm 1.

    Every `interval` steps the weights are pruned by `|w|` under one global threshold (14) to the
    temporary sparsity ``s' = s + r (1 - s)`` (11), with `s` cubic (15); then the
    ``k = r (1 - s) N`` pruned weights whose post-synaptic neuron is most critical, (12) and (13),
    are regrown from 0. A neuron's criticality is the surrogate derivative at its potential before
    reset, averaged over time, its maximum over the map, averaged over samples.

    Layers that no recording neuron follows (a classifier) are pruned, never regrown. Scores are
    divided by the peak of each layer's surrogate, so that different surrogates compare.

    Args:
        sparsity: fraction pruned after the last update, in [0, 1).
        regrow: fraction `r` of the **survivors** that is regrown, in [0, 1). (SCA's `regrow` is a
            fraction of all channels.) The paper pairs sparsity 0.90, 0.95, 0.98 with 0.2, 0.1,
            0.01.
        interval: optimizer steps between updates.
        begin: updates start after this step.
        end: step of the last update.
        ties: all pruned inputs of one neuron have the same score. "exact" takes exactly k, by
            `|w|` before the prune and then by a seeded order; "filter" takes every weight that
            reaches the k-th score, as the released code does, and overshoots the density.
        batches: optimizer steps before an update whose batches are scored; the paper scores the
            last one.
        aggregate: "max" over the map, as published, or "mean".
        growth: what a pruned weight is regrown by: "criticality", as published; and to compare,
            with everything else alike (the layers that regrow too), "gradient", `|dL/dw|`, or
            "random".
        drop: what the weights are pruned by: "magnitude", as published, or "random", to see what
            regrowth does on its own.
    """

    sparsity: float = 0.95
    regrow: float = 0.1
    interval: int = 2000
    ties: str = "exact"
    batches: int = 1
    aggregate: str = "max"
    growth: str = "criticality"
    drop: str = "magnitude"

    grow_across_layers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction("regrow", self.regrow)
        for name, value, known in (
            ("ties", self.ties, ("exact", "filter")),
            ("aggregate", self.aggregate, ("max", "mean")),
            ("growth", self.growth, ("criticality", "gradient", "random")),
            ("drop", self.drop, ("magnitude", "random")),
        ):
            if value not in known:
                raise ValueError(f"Expected {name} to be one of {known} but got {value!r}")
        if isinstance(self.batches, bool) or not isinstance(self.batches, int):
            raise TypeError(f"Expected batches to be an integer but got {self.batches!r}")
        super().__post_init__()
        if not 1 <= self.batches <= self.interval:
            raise ValueError(
                f"Expected batches in [1, interval = {self.interval}] but got {self.batches}"
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The one statistic that is scored; always, as it tells which layers feed neurons."""
        return frozenset({f"criticality_{self.aggregate}"})

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """Dense gradients at updates, where growth is ranked by them."""
        return "update" if self.regrow and self.growth == "gradient" else "never"

    @property
    def window(self) -> int:
        """Recorded are the batches just before an update."""
        return self.batches

    @property
    def exact_ties(self) -> bool:
        """Whether exactly k are grown."""
        return self.ties == "exact"

    @property
    def regrow_schedule(self) -> Schedule:
        """Constant `r`."""
        return self.schedule_of(Constant, self.regrow, self.regrow)

    def drop_score(self, view: LayerView) -> Tensor:
        """Return `|w|`, eq. (14), or uniform noise, seeded."""
        return view.weight.abs() if self.drop == "magnitude" else _noise(view)

    def grow_score(self, view: LayerView) -> Tensor | None:
        """Return the criticality of each weight's post-synaptic neuron, eqs. (12) and (13).

        Or what `growth` asks for. None for a layer that no neuron follows.
        """
        if view.activity is None:
            return None
        if self.growth == "gradient":
            return view.dense_grad().abs()
        if self.growth == "random":
            return _noise(view)
        (name,) = self.needs
        score = view.activity.mean(name, relative=True)
        return score.view(-1, *[1] * (view.weight.ndim - 1)).to(view.weight.device)

    def tie_score(self, view: LayerView) -> Tensor | None:
        """Return `|w|` as it was before the prune."""
        return view.weight.abs()


def _noise(view: LayerView) -> Tensor:
    weight = view.weight
    return torch.rand(weight.shape, device=weight.device, generator=view.generator)
