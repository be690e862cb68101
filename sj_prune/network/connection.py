"""Is a weight of 0 no connection? Tried on layers whose class computes something itself."""

from __future__ import annotations

import copy
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
        try:
            _known[layer] = _tried(layer)
        except Exception:  # whatever a forward of the user's raises without the rest of its network
            _known[layer] = True
    return _known[layer]


def _tried(layer: nn.Module) -> bool:
    twin: Any = copy.deepcopy(layer).eval()
    twin._forward_hooks.clear()
    twin._forward_pre_hooks.clear()
    weight = twin.weight
    transposed = getattr(twin, "transposed", False)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weight.copy_(torch.randn(weight.shape))
        weight.select(0 if transposed else 1, 0).zero_()
        x = torch.randn(_input_shape(twin)).to(weight)
        other = x.clone()
        other.movedim(-1 if weight.ndim == 2 else 1 - weight.ndim, 0)[0] += 1
        a, b = _run(twin, x), _run(twin, other)
    return bool(torch.allclose(a, b))


def _input_shape(layer: Any) -> tuple[int, ...]:  # noqa: ANN401
    time = (2,) if getattr(layer, "step_mode", "s") == "m" else ()
    if layer.weight.ndim == 2:
        return (*time, 1, layer.weight.shape[1])
    places = [d * (k - 1) + 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return (*time, 1, layer.in_channels, *places)


def _run(layer: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    out: Tensor = layer(x)
    return out
