"""Counters of operations: one a layer, told of every call by a forward hook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.network.layers import (
    TRANSPOSED,
    WEIGHTED,
    Layer,
    is_weighted,
    weight_identity,
)
from sj_prune.network.uses import fan_out, is_binary, uses


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
        positions: how often all calls used each weight: their output positions (of a transposed
            convolution the input positions, each of which it spreads over a kernel).
        analog_positions: the same of the analog calls.
    """

    def __init__(self, layer: Layer, mask: Tensor | None = None) -> None:
        self.layer = layer
        weight = layer.weight.detach()
        nonzero = weight != 0 if mask is None else mask.to(weight.device)
        self.size = nonzero.numel()
        self.nonzero = int(nonzero.count_nonzero())
        self.fan_out = fan_out(nonzero, layer).cpu()
        self.calls = self.analog_calls = 0
        self.synops = self.synops_dense = self.positions = self.analog_positions = 0

    def hook(
        self,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        """Count one call."""
        assert isinstance(layer, WEIGHTED)  # noqa: S101 (for the type checker)
        x = args[0] if args else next(iter(kwargs.values()))
        self.calls += 1
        used = x if isinstance(layer, TRANSPOSED) else output
        positions = used.numel() // layer.weight.shape[0]
        self.positions += positions
        if bool(is_binary(x)):
            self._add_spikes(layer, x, output)
        else:
            self.analog_calls += 1
            self.analog_positions += positions

    def _add_spikes(self, layer: Layer, x: Tensor, output: Tensor) -> None:
        # Counting is linear: the spikes of all samples and steps are added up first.
        spikes = x.reshape(-1, *x.shape[1 - self.layer.weight.ndim :])
        total = spikes.sum(0, dtype=torch.float64).cpu()
        channels = self.size / self.fan_out.numel()
        size = output.shape[1 - layer.weight.ndim :][1:]
        self.synops += int(uses(layer, total, self.fan_out, size))
        every = torch.full_like(self.fan_out, channels)
        self.synops_dense += int(uses(layer, total, every, size))


@contextmanager
def counting(net: nn.Module, counters: Mapping[str, Counter], batches: list[int]) -> Iterator[None]:
    """Let the layers report to `counters`, and the neurons their batch size to `batches`."""
    by_weight = {weight_identity(counter.layer): counter for counter in counters.values()}
    with ExitStack() as stack:
        for module in net.modules():
            # By the weight, so that a second module with the same one counts too.
            if is_weighted(module) and (counter := by_weight.get(weight_identity(module))):
                hook = module.register_forward_hook(counter.hook, with_kwargs=True)
                stack.callback(hook.remove)
            elif _host.is_neuron(module):
                hook = module.register_forward_pre_hook(partial(_note_batch, batches))
                stack.callback(hook.remove)
        yield


def _note_batch(batches: list[int], node: nn.Module, inputs: tuple[Any, ...]) -> None:
    dim = 1 if getattr(node, "step_mode", "s") == "m" else 0
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim > dim:
        batches.append(inputs[0].shape[dim])
