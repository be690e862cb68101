"""How often weights meet spikes: the geometry behind every count of accumulations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_prune.network.layers import TRANSPOSED, Layer


def is_binary(x: Tensor) -> Tensor:
    """Tell whether all of `x` is 0 or 1, on its device."""
    return ((x == 0) | (x == 1)).all()


def fan_out(nonzero: Tensor, layer: Layer) -> Tensor:
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


def uses(layer: Layer, spikes: Tensor, fan_out: Tensor, size: torch.Size) -> Tensor:
    """Return how often a weight meets a spike.

    Args:
        layer: tells stride, padding and its mode, dilation, groups.
        spikes: number of spikes at each place, ``[C_in, *]`` in float64, exact below 2^53.
        fan_out: as the function returns.
        size: of the output map: a transposed convolution may have been asked for another one.
    """
    if isinstance(layer, nn.Linear):
        return (spikes * fan_out[0]).sum()
    return _reached(layer, spikes, fan_out, size).sum()


def _reached(
    layer: Any,  # noqa: ANN401
    x: Tensor,
    weight: Tensor,
    size: torch.Size,
    groups: int = 1,
) -> Tensor:
    """Return what reaches each place of a convolution's output through another weight.

    Args:
        layer: tells the geometry.
        x: ``[C, *]``.
        weight: in place of the layer's.
        size: of the output map.
        groups: of a transposed convolution; others have their own.
    """
    if isinstance(layer, TRANSPOSED):
        return _spread(layer, x, weight, size, groups)
    # The layer's own border handling, whatever its padding mode; not a weight that it computes.
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
    return kind._conv_forward(layer, x[None], weight, None)


def _spread(layer: Any, spikes: Tensor, weight: Tensor, size: torch.Size, groups: int) -> Tensor:  # noqa: ANN401
    """Return what reaches each place of the output of a transposed convolution."""
    settings = (layer.stride, layer.padding, layer.dilation, layer.kernel_size)
    least = [
        (n - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
        for n, stride, padding, dilation, kernel in zip(spikes.shape[1:], *settings, strict=True)
    ]
    more = [n - few for n, few in zip(size, least, strict=True)]
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(more) - 1]
    stride, padding, dilation, _ = settings
    return convolve(spikes[None], weight, None, stride, padding, more, groups, dilation)


def each_use(layer: Layer, counts: Tensor, x: Tensor, output: Tensor) -> Tensor:
    """Return how many weights each input of one sample meets, ``[C_in, *]`` in float64.

    Args:
        layer: what `x` goes into.
        counts: which of its weights count, True or False, in the shape of the weight.
        x: its input, any leading dimensions.
        output: what it made of it.
    """
    dims = 1 - layer.weight.ndim
    # Counting is linear: its gradient by the input is the number of uses of each.
    place = torch.ones(x.shape[dims:], dtype=torch.float64, device=x.device, requires_grad=True)
    with torch.enable_grad():
        total = uses(layer, place, fan_out(counts, layer), output.shape[dims:][1:])
    return torch.autograd.grad(total, place)[0]


def each_sum(layer: Layer, counts: Tensor, x: Tensor, output: Tensor) -> Tensor:
    """Return how many inputs each output of one sample adds up, in float64; arguments likewise."""
    if isinstance(layer, nn.Linear):
        return counts.sum(1, dtype=torch.float64)
    dims, groups = 1 - layer.weight.ndim, layer.groups
    # Inputs of a group are alike here: one stands for all.
    ones = torch.ones(groups, *x.shape[dims:][1:], dtype=torch.float64, device=x.device)
    if isinstance(layer, TRANSPOSED):
        weight = counts.unflatten(0, (groups, -1)).sum(1, dtype=torch.float64)
    else:
        weight = counts.sum(1, keepdim=True, dtype=torch.float64)
    return _reached(layer, ones, weight, output.shape[dims:][1:], groups)
