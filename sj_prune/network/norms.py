"""What a norm is: the one place that says which classes stand behind a layer."""

from __future__ import annotations

from torch import nn

#: norms with gamma, beta and, where tracked, a running mean for every channel: batch and instance
#: norms. They can silence a channel, and they are cut with it.
CHANNEL_NORMS = (nn.modules.batchnorm._NormBase,)
#: all norms that may stand behind a layer
NORMS = (*CHANNEL_NORMS, nn.LayerNorm, nn.GroupNorm)


def is_norm(module: nn.Module) -> bool:
    """Tell whether `module` is a batch, instance, layer or group norm."""
    return isinstance(module, NORMS)


def is_channel_norm(module: nn.Module) -> bool:
    """Tell whether `module` is a batch or instance norm."""
    return isinstance(module, CHANNEL_NORMS)


def norms_by_weight(net: nn.Module) -> dict[int, str]:
    """Return the id of gamma -> the norm's name, for every norm of `net` that has one."""
    return {
        id(module.weight): name
        for name, module in net.named_modules()
        if is_norm(module) and module.weight is not None
    }
