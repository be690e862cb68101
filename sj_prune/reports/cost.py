"""Honest operation counts: synaptic operations on spikes, multiply-accumulates on the rest.

A spike costs one accumulation (a SynOp) for every **nonzero** weight that it meets: at a border, or
under a stride, fewer than its layer's fan-out. An analog input (an image, an average, the sums of a
SEW-ADD block) costs one multiply-accumulate (MAC) for every nonzero weight at every output
position, zero padding included. On a network without zero weights both are what SpikingJelly
2.0.0's ``SynOpCounter`` and ``MACCounter`` find; those count a zero weight like any other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.masks.structure import Layer
from sj_prune.neurons.convert import recording_nodes

__all__ = [
    "PICOJOULES_PER_AC",
    "PICOJOULES_PER_MAC",
    "LayerCost",
    "latency",
    "measure",
    "weighted_layers",
]

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
        macs_dense: multiply-accumulates on analog inputs with every weight.
        macs: multiply-accumulates on analog inputs, nonzero weights only.
        parameters: number of weights.
        parameters_nonzero: number of weights that are not 0.
        calls: how often it ran in the forward; with 0 nothing above was measured.
        total_macs_dense: multiply-accumulates where spikes are multiplied like any number, as on a
            CPU or GPU, with every weight.
        total_macs: likewise, nonzero weights only.
    """

    name: str
    binary_input: bool
    synops_dense: float
    synops: float
    macs_dense: float
    macs: float
    parameters: int
    parameters_nonzero: int
    calls: int = 1
    total_macs_dense: float = 0.0
    total_macs: float = 0.0

    @property
    def energy(self) -> float:
        """Energy in pJ per sample: 4.6 a MAC and 0.9 a SynOp."""
        return PICOJOULES_PER_MAC * self.macs + PICOJOULES_PER_AC * self.synops

    @property
    def energy_dense(self) -> float:
        """Energy in pJ per sample with every weight, on the same inputs."""
        return PICOJOULES_PER_MAC * self.macs_dense + PICOJOULES_PER_AC * self.synops_dense


def weighted_layers(net: nn.Module) -> dict[str, Layer]:
    """Return all convolutions and linear layers by name, each weight once.

    Beside `sj_prune.network.topology.prunable_layers` these are the layers with a parametrized weight: they
    are not pruned, and they cost all the same.
    """
    layers: dict[str, Layer] = {}
    seen = set()
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            if _weight_id(module) not in seen:
                layers[name] = module
            seen.add(_weight_id(module))
    return layers


def _weight_id(layer: nn.Module) -> int:
    """Return what two modules that share a weight have in common."""
    weight = layer._parameters.get("weight")
    return id(layer) if weight is None else id(weight)


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
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    layers = weighted_layers(net) if layers is None else layers
    kept = masks or {}
    counters = {name: _Counter(layer, kept.get(name)) for name, layer in layers.items()}
    batches: list[int] = []
    with _host.preserved_state(net), _hooked(net, counters, batches), torch.no_grad():
        _host.reset_net(net.eval())
        # A compiled network runs eagerly: its graph has no room for our hooks.
        with torch.compiler.set_stance("force_eager"):
            net(*args)
        if samples is None:
            samples = batches[0] if batches else _samples(args)
        return {name: counter.cost(name, samples) for name, counter in counters.items()}


def _samples(args: tuple[Any, ...]) -> int:
    if not args or not isinstance(args[0], Tensor) or args[0].ndim < 2:
        raise TypeError(
            "Expected example_input to begin with a tensor [T, N, *], to tell how many samples it "
            "holds: pass samples="
        )
    return args[0].shape[1]


def latency(
    net: nn.Module,
    example_input: Any,  # noqa: ANN401
    *,
    repeats: int = 9,
    warm_up: int = 2,
) -> float:
    """Return the median seconds of one forward in eval mode, from reset neurons.

    Compiled networks run compiled, recording nodes do not record. The network comes back as it was.
    On CUDA the device is waited for.

    Args:
        net: any network.
        example_input: a batch as it takes it.
        repeats: forwards that are timed.
        warm_up: forwards before, not timed.

    Raises:
        ValueError: if `repeats` is below 1 or `warm_up` negative.
    """
    if repeats < 1 or warm_up < 0:
        raise ValueError(
            f"Expected repeats of at least 1 and no negative warm_up but got {repeats}, {warm_up}"
        )
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    tensors = (*args, *net.parameters())
    devices = {x.device for x in tensors if isinstance(x, Tensor) and x.is_cuda}
    times = []
    with _host.preserved_state(net), _silent(net), torch.no_grad():
        net.eval()
        for _ in range(warm_up + repeats):
            _host.reset_net(net)
            _wait(devices)
            start = time.perf_counter()
            net(*args)
            _wait(devices)
            times.append(time.perf_counter() - start)
    return statistics.median(times[warm_up:])


