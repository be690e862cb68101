"""What a weighted layer is, and which ones a network has."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy

#: the layers whose weights are counted, and pruned where they are parameters of their own
Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def is_weighted(module: nn.Module) -> bool:
    """Tell whether `module` is a convolution or a linear layer."""
    return isinstance(module, WEIGHTED)


def weight_identity(layer: nn.Module) -> int:
    """Return what two modules that share a weight have in common."""
    weight = layer._parameters.get("weight")
    return id(layer) if weight is None else id(weight)


def weighted_layers(net: nn.Module) -> dict[str, Layer]:
    """Return all convolutions and linear layers by name, each weight once, none without weights.

    Beside `prunable_layers` these are the layers with a parametrized weight: they are not pruned,
    and they cost all the same.
    """
    layers: dict[int, tuple[str, Layer]] = {}
    for name, module in net.named_modules():
        if isinstance(module, WEIGHTED) and not _is_empty(module):
            layers.setdefault(weight_identity(module), (name, module))
    return dict(layers.values())


def _is_empty(layer: Layer) -> bool:
    weight = layer._parameters.get("weight")
    return weight is not None and not is_lazy(weight) and not weight.numel()


def prunable_layers(net: nn.Module) -> dict[str, Layer]:
    """Return the convolutions and linear layers of `net` by name, each weight once.

    A layer whose ``weight`` is not a parameter of its own (a parametrization) is left out.
    """
    layers = weighted_layers(net).items()
    return {name: m for name, m in layers if m._parameters.get("weight") is not None}
