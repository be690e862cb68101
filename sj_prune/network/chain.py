"""Chains of layers without a neuron in between: what a channel at the beginning reaches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sj_prune.network.layers import Layer, output_channels


def reached(chain: Sequence[Layer], channels: int) -> Tensor:
    """Return which channels at the end of a chain each output channel of its first layer reaches.

    Args:
        chain: layers, each fed by the one before.
        channels: number of those at the end.

    Returns:
        ``[C_out, k]``: through depthwise convolutions its own, through others those of its group;
        all of them where the chain does not keep channels in order.
    """
    width = output_channels(chain[0])
    met = torch.eye(width, dtype=torch.bool, device="cpu")
    for layer in chain[1:]:
        groups, outputs = getattr(layer, "groups", 1), output_channels(layer)
        if met.shape[1] % groups or (groups > 1 and layer.in_channels != met.shape[1]):  # type: ignore[union-attr]
            groups = 1
        inputs = met.unflatten(1, (groups, -1)).any(2)
        met = inputs.repeat_interleave(outputs // groups, 1)
    numbers = met.sum(1)
    if met.shape[1] != channels or bool((numbers != numbers[0]).any()):
        return torch.arange(channels, device="cpu").expand(width, -1)
    return met.nonzero()[:, 1].view(width, -1)
