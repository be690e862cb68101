"""Honest counts: accumulations on spikes, multiply-accumulates on all inputs or the analog ones.

- **SynOps**, also called ACs: a spike costs one accumulation for every **nonzero** weight that it
  meets: at a border, or under a stride, fewer than its layer's fan-out.
- **MACs**: one multiply-accumulate for every nonzero weight at every output position, zero padding
  included, whatever the input: spikes are multiplied like any number, as on a CPU or GPU.
- **analog MACs**: those on inputs that are no spikes (an image, an average, the sums of a SEW-ADD
  block), and those of a layer that not one spike reached: nothing is known of its spikes.

- **events**: SynOps as a chip has them that passes spikes on: averages and sums of spikes are the
  spikes in them, and each meets the weights by itself.

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
class EnergyTable:
    """What a chip spends, memory access included.

    Attributes:
        name: of the chip.
        synop: pJ for one event at one weight; for one analog MAC too, which it cannot do.
        update: pJ for one neuron in one time step.
        spike: pJ for one spike that leaves a neuron.
    """

    name: str
    synop: float
    update: float
    spike: float


#: of the model of Loihi in SANA-FE (Boyle et al., 2025): sparse synapses; access and update of a
#: neuron, 51.2 + 21.6 pJ; spikes without their way through the mesh
LOIHI = EnergyTable("Loihi", synop=33.6, update=72.8, spike=69.3)

MEANING = (
    "Events are the SynOps of a chip that passes on spikes, where averages and sums of spikes are "
    f"the spikes in them. Energy is {PICOJOULES_PER_MAC} pJ an analog MAC and {PICOJOULES_PER_AC} "
    f"pJ a SynOp, memory traffic left out; with it, on {LOIHI.name}: {LOIHI.synop} pJ an event or "
    f"analog MAC, {LOIHI.update} a neuron and step, {LOIHI.spike} a spike (SANA-FE's model)."
)


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
        events_dense: accumulations where averages and sums of spikes are the spikes in them, if
            every weight were nonzero; equal to `synops_dense` on spikes.
        events: nonzero weights only.
        direct_macs_dense: those of `macs_dense` on inputs that are not made of spikes (an image).
        direct_macs: those of `macs`.
        fan_in: mean and largest number of nonzero weights that an output adds up.
        fan_out: mean and largest number of nonzero weights that an input meets.
        shape: of the weight.
        bits: of a weight; `quantize` says with how many it is held.
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
    events_dense: float
    events: float
    direct_macs_dense: float
    direct_macs: float
    fan_in: tuple[float, float]
    fan_out: tuple[float, float]
    shape: tuple[int, ...]
    bits: int
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

    @property
    def memory(self) -> float:
        """Bytes of the weights, zeros too."""
        return self.parameters * self.bits / 8

    @property
    def memory_csr(self) -> float:
        """Bytes of nonzero values, column numbers (2 each up to 65,536) and row starts (4)."""
        rows, columns = self.shape[0], self.parameters // self.shape[0]
        each = self.bits / 8 + (2 if columns <= 2**16 else 4)
        return self.parameters_nonzero * each + 4 * (rows + 1)


class NetworkCost(dict[str, LayerCost]):
    """Layer name -> cost, and what the neurons did.

    Attributes:
        updates: of membrane potentials per sample: neurons times time steps.
        spikes: that all neurons fired, per sample.
    """

    updates = spikes = 0.0

    def total(self, attribute: str) -> float:
        """Return the sum of an attribute over the layers."""
        return sum(getattr(each, attribute) for each in self.values())

    def energy(self, table: EnergyTable, which: str = "") -> float:
        """Return pJ per sample with memory access: of events, neurons and spikes.

        Args:
            table: such as `LOIHI`.
            which: ``"_dense"``: with every weight.
        """
        operations = self.total(f"events{which}") + self.total(f"direct_macs{which}")
        return table.synop * operations + table.update * self.updates + table.spike * self.spikes


def measure(
    net: nn.Module,
    example_input: Any,  # noqa: ANN401
    layers: Mapping[str, Layer] | None = None,
    samples: int | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> NetworkCost:
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
        ValueError: if `samples` is not positive, or `example_input` holds none.
    """
    if samples is not None and samples < 1:
        raise ValueError(f"Expected samples to be at least 1 but got {samples}")
    args = as_args(example_input)
    layers = weighted_layers(net) if layers is None else layers
    kept = masks or {}
    counters = {name: Counter(layer, kept.get(name)) for name, layer in layers.items()}
    quiet, counts = unheard(net, listeners_only=True), counting(net, counters)
    with _host.preserved_state(net), quiet, counts as neurons, torch.no_grad():
        _host.reset_net(net.eval())
        # A compiled network runs eagerly: its graph has no room for our hooks.
        with torch.compiler.set_stance("force_eager"):
            net(*args)
        if samples is None:
            samples = neurons.batches[0] if neurons.batches else _samples(args)
            if not samples:
                raise ValueError(
                    "Expected example_input to hold at least one sample but it has none"
                )
    found = NetworkCost({name: _cost(name, each, samples) for name, each in counters.items()})
    found.updates, found.spikes = neurons.updates / samples, neurons.spikes / samples
    return found


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
    direct = counter.positions if silent else counter.direct_positions
    weight = counter.layer.weight
    return LayerCost(
        name=name,
        binary_input=counter.calls > 0 and counter.analog_calls == 0,
        synops_dense=counter.synops_dense / samples,
        synops=counter.synops / samples,
        total_macs_dense=counter.size * counter.positions / samples,
        total_macs=counter.nonzero * counter.positions / samples,
        macs_dense=counter.size * analog / samples,
        macs=counter.nonzero * analog / samples,
        events_dense=counter.events_dense / samples,
        events=counter.events / samples,
        direct_macs_dense=counter.size * direct / samples,
        direct_macs=counter.nonzero * direct / samples,
        fan_in=counter.fan_in,
        fan_out=counter.fan_out,
        shape=tuple(weight.shape),
        bits=getattr(counter.layer, "weight_bits", 8 * weight.element_size()),
        parameters=counter.size,
        parameters_nonzero=counter.nonzero,
        calls=counter.calls,
    )
