"""Honest counts: accumulations on spikes, multiply-accumulates on all inputs or the analog ones.

- **SynOps**, also called ACs: a spike costs one accumulation for every **nonzero** weight that it
  meets: at a border, or under a stride, fewer than its layer's fan-out.
- **MACs**: one multiply-accumulate for every nonzero weight at every output position, zero padding
  included, whatever the input: spikes are multiplied like any number, as on a CPU or GPU.
- **analog MACs**: those on inputs that are no spikes (an image, an average, the sums of a SEW-ADD
  block), and those of a layer that not one spike reached: nothing is known of its spikes.

The **operations** of a layer are its SynOps and analog MACs: every call costs one or the other, and
they are what energy is of. ``..._dense`` counts weights that are 0 too. On a network without zero
weights SynOps and analog MACs are what SpikingJelly 2.0.0's ``SynOpCounter`` and ``MACCounter``
find; those count a zero weight like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.network.inputs import as_args
from sj_prune.network.layers import Layer, weighted_layers
from sj_prune.network.unheard import unheard
from sj_prune.reports.counter import Counter, counting
from sj_prune.reports.latency import latency as latency  # sj_prune.cost.latency is public

#: energy of a 32-bit floating-point multiply-accumulate and accumulate in 45 nm CMOS
#: (Horowitz, ISSCC 2014): the figures of most SNN papers. Memory traffic is not in them.
PICOJOULES_PER_MAC = 4.6
PICOJOULES_PER_AC = 0.9


@dataclass(frozen=True)
class LayerCost:
    """Operations of one layer per sample, summed over time steps and calls.

    Attributes:
        name: module name of the layer.
        binary_input: every input it got was a spike train (all 0 or 1).
        synops_dense: accumulations on binary inputs if every weight were nonzero.
        synops: accumulations on binary inputs, nonzero weights only.
        total_macs_dense: multiply-accumulates if every weight were nonzero, with spikes multiplied
            like any number, as a CPU or GPU does.
        total_macs: multiply-accumulates, nonzero weights only.
        macs_dense: those of `total_macs_dense` on inputs that are no spikes.
        macs: those of `total_macs` on inputs that are no spikes.
        parameters: number of weights.
        parameters_nonzero: number of weights that are not 0.
        calls: how often it ran in the forward; with 0 nothing above was measured.
    """

    name: str
    binary_input: bool
    synops_dense: float
    synops: float
    total_macs_dense: float
    total_macs: float
    macs_dense: float
    macs: float
    parameters: int
    parameters_nonzero: int
    calls: int = 1

    @property
    def energy(self) -> float:
        """Energy in pJ per sample: 4.6 an analog MAC and 0.9 a SynOp."""
        return PICOJOULES_PER_MAC * self.macs + PICOJOULES_PER_AC * self.synops

    @property
    def energy_dense(self) -> float:
        """Energy in pJ per sample with every weight, on the same inputs."""
        return PICOJOULES_PER_MAC * self.macs_dense + PICOJOULES_PER_AC * self.synops_dense


def measure(
    net: nn.Module,
    example_input: Any,  # noqa: ANN401
    layers: Mapping[str, Layer] | None = None,
    samples: int | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, LayerCost]:
    """Count the operations of every layer in one forward in eval mode, without gradients.

    The forward starts from reset neurons, and the network comes back as it was: buffers, neuron
    memories, mode, random state.

    Args:
        net: any network of SpikingJelly layers.
        example_input: what it takes: a tensor, or a tuple of positional inputs.
        layers: what to count, by name; every `weighted_layers` of the network by default.
        samples: number of samples in `example_input`, by which all counts are divided (1 gives
            integers, for the batch). By default dimension 1 of what the first neuron layer in
            multi-step mode receives, ``[T, N, *]``, or dimension 0 in single-step mode; without
            neurons dimension 1 of `example_input`. So a network that takes ``[N, C, H, W]`` and
            repeats it over time inside is counted right too.
        masks: element masks by layer name, True = kept: which weights count in these layers,
            instead of those that are not 0. (The filters of silenced channels sleep: they are not 0
            but do nothing; a weight that has just been regrown is 0 but will not stay so.)

    Returns:
        Layer name -> cost, in the order of `layers`.

    Raises:
        TypeError: if `example_input` does not begin with a tensor and `samples` is not given.
        ValueError: if `samples` is not positive.
    """
    if samples is not None and samples < 1:
        raise ValueError(f"Expected samples to be at least 1 but got {samples}")
    args = as_args(example_input)
    layers = weighted_layers(net) if layers is None else layers
    kept = masks or {}
    counters = {name: Counter(layer, kept.get(name)) for name, layer in layers.items()}
    batches: list[int] = []
    quiet = unheard(net, listeners_only=True)
    with _host.preserved_state(net), quiet, counting(net, counters, batches), torch.no_grad():
        _host.reset_net(net.eval())
        # A compiled network runs eagerly: its graph has no room for our hooks.
        with torch.compiler.set_stance("force_eager"):
            net(*args)
        if samples is None:
            samples = batches[0] if batches else _samples(args)
        return {name: _cost(name, counter, samples) for name, counter in counters.items()}


def _samples(args: tuple[Any, ...]) -> int:
    if not args or not isinstance(args[0], Tensor) or args[0].ndim < 2:
        raise TypeError(
            "Expected example_input to begin with a tensor [T, N, *], to tell how many samples it "
            "holds: pass samples="
        )
    return args[0].shape[1]


def _cost(name: str, counter: Counter, samples: int) -> LayerCost:
    # Nothing is known of the spikes of a layer that none reached, and "free" would be wrong.
    silent = not (counter.analog_calls or counter.synops_dense)
    analog = counter.positions if silent else counter.analog_positions
    return LayerCost(
        name=name,
        binary_input=counter.calls > 0 and counter.analog_calls == 0,
        synops_dense=counter.synops_dense / samples,
        synops=counter.synops / samples,
        total_macs_dense=counter.size * counter.positions / samples,
        total_macs=counter.nonzero * counter.positions / samples,
        macs_dense=counter.size * analog / samples,
        macs=counter.nonzero * analog / samples,
        parameters=counter.size,
        parameters_nonzero=counter.nonzero,
        calls=counter.calls,
    )
