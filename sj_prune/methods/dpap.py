"""DPAP (Han et al.): channels die whose neurons are seldom driven together with their inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune._checks import check_factor, check_fraction
from sj_prune.masks.allocation import Allocation, Global
from sj_prune.masks.schedule import Schedule
from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.parts import Reads, function_name
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView


@dataclass(frozen=True, kw_only=True)
class DPAP(ChannelMethod):
    """Developmental plasticity-inspired adaptive pruning (Han et al., arXiv 2211.12714), of units.

    Every batch, ``r_t = 0.5 r_{t-1} + S_t`` is a neuron's trace and `c` its mean over time, summed
    over the map, ``[N, C]``. With ``post = c (c - th)``, `th` the running mean of `c`, a unit adds
    up ``b = sum post * (c of its inputs)`` and ``E = sum c``; neither is ever reset. At update `t`,
    once an epoch, ``D = u(b) u(E)`` with `u` from least to most of the layer, and
    ``R = 0.999 R + delta exp(-int((t - 1)/12))`` with ``delta = 2 v(D) - 0.65``, and 5 more where
    that is positive; in linear layers ``2 v(D) - 1.5``, 2 more, and 13. `v` is `u` of what is
    clipped to the 75th percentile. A unit with ``R < 0`` is pruned for good: the sparsity
    **emerges**. Pruned units are held between updates here. The paper prunes from epoch 5 on:
    ``begin=4 * len(loader)``. Its second part, synapses of linear layers, is `DPAPSynapses`.

    Not the paper's: a layer without spiking neurons before it counts its inputs as 1, and `v` clips
    first. With gradient accumulation the last batch of a step counts; each rank has a `th` of its
    own. Arguments are those of `ChannelMethod`, and

    Args:
        sparsity: what is hoped for, beside what is reached in records; it decides nothing, but
            where `update_masks` or `sj_prune.prune` ask for one.
        interval: optimizer steps between updates: the steps of one epoch, ``len(loader)``.
        patience: `R` of every unit at first, at least 0.
        decay: what is left of `R` at an update, in [0, 1).
    """

    allocation: Allocation = Global()
    patience: float = 10.0
    decay: float = 0.999

    def __post_init__(self) -> None:
        check_factor("patience", self.patience)
        check_fraction("decay", self.decay)
        if self.interval is None and self.end is not None:
            raise ValueError(
                "Expected interval, the optimizer steps of one epoch, but got None: "
                "interval=len(loader)"
            )
        super().__post_init__()

    def channel_schedule(self) -> Schedule:
        """Return `sparsity` at every update, for the records."""
        return self.constant()

    def plan(self) -> Plan:
        """Drop whose `R` has fallen below 0."""
        score = Survival(self.interval, self.begin, self.patience, self.decay, self.batches)
        return self._channel_plan(score, threshold=0.0)


def trace(spikes: Tensor) -> Tensor:
    """Return the mean over time of ``r_t = 0.5 r_{t-1} + S_t``, summed over the map, ``[N, C]``."""
    wide = spikes if spikes.dtype == torch.float64 else spikes.float()
    r = total = torch.zeros_like(wide[0])
    for step in wide:
        r = 0.5 * r + step
        total = total + r
    return (total / len(wide)).flatten(2).sum(2) if wide.ndim > 3 else total / len(wide)


@dataclass(frozen=True)
class Survival:
    """`R` of every unit, ``[C_out]``; adds up `b` and `E`, which last.

    Args:
        interval: optimizer steps between updates; None: one.
        begin: updates start after this step.
        patience: `R` at first.
        decay: what is left of it at an update.
        batches: optimizer steps before an update that count; None: all.
    """

    interval: int | None
    begin: int
    patience: float
    decay: float
    batches: int | None = None

    lasting = True

    @property
    def reads(self) -> Reads:
        """The trace of neurons."""
        return Reads(frozenset({function_name(trace)}), self.batches, "mean")

    def sums(self, layer: LayerView) -> dict[str, Tensor]:
        """Return zeros: `b` and `E`, ``[C_out]`` in float64, and the number of samples."""
        zeros = layer.weight.new_zeros(len(layer.weight), dtype=torch.float64)
        return {"b": zeros, "E": zeros.clone(), "samples": zeros.new_zeros(())}

    def add(self, layer: LayerView) -> None:
        """Add the samples of the batch."""
        if (seen := see(layer)) is not None:
            post, before = seen
            layer.state["b"] += (post * before.sum(1, keepdim=True)).sum(0)

    def __call__(self, layer: LayerView) -> Tensor | None:
        """Return `R` at this update; None without recording neurons."""
        if layer.activity is None:
            return None
        product = unit(layer.state["b"]) * unit(layer.state["E"])
        return self.survival(layer, product)

    def survival(self, layer: LayerView, product: Tensor) -> Tensor:
        """Return `R` at this update of units with this `D`."""
        least, bonus, slow = (0.65, 5.0, 12) if layer.weight.ndim > 2 else (1.5, 2.0, 13)
        delta = 2.0 * unit(product.clamp_max(_quantile(product, 0.75))) - least
        delta = delta + bonus * (delta > 0)
        number = max(1, (layer.step - self.begin) // (self.interval or 1))  # from 1
        before = layer.state.get("awake", torch.full_like(delta, self.patience))
        return self.decay * before + delta * math.exp(-((number - 1) // slow))


def see(layer: LayerView) -> tuple[Tensor, Tensor] | None:
    """Add `c` of the batch to the layer's `E`; return ``c (c - th)`` and the inputs' `c`.

    Returns:
        ``[N, C_out]`` and ``[N, channels of all neurons before]``, or ``[N, 1]`` of 1 without any;
        None where nothing was recorded, or in a step that AMP skips.
    """
    if layer.activity is None or not (found := layer.activity.samples(trace)):
        return None
    state = layer.state
    c = torch.stack(found).mean(0).to(state["E"])
    inputs = [] if layer.inputs is None else layer.inputs.samples(trace)
    before = torch.cat([each.to(c) for each in inputs], 1) if inputs else torch.ones_like(c[:, :1])
    if not (torch.isfinite(c).all() and torch.isfinite(before).all()):
        return None
    state["E"] += c.sum(0)
    state["samples"] += len(c)
    return c * (c - state["E"] / state["samples"]), before


def unit(values: Tensor) -> Tensor:
    """Return values from 0, the least, to 1, the most; 0 where all are the same."""
    low, high = values.min(), values.max()
    return (values - low) / torch.where(high > low, high - low, 1.0)


def _quantile(values: Tensor, q: float) -> Tensor:
    """Return the quantile, between the two nearest; torch's takes 2^24 values at most."""
    flat = values.flatten()
    place = q * (flat.numel() - 1)
    low = flat.kthvalue(math.floor(place) + 1).values
    high = flat.kthvalue(math.ceil(place) + 1).values
    return torch.lerp(low, high, place - math.floor(place))
