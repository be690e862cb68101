"""Groups of coupled channels: what has to be pruned together, unit by unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Channels that live and die together. A unit is what is pruned at once.

    All index tensors are ``[units, k]``: the k channels of that module which belong to a unit.

    Attributes:
        name: of its first norm, or of its first layer where no norm follows.
        units: how many channels can be pruned one by one.
        producers: layer name -> its output channels.
        norms: norm name -> its channels. Silencing them silences the unit.
        bare: producers that something else than a norm reads: filter and bias are silenced too.
        consumers: layer name -> its input channels (several a unit behind a flatten).
        neurons: neuron layer name -> its channels.
        norm_of: producer -> the first norm behind it, where there is one.
    """

    name: str
    units: int
    producers: dict[str, Tensor]
    norms: dict[str, Tensor]
    bare: frozenset[str]
    consumers: dict[str, Tensor]
    neurons: dict[str, Tensor]
    norm_of: dict[str, str] = field(default_factory=dict)

    def modules(self) -> set[str]:
        """Return the names of all modules that it has channels in."""
        return {*self.producers, *self.norms, *self.consumers, *self.neurons}


#: an int that a module keeps, (module name, path from its attribute), and whose width it repeats,
#: (module name, attribute)
Widths = Mapping[tuple[str, str], tuple[str, str]]


@dataclass(frozen=True)
class Coupling:
    """All groups of a network.

    Attributes:
        groups: in the order of the forward.
        frozen: layer name -> why its output channels (or some of them) cannot be pruned.
        norms: layer name -> the norm that scores its channels, and which channels of it they are,
            ``[C_out]``; None: all in their order. A norm scores one layer alone, the first.
        neuron_dims: neuron layer name -> the dimension of its channels, counted from the end.
        widths: ints kept by modules that have to follow the width of a layer or norm.
    """

    groups: tuple[Group, ...]
    frozen: Mapping[str, str]
    norms: Mapping[str, tuple[str, Tensor | None]] = field(default_factory=dict)
    neuron_dims: Mapping[str, int] = field(default_factory=dict)
    widths: Widths = field(default_factory=dict)

    def group_of(self, layer: str) -> Group | None:
        """Return the first group that a layer produces for, or None."""
        return next((group for group in self.groups if layer in group.producers), None)

    def channels_behind(self, layer: str, neuron: str) -> Tensor | None:
        """Return which channels of a neuron layer belong to each output channel of a layer.

        Args:
            layer: a producer.
            neuron: a neuron layer.

        Returns:
            ``[C_out, k]``, or None if that is not known for every output channel.
        """
        places: dict[int, list[int]] = {}
        for group in self.groups:
            if layer in group.producers and neuron in group.neurons:
                pairs = zip(group.producers[layer], group.neurons[neuron], strict=True)
                for rows, channels in pairs:
                    places.update((row, channels.tolist()) for row in rows.tolist())
        found = [places[row] for row in sorted(places)]
        whole = sorted(places) == list(range(len(places))) and len(set(map(len, found))) == 1
        return torch.tensor(found, device="cpu") if whole else None
