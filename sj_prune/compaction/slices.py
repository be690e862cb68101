"""Which units are silent, and the index of every tensor that stays when they leave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sj_prune.network.coupling import Group


def _silencers(net: nn.Module, group: Group) -> Iterable[tuple[Tensor, Tensor]]:
    """Return the parameters that silence a group, each with its channels ``[units, k]``."""
    modules = {name: net.get_submodule(name) for name in (*group.norms, *group.producers)}
    for name, index in group.norms.items():
        yield modules[name].weight, index  # type: ignore[misc]
        yield modules[name].bias, index  # type: ignore[misc]
    for name in group.producers:
        if name in group.bare or not group.norms:
            yield modules[name].weight, group.producers[name]  # type: ignore[misc]
            if modules[name].bias is not None:
                yield modules[name].bias, group.producers[name]  # type: ignore[misc]


def silent_units(net: nn.Module, group: Group) -> Tensor:
    """Return which units of a group are silent, ``[units]``.

    A unit is silent if gamma and beta are 0 at its channels in every norm, and filter and bias are
    in every producer that something else than a norm reads.

    Args:
        net: the network, with its masks burnt in.
        group: one of its groups.
    """
    silent = torch.ones(group.units, dtype=torch.bool, device="cpu")
    for parameter, index in _silencers(net, group):
        zero = (parameter.detach().flatten(1) == 0).all(1) if parameter.ndim > 1 else parameter == 0
        silent &= zero.cpu()[index].all(1)
    return silent


def silence(net: nn.Module, group: Group, units: Tensor) -> None:
    """Silence units of a group in place: their sleeping filters behind a norm stay as they are.

    Args:
        net: the network.
        group: one of its groups.
        units: which of its units, ``[units]``, bool.
    """
    with torch.no_grad():
        for parameter, index in _silencers(net, group):
            parameter[index[units].flatten().to(parameter.device)] = 0


@dataclass(frozen=True)
class Cut:
    """What leaves a network: channels by module name.

    Attributes:
        outputs: weighted layer -> its output channels that leave.
        inputs: weighted layer -> its input channels that leave.
        norms: norm -> its channels that leave.
        neurons: neuron layer -> its channels that leave.
    """

    outputs: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    neurons: Mapping[str, Tensor]

    @classmethod
    def of(cls, units: Iterable[tuple[Group, Tensor]]) -> Cut:
        """Return what leaves with the given units ``[units]`` (bool) of groups."""
        tables: tuple[dict[str, list[Tensor]], ...] = tuple(defaultdict(list) for _ in range(4))
        for group, gone in units:
            kinds = (group.producers, group.consumers, group.norms, group.neurons)
            for table, kind in zip(tables, kinds, strict=True):
                for name, index in kind.items():
                    table[name].append(index[gone].flatten())
        return cls(*({name: torch.cat(i) for name, i in table.items()} for table in tables))

    def leaving(self, name: str) -> Tensor | None:
        """Return the channels of a module's output that leave, or None."""
        for table in (self.outputs, self.norms, self.neurons):
            if name in table:
                return table[name]
        return None


def staying(size: int, leaving: Tensor | None) -> Tensor | None:
    """Return the indices of `size` channels that stay, or None if all do."""
    if leaving is None or not len(leaving):
        return None
    keep = torch.ones(size, dtype=torch.bool, device="cpu")
    keep[leaving] = False
    return keep.nonzero().flatten()
