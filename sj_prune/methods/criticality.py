"""Criticality (arXiv 2311.16141): prune by magnitude, regrow what feeds neurons near threshold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sj_prune._checks import check_choice, check_fraction, check_integer
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import Growth, Reads, Statistic, gradient_magnitude, magnitude, noise
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView

_GROWTHS = {"criticality": None, "gradient": gradient_magnitude, "random": noise}
_DROPS = {"magnitude": magnitude, "random": noise}


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

    What was found in 24 pairs of trainings on a part of CIFAR-10 at 95 % (docs/survival.md): as
    published it is 1.1 points below `Magnitude`, for regrown weights start from 0 and 6 to 13 % of
    them survive the next prune late in training, and the maximum over the map ranks layers, so that
    early ones fill up (3.3 times the energy of a sample). `keeps_value` wins the accuracy back.
    Two and four times as long it is 1.1 points above its own scores permuted, and above
    `Magnitude`, but not above `Magnitude(allocation=ERK())`, which costs less; with SGD and the
    paper's neurons it is level with `Magnitude`.
    `keeps_value`, `normalize` and `grace` are **ours**; their defaults are the paper.

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
        keeps_value: ours: what is dropped and regrown in one update keeps weight and slots, and
            does not start from 0: criticality then protects small weights of critical neurons.
        normalize: ours: "layer" compares criticality within each layer only, so that every layer
            keeps as many weights as the global threshold on `|w|` leaves it; None: over all layers.
        grace: ours: number of later updates in which what has been regrown is not dropped, as far
            as the sparsity leaves room for it.
    """

    sparsity: float = 0.95
    regrow: float = 0.1
    interval: int = 2000
    ties: str = "exact"
    batches: int = 1
    aggregate: str = "max"
    growth: str = "criticality"
    drop: str = "magnitude"
    keeps_value: bool = False
    normalize: str | None = None
    grace: int = 0

    def __post_init__(self) -> None:
        check_fraction("regrow", self.regrow)
        check_choice("ties", self.ties, ("exact", "filter"))
        check_choice("aggregate", self.aggregate, ("max", "mean"))
        check_choice("growth", self.growth, tuple(_GROWTHS))
        check_choice("drop", self.drop, tuple(_DROPS))
        check_choice("normalize", self.normalize, (None, "layer"))
        check_integer("batches", self.batches)
        super().__post_init__()
        if not 1 <= self.batches <= self.interval:
            raise ValueError(
                f"Expected batches in [1, interval = {self.interval}] but got {self.batches}"
            )

    def plan(self) -> Plan:
        """Drop by `|w|`, eq. (14); grow by criticality, eqs. (12) and (13), on eq. (15)."""
        growth = self.growth if self.regrow else "criticality"  # no gradients where nothing grows
        grow = Growth(
            GrowthByCriticality(f"criticality_{self.aggregate}", self.batches, growth),
            self.regrow,
            ties=magnitude if self.ties == "exact" else "all",
            across_layers=self.normalize is None,
            keeps_value=self.keeps_value,
            grace=self.grace,
        )
        return self._plan(schedule=self.cubic(), drop=_DROPS[self.drop], grow=grow)


@dataclass(frozen=True)
class GrowthByCriticality:
    """Criticality of each weight's post-synaptic neuron, or what it is compared with.

    None for a layer that no neuron follows: it never grows, whatever the score.

    Args:
        statistic: the criticality that is read, always: it tells which layers feed neurons.
        batches: optimizer steps before an update whose batches are scored.
        growth: "criticality", "gradient" or "random".
    """

    statistic: str
    batches: int = 1
    growth: str = "criticality"

    @property
    def reads(self) -> Reads:
        """The statistic, and the gradient where that is the score."""
        gradient = {"gradient"} if self.growth == "gradient" else set()
        return Reads(frozenset({self.statistic} | gradient), self.batches)

    def __call__(self, layer: LayerView) -> Tensor | None:
        """Return the score, ``[C_out]`` or in the shape of the weight."""
        if layer.activity is None:
            return None
        score = _GROWTHS[self.growth] or Statistic(self.statistic, relative=True)
        return score(layer)
