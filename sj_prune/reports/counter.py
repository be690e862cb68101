"""Counters of operations: one a layer, told of every call by a forward hook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.network.layers import (
    TRANSPOSED,
    WEIGHTED,
    Layer,
    is_weighted,
    weight_identity,
)


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
        self.fan_out = _sum_over_outputs(nonzero, layer).cpu()
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
        if _is_binary(x):
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
        self.synops += _uses(layer, total, self.fan_out, size)
        self.synops_dense += _uses(layer, total, torch.full_like(self.fan_out, channels), size)


def _is_binary(x: Tensor) -> bool:
    return x.dtype == torch.bool or bool(((x == 0) | (x == 1)).all())


def _sum_over_outputs(nonzero: Tensor, layer: Layer) -> Tensor:
    """Return how many outputs each input reaches through each kernel position.

    Args:
        nonzero: where the weight is not 0, ``[C_out, C_in / groups, *]``; of a transposed
            convolution ``[C_in, C_out / groups, *]``.
        layer: whose weight it is.

    Returns:
        ``[groups, C_in / groups, *]`` (transposed: ``[C_in, 1, *]``) in float64: the sum over
        outputs of ``conv(x, m)`` is ``conv(x, sum of m over outputs)``, so one output channel a
        group is enough (transposed: one).
    """
    if isinstance(layer, TRANSPOSED):
        return nonzero.sum(1, keepdim=True, dtype=torch.float64)
    groups = getattr(layer, "groups", 1)
    return nonzero.unflatten(0, (groups, -1)).sum(1, dtype=torch.float64)


def _uses(layer: Layer, spikes: Tensor, fan_out: Tensor, size: torch.Size) -> int:
    """Return how often a weight meets a spike.

    Args:
        layer: tells stride, padding and its mode, dilation, groups.
        spikes: number of spikes at each place, ``[C_in, *]`` in float64, exact below 2^53.
        fan_out: as `_sum_over_outputs` returns.
        size: of the output map: a transposed convolution may have been asked for another one.
    """
    if isinstance(layer, nn.Linear):
        return int((spikes * fan_out[0]).sum())
    if isinstance(layer, TRANSPOSED):
        return int(_spread(layer, spikes, fan_out, size).sum())
    # The layer's own border handling, whatever its padding mode; not a weight that it computes.
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
    return int(kind._conv_forward(layer, spikes[None], fan_out, None).sum())


def _spread(layer: Any, spikes: Tensor, fan_out: Tensor, size: torch.Size) -> Tensor:  # noqa: ANN401
    """Return what reaches each place of the output of a transposed convolution."""
    settings = (layer.stride, layer.padding, layer.dilation, layer.kernel_size)
    least = [
        (n - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
        for n, stride, padding, dilation, kernel in zip(spikes.shape[1:], *settings, strict=True)
    ]
    more = [n - few for n, few in zip(size, least, strict=True)]
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(more) - 1]
    stride, padding, dilation, _ = settings
    return convolve(spikes[None], fan_out, None, stride, padding, more, 1, dilation)


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
