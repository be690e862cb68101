"""The state that a neuron layer carries from one call to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["rest_channels"]


def rest_channels(node: nn.Module, channels: Tensor, dim: int) -> None:
    """Let some channels of a neuron layer go to rest, wherever their potential is.

    Args:
        node: a neuron layer, whose potential `v` is ``[N, *]`` or not there yet.
        channels: their indices.
        dim: the channel dimension, counted from the end.
    """
    v = getattr(node, "v", None)
    if not isinstance(v, Tensor) or v.ndim < -dim or v.shape[dim] <= int(channels.max()):
        return
    rest = getattr(node, "v_reset", None)
    shape = [1] * v.ndim
    shape[dim] = v.shape[dim]
    where = torch.zeros(v.shape[dim], dtype=torch.bool, device=v.device)
    where[channels.to(v.device)] = True
    with torch.enable_grad():  # a state that is still part of a graph stays so
        node.v = v.masked_fill(where.view(shape), 0.0 if rest is None else rest)  # type: ignore[assignment]
