"""Is a weight of 0 no connection? Tried on layers whose class computes something itself."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# What was found of a layer; its class and settings do not change.
_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def zero_disconnects(layer: nn.Module) -> bool:
    """Tell whether an input whose weights are all 0 has no effect on what a layer returns.

    Tried on a copy, with random numbers. A layer that does not run on its own is believed.

    Args:
        layer: a convolution or linear layer of a class with a forward of its own.
    """
    if layer not in _known:
        _known[layer] = True
        for shape in _input_shapes(layer):
            # Whatever a forward of the user's raises without the rest of its network.
            with suppress(Exception):
                _known[layer] = _tried(layer, shape)
                break
    return _known[layer]


def _tried(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    twin: Any = copy.deepcopy(layer).eval()
    twin._forward_hooks.clear()
    twin._forward_pre_hooks.clear()
    weight = twin.weight
    transposed = getattr(twin, "transposed", False)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weight.copy_(torch.randn(weight.shape))
        weight.select(0 if transposed else 1, 0).zero_()
        x = torch.randn(shape).to(weight)
        other = x.clone()
        other.movedim(-1 if weight.ndim == 2 else 1 - weight.ndim, 0)[0] += 1
        a, b = _run(twin, x), _run(twin, other)
    return bool(torch.allclose(a, b))


def _input_shapes(layer: Any) -> list[tuple[int, ...]]:  # noqa: ANN401
    """Return what a layer may take, ``[N, *]`` or ``[T, N, *]``: its own forward may fold time."""
    sample: tuple[int, ...] = layer.weight.shape[1:]
    if layer.weight.ndim > 2:
        places = [d * (k - 1) + 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        sample = (layer.in_channels, *places)
    shapes = [(1, *sample), (2, 1, *sample)]
    return shapes[::-1] if getattr(layer, "step_mode", "s") == "m" else shapes


def _run(layer: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    out: Tensor = layer(x)
    return out