@contextmanager
def _silent(net: nn.Module) -> Iterator[None]:
    """Let no node record."""
    kept = {node: node.recording for node in recording_nodes(net).values()}
    try:
        for node in kept:
            node.recording = False
        yield
    finally:
        for node, recording in kept.items():
            node.recording = recording


def _wait(devices: Iterable[torch.device]) -> None:
    for device in devices:
        torch.cuda.synchronize(device)


@contextmanager
def _hooked(net: nn.Module, counters: Mapping[str, _Counter], batches: list[int]) -> Iterator[None]:
    """Let the layers report to `counters`, and the neurons their batch size to `batches`."""
    by_weight = {_weight_id(counter.layer): counter for counter in counters.values()}
    handles = []
    for module in net.modules():
        # By the weight, so that a second module with the same one counts too.
        if isinstance(module, Layer) and (counter := by_weight.get(_weight_id(module))):
            handles.append(module.register_forward_hook(counter.hook, with_kwargs=True))
        elif _host.is_neuron(module):
            handles.append(module.register_forward_pre_hook(partial(_note_batch, batches)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note_batch(batches: list[int], node: nn.Module, inputs: tuple[Any, ...]) -> None:
    dim = 1 if getattr(node, "step_mode", "s") == "m" else 0
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim > dim:
        batches.append(inputs[0].shape[dim])


class _Counter:
    """Adds up the operations of one layer, as integers."""

    def __init__(self, layer: Layer, mask: Tensor | None = None) -> None:
        self.layer = layer
        weight = layer.weight.detach()
        nonzero = weight != 0 if mask is None else mask.to(weight.device)
        self.size = nonzero.numel()
        self.nonzero = int(nonzero.count_nonzero())
        self.fan_out = _sum_over_outputs(nonzero, getattr(layer, "groups", 1)).cpu()
        self.calls = self.analog_calls = 0
        self.synops = self.synops_dense = self.positions = self.all_positions = 0

    def hook(
        self,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        """Count one call."""
        assert isinstance(layer, Layer)  # noqa: S101 (for the type checker)
        x = args[0] if args else next(iter(kwargs.values()))
        self.calls += 1
        self.all_positions += output.numel() // layer.weight.shape[0]
        if _is_binary(x):
            self._add_spikes(layer, x)
        else:
            self.analog_calls += 1
            self.positions += output.numel() // layer.weight.shape[0]

    def _add_spikes(self, layer: Layer, x: Tensor) -> None:
        # Counting is linear: the spikes of all samples and steps are added up first.
        spikes = x.reshape(-1, *x.shape[1 - self.layer.weight.ndim :])
        total = spikes.sum(0, dtype=torch.float64).cpu()
        channels = layer.weight.shape[0] // self.fan_out.shape[0]
        self.synops += _uses(layer, total, self.fan_out)
        self.synops_dense += _uses(layer, total, torch.full_like(self.fan_out, channels))

    def cost(self, name: str, samples: int) -> LayerCost:
        """Return the counts so far, divided by `samples`."""
        return LayerCost(
            name=name,
            binary_input=self.calls > 0 and self.analog_calls == 0,
            synops_dense=self.synops_dense / samples,
            synops=self.synops / samples,
            macs_dense=self.size * self.positions / samples,
            macs=self.nonzero * self.positions / samples,
            parameters=self.size,
            parameters_nonzero=self.nonzero,
            calls=self.calls,
            total_macs_dense=self.size * self.all_positions / samples,
            total_macs=self.nonzero * self.all_positions / samples,
        )


def _is_binary(x: Tensor) -> bool:
    return x.dtype == torch.bool or bool(((x == 0) | (x == 1)).all())


def _sum_over_outputs(nonzero: Tensor, groups: int) -> Tensor:
    """Return how many outputs each input reaches through each kernel position.

    Args:
        nonzero: where the weight is not 0, ``[C_out, C_in / groups, *]``.
        groups: of the convolution.

    Returns:
        ``[groups, C_in / groups, *]`` in float64: the sum over outputs of ``conv(x, m)`` is
        ``conv(x, sum of m over outputs)``, so one output channel a group is enough.
    """
    return nonzero.unflatten(0, (groups, -1)).sum(1, dtype=torch.float64)


def _uses(layer: Layer, spikes: Tensor, fan_out: Tensor) -> int:
    """Return how often a weight meets a spike.

    Args:
        layer: tells stride, padding and its mode, dilation, groups.
        spikes: number of spikes at each place, ``[C_in, *]`` in float64, exact below 2^53.
        fan_out: as `_sum_over_outputs` returns.
    """
    if isinstance(layer, nn.Linear):
        return int((spikes * fan_out[0]).sum())
    # The layer's own border handling, whatever its padding mode.
    return int(layer._conv_forward(spikes[None], fan_out, None).sum())
