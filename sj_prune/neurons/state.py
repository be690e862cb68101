"""The state that a neuron layer carries from one call to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rest_channels(node: nn.Module, channels: Tensor, dim: int) -> None:
    """Let some channels of a neuron layer go to rest, whatever state they carry.

    Args:
        node: a neuron layer; its potential `v` and what else it remembers of every neuron (a
            synaptic current) is ``[N, *]`` or not there yet.
        channels: their indices.
        dim: the channel dimension, counted from the end.
    """
    v = getattr(node, "v", None)
    if not isinstance(v, Tensor) or v.ndim < -dim or v.shape[dim] <= int(channels.max()):
        return
    shape = [1] * v.ndim
    shape[dim] = v.shape[dim]
    where = torch.zeros(v.shape[dim], dtype=torch.bool, device=v.device)
    where[channels.to(v.device)] = True
    where = where.view(shape)
    with torch.enable_grad():  # a state that is still part of a graph stays so
        for name, value in {"v": v, **getattr(node, "_memories", {})}.items():
            if isinstance(value, Tensor) and value.shape == v.shape:
                setattr(node, name, value.masked_fill(where, _rest_of(node, name)))


def _rest_of(node: nn.Module, name: str) -> float:
    """Return what a memory of a neuron layer is reset to."""
    if name == "v":
        reset = getattr(node, "v_reset", None)
        return 0.0 if reset is None else float(reset)
    value = getattr(node, "_memories_rv", {}).get(name)
    return float(value) if isinstance(value, int | float) else 0.0
