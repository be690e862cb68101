"""Does a neuron layer stay silent where it is given nothing?"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sj_prune import _host

_STEPS = 8


def why_not_silent(node: nn.Module, x: Tensor) -> str | None:
    """Return why a channel of this neuron layer may fire on zeros, or None.

    Args:
        node: a neuron layer.
        x: an input of it; only its shape and type are looked at.
    """
    if not _host.is_host_neuron(node):
        return f"{type(node).__name__} is not a stock neuron: what it does on zeros is unknown"
    own = [*node.parameters(recurse=True), *node.buffers(recurse=True)]
    if any(t.numel() > 1 for t in own):
        return f"{type(node).__name__} has parameters for every channel"
    if _host.is_stock_neuron(node):
        rest = 0.0 if node.v_reset is None else node.v_reset  # type: ignore[union-attr]
        if rest < node.v_threshold:  # type: ignore[operator]
            return None
        return f"its resting potential {rest:g} is not below the threshold {node.v_threshold:g}"
    return None if _silent_on_zeros(node, x) else f"{type(node).__name__} fires on zeros"


def _silent_on_zeros(node: nn.Module, x: Tensor) -> bool:
    """Try it, with a copy."""
    twin = copy.deepcopy(node)
    for module in twin.modules():  # the hooks of whoever traces the node are copied with it
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    _host.reset_net(twin)
    one = x[:1, :1] if getattr(node, "step_mode", "s") == "m" else x[:1]
    with torch.no_grad():
        outputs = [twin(torch.zeros_like(one)) for _ in range(_STEPS)]
    return all(isinstance(out, Tensor) and not out.any() for out in outputs)
