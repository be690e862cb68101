"""What can be told of a neuron from outside: its threshold, its charge, why it has neither."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.neurons.statistics import TABLE
from sj_prune.neurons.surrogates import Tanh

# The threshold of these is none that `v_threshold` says.
_GATED = _host.neuron_classes("GatedLIFNode")
_NORMALIZED = _host.neuron_classes("MPBNBaseNode")
_PER_CHANNEL = _host.neuron_classes("ActivationAwareIFNode")
# Its surrogate is called with H / V_th.
_RELATIVE = _host.neuron_classes("ILIFNode")
_TWO_SIGNS = _host.neuron_classes("TernaryIFNode", "TernaryLIFNode")
# What it remembers as `v` is the potential before reset.
_UNRESET = _GATED

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_surrogate(function: object) -> bool:
    """Tell whether `function` is a surrogate function that is known for one by its class."""
    return isinstance(function, Tanh) or _host.is_surrogate(function)


def surrogate_names(module: nn.Module) -> list[str]:
    """Return the names of the attributes of `module` that are surrogate functions."""
    own = {**vars(module), **module._modules}
    return [
        name
        for name, value in own.items()
        if is_surrogate(value) or (name == "surrogate_function" and callable(value))
    ]


def obstacle(node: nn.Module) -> str:
    """Return why a module that has to do with spikes cannot be observed; empty if it can."""
    names = surrogate_names(node)
    if not names:
        return "it has no surrogate function as an attribute"
    if isinstance(node, _CONTAINERS):
        return "a surrogate function on its own in a container is no neuron layer"
    if len(names) > 1:
        return f"it has {len(names)} surrogate functions ({', '.join(names)})"
    if isinstance(node, _TWO_SIGNS):
        return "it calls its surrogate function for spikes of either sign"
    if _host.has_explicit_precision(node):
        return "its explicit neuron precision runs in a kernel that calls no surrogate function"
    return ""


def absent(node: nn.Module) -> dict[str, str]:
    """Return the statistics that a neuron cannot have, as far as can be told before it runs."""
    reasons = {}
    if isinstance(node, _UNRESET):
        reasons["v"] = "it resets within the next charge and keeps no potential after"
    if getattr(node, "v_threshold", None) is None:
        reasons["h"] = "it has no attribute v_threshold"
    elif _threshold(node, 2) is None:
        reasons["h"] = "its threshold is not its attribute v_threshold"
    return {name: reasons[row.of] for name, row in TABLE.items() if row.of in reasons}


def _threshold(node: Any, ndim: int) -> Tensor | float | None:  # noqa: ANN401
    """Return what is subtracted from `H`, to be broadcast over ``[N, *]`` of `ndim` dimensions."""
    threshold: Any = getattr(node, "v_threshold", None)
    if isinstance(node, _GATED):
        return threshold.detach().view(1, -1, 1, 1).sigmoid()
    if isinstance(node, _NORMALIZED) and (node.fold_bn or node.learnable_vth):
        return None if node.fold_bn else node.a.detach().exp().view(1, -1, *[1] * (ndim - 2))
    if isinstance(threshold, Tensor):
        one = threshold.numel() == 1
        return None if isinstance(node, _PER_CHANNEL) and not one else threshold.detach()
    return threshold if isinstance(threshold, int | float) else None


def charge(node: nn.Module, u: Tensor) -> Tensor | None:
    """Return the potential `H` before reset from ``u = H - V_th``, or None.

    Args:
        node: the neuron.
        u: one step ``[N, *]``, detached.
    """
    threshold = _threshold(node, u.ndim)
    if threshold is None:
        return None
    if isinstance(node, _RELATIVE):
        return u * threshold
    if not isinstance(threshold, Tensor):
        return u + threshold
    try:
        fits = torch.broadcast_shapes(threshold.shape, u.shape) == u.shape
    except RuntimeError:
        fits = False
    return u + threshold.to(u) if fits else None


def potential(node: nn.Module, spikes: Tensor, h: Tensor | None) -> Tensor | None:
    """Return the potential `V` after the host's standard reset of `h`, or None.

    Args:
        node: a neuron whose steps cannot be followed.
        spikes: its spikes ``[N, *]``.
        h: its charge.
    """
    reset = getattr(node, "v_reset", None)
    threshold = _threshold(node, spikes.ndim)
    if h is None or threshold is None or isinstance(reset, Tensor):
        return None
    spikes = spikes.to(h)
    return h - spikes * threshold if reset is None else spikes * reset + (1.0 - spikes) * h
