"""What a weighted layer is, and which ones a network has."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy

from sj_prune import _host
from sj_prune.network.connection import zero_disconnects

#: transposed convolutions: their weight is ``[C_in, C_out / groups, *]``
Transposed: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
#: the layers whose weights are counted, and pruned where they are parameters of their own
Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | Transposed
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *TRANSPOSED)


def is_weighted(module: nn.Module) -> bool:
    """Tell whether `module` is a convolution, a transposed one, or a linear layer."""
    return isinstance(module, WEIGHTED)


def output_channels(layer: Layer) -> int:
    """Return the number of output channels of a layer."""
    if isinstance(layer, TRANSPOSED):
        return layer.weight.shape[1] * layer.groups
    return layer.weight.shape[0]


def weight_identity(layer: nn.Module) -> int:
    """Return what two modules that share a weight have in common."""
    weight = layer._parameters.get("weight")
    return id(layer) if weight is None else id(weight)


def weighted_layers(net: nn.Module) -> dict[str, Layer]:
    """Return all convolutions and linear layers by name, each weight once, none without weights.

    Beside `prunable_layers` these are the layers that `why_not` says something of: they are not
    pruned, and they cost all the same.
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

    Left out is what `why_not` says something of.
    """
    layers = weighted_layers(net).items()
    return {name: layer for name, layer in layers if why_not(net, name) is None}


def why_not(net: nn.Module, name: str) -> str | None:
    """Return why the weights of a layer cannot be pruned, or None.

    A parametrized weight is no parameter, a part of a neuron is no synapse, and where a class
    computes with another weight than its parameter, a standardised one, a 0 is still a connection.
    """
    layer, above = net.get_submodule(name), name
    if layer._parameters.get("weight") is None:
        return "its weight is parametrized, so there is no parameter to mask"
    while above:
        above = above.rpartition(".")[0]
        if _host.is_neuron(module := net.get_submodule(above)):
            return f"it is a part of {above} ({type(module).__name__}), a neuron, and no synapse"
    if _host.is_plain_layer(layer) or zero_disconnects(layer):
        return None
    return (
        f"{type(layer).__name__} computes with another weight than its parameter (a standardised "
        "one?), so a weight of 0 is still a connection"
    )
