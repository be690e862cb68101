"""Counters of operations: one a layer, told of every call by a forward hook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from sj_prune import _host
from sj_prune.network.layers import (
    TRANSPOSED,
    WEIGHTED,
    Layer,
    is_weighted,
    weight_identity,
)
from sj_prune.network.uses import each_sum, each_use, fan_out, is_binary, uses
from sj_prune.reports.events import Events


class Counter:
    """Adds up the operations of one layer, as integers, over all samples and time steps.

    Args:
        layer: whose operations.
        mask: which weights count, True = kept; by default those that are not 0.

    Attributes:
        size: number of weights.
        nonzero: number of weights that count.
        calls: how often the layer ran.
        analog_calls: how often its input was no spike train.
        synops: accumulations on binary inputs, counting weights only.
        synops_dense: the same with every weight.
        events: accumulations on spikes where averages and sums of spikes are the spikes in them.
        events_dense: the same with every weight.
        positions: how often all calls used each weight: their output positions (of a transposed
            convolution the input positions, each of which it spreads over a kernel).
        analog_positions: the same of the analog calls.
        direct_positions: the same of the calls on inputs that are not made of spikes.
        fan_in: mean and largest number of counting weights that an output of the first call adds.
        fan_out: mean and largest number of them that an input of it meets.
    """

    def __init__(self, layer: Layer, mask: Tensor | None = None) -> None:
        self.layer = layer
        weight = layer.weight.detach()
        nonzero = weight != 0 if mask is None else mask.to(weight.device)
        self.size = nonzero.numel()
        self.nonzero = int(nonzero.count_nonzero())
        self.mask = nonzero
        self.uses = fan_out(nonzero, layer).cpu()
        self.calls = self.analog_calls = 0
        self.synops = self.synops_dense = self.events = self.events_dense = 0
        self.positions = self.analog_positions = self.direct_positions = 0
        self.fan_in = self.fan_out = (0.0, 0.0)

    @_disable_current_modes()
    def hook(
        self,
        events: Events,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        """Count one call."""
        assert isinstance(layer, WEIGHTED)  # noqa: S101 (for the type checker)
        x = args[0] if args else next(iter(kwargs.values()))
        if not self.calls:
            self.fan_in, self.fan_out = (
                (float(found.mean()), float(found.max()))
                for found in (f(layer, self.mask, x, output) for f in (each_sum, each_use))
            )
        self.calls += 1
        used = x if isinstance(layer, TRANSPOSED) else output
        positions = used.numel() // layer.weight.shape[0]
        self.positions += positions
        binary, unit = bool(is_binary(x)), events.known(x)
        unit = 1.0 if unit is None and binary else unit
        if binary:
            synops, dense = self._met(layer, x, output)
            self.synops, self.synops_dense = self.synops + synops, self.synops_dense + dense
        else:
            self.analog_calls += 1
            self.analog_positions += positions
        if unit is None:
            self.direct_positions += positions
            return
        if not binary or unit != 1:
            synops, dense = self._met(layer, (x / unit).round(), output)
        self.events, self.events_dense = self.events + synops, self.events_dense + dense

    def _met(self, layer: Layer, x: Tensor, output: Tensor) -> tuple[int, int]:
        """Return how often spikes, or numbers of them, meet counting weights and any weights."""
        # Counting is linear: the spikes of all samples and steps are added up first.
        spikes = x.reshape(-1, *x.shape[1 - self.layer.weight.ndim :])
        total = spikes.sum(0, dtype=torch.float64).cpu()
        size = output.shape[1 - layer.weight.ndim :][1:]
        every = torch.full_like(self.uses, self.size / self.uses.numel())
        return int(uses(layer, total, self.uses, size)), int(uses(layer, total, every, size))


@dataclass
class Neurons:
    """What the neuron layers of a network did, over all samples and steps.

    Attributes:
        batches: number of samples in each call.
        updates: membrane potentials that were computed.
        spikes: that were fired.
    """

    batches: list[int] = field(default_factory=list)
    updates: int = 0
    spikes: int = 0

    def note_batch(self, node: nn.Module, inputs: tuple[Any, ...]) -> None:
        """See how many samples come in."""
        dim = 1 if getattr(node, "step_mode", "s") == "m" else 0
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim > dim:
            self.batches.append(inputs[0].shape[dim])

    @_disable_current_modes()
    def note_spikes(self, events: Events, node: nn.Module, inputs: Any, out: Any) -> None:  # noqa: ANN401
        """See what comes out."""
        if isinstance(out, Tensor):
            self.updates += out.numel()
            if events.unit(out) is not None:
                self.spikes += int(out.count_nonzero())


@contextmanager
def counting(net: nn.Module, counters: Mapping[str, Counter]) -> Iterator[Neurons]:
    """Let the layers report to `counters`, and the neurons to what this yields."""
    by_weight = {weight_identity(counter.layer): counter for counter in counters.values()}
    neurons = Neurons()
    with Events() as events, ExitStack() as stack:
        for module in net.modules():
            # By the weight, so that a second module with the same one counts too.
            if is_weighted(module) and (counter := by_weight.get(weight_identity(module))):
                hook = partial(counter.hook, events)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            elif _host.is_neuron(module):
                stack.callback(module.register_forward_pre_hook(neurons.note_batch).remove)
                hook = partial(neurons.note_spikes, events)
                stack.callback(module.register_forward_hook(hook).remove)
        yield neurons
