"""Masks applied to another copy of the network: an EMA, a module that wraps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sj_prune.masks.held import Alive, Held


@torch.no_grad()
def apply_to_copy(other_net: nn.Module, held: Mapping[str, Held], alive: Alive) -> nn.Module:
    """Zero what is pruned in another copy of the network; as `MaskManager.apply_`."""
    if not isinstance(other_net, nn.Module):
        raise TypeError(f"Expected another copy of the network but got {type(other_net).__name__}")
    net = _unwrap(other_net, [each.place.module for each in held.values()])
    modules = dict(net.named_modules())
    found: dict[str, Any] = {}
    for key, each in held.items():
        place, wanted = each.place, tuple(each.place.parameter.shape)
        parameter = getattr(modules.get(place.module), place.attribute, None)
        shape = None if parameter is None else tuple(parameter.shape)
        if shape != wanted:
            raise ValueError(
                f"Expected a {place.attribute} of shape {wanted} at {place.module!r} in the other "
                f"network but got {shape}: apply masks to a copy of the same network"
            )
        found[key] = parameter
    for key, parameter in found.items():
        parameter.copy_(held[key].zero_in_copy(alive, parameter))
    return other_net


def _unwrap(net: nn.Module, names: Iterable[str]) -> nn.Module:
    """Descend through ``module`` and ``net`` attributes to where the masked layers are."""
    wanted = list(names)
    candidate: Any = net
    while isinstance(candidate, nn.Module):
        known = {name for name, _ in candidate.named_modules()}
        if all(name in known for name in wanted):
            return candidate
        inner = (getattr(candidate, name, None) for name in ("module", "net", "_orig_mod"))
        candidate = next((module for module in inner if module is not None), None)
    return net
