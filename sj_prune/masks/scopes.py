"""Scopes: what one unit is, and which layers it spans."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from sj_prune.engines.fill import order_of
from sj_prune.masks.keys import Place
from sj_prune.masks.multiples import allowed_counts


class ChannelGroup(Protocol):
    """What is read of a group of coupled channels; index tensors are ``[units, k]``."""

    @property
    def name(self) -> str:
        """Of the group."""
        ...

    @property
    def units(self) -> int:
        """How many channels can be pruned one by one."""
        ...

    @property
    def producers(self) -> Mapping[str, Tensor]:
        """Layer name -> its output channels."""
        ...

    @property
    def norms(self) -> Mapping[str, Tensor]:
        """Norm name -> its channels."""
        ...

    @property
    def bare(self) -> Collection[str]:
        """Producers that are silenced themselves."""
        ...

    @property
    def consumers(self) -> Mapping[str, Tensor]:
        """Layer name -> its input channels."""
        ...

    @property
    def neurons(self) -> Mapping[str, Tensor]:
        """Neuron layer name -> its channels."""
        ...


@dataclass(frozen=True)
class LayerScope:
    """The weights of one layer, each a unit of its own.

    Args:
        place: of the weight.
        least: number of weights that are kept at least.
    """

    place: Place
    least: int = 1

    multiple = 1
    sleeps = False

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.place.module

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.place.parameter.numel()

    @property
    def floor(self) -> int:
        """How many are kept at least."""
        return self.least

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer itself."""
        return (self.name,)

    @property
    def masked(self) -> tuple[str, ...]:
        """The layer itself."""
        return (self.name,)

    def whole(self) -> Tensor:
        """Return which weights are kept at first: all."""
        return torch.ones_like(self.place.parameter, dtype=torch.bool)

    def placed(self, units: Tensor) -> Tensor:
        """Return a mask where the weight is, in its order of memory if that is a usual one."""
        weight = self.place.parameter
        order, here = order_of(weight), units.to(weight.device)
        return here if order is None else here.contiguous(memory_format=order)

    def combine(self, scores: Mapping[str, Tensor], how: str) -> Tensor:
        """Return the layer's own scores."""
        return scores[self.name]

    def spread(self, name: str, units: Tensor, found: Tensor | None) -> Tensor:
        """Return which are kept: the units have the shape of the weight."""
        return units

    def add_elements(self, alive: Tensor, masks: dict[str, Tensor]) -> None:
        """Write which weights are kept."""
        masks[self.name] = alive.clone()

    def resting(self, alive: Tensor) -> dict[str, Tensor]:
        """Return no neurons: single weights silence none."""
        return {}


@dataclass(frozen=True)
class GroupScope:
    """Whole channels of coupled layers; the units of a group are kept on the CPU.

    Args:
        group: what is coupled.
        place: returns where the weight of a layer or norm is.
        min_keep: number of units that are kept at least.
        channels: what the number of channels that are kept is a multiple of.
    """

    group: ChannelGroup
    place: Callable[[str], Place]
    min_keep: int = 1
    channels: int = 1

    sleeps = True

    @property
    def name(self) -> str:
        """Of the group."""
        return self.group.name

    @property
    def size(self) -> int:
        """Number of units."""
        return self.group.units

    @property
    def floor(self) -> int:
        """How many units are kept at least."""
        least = min(self.min_keep, self.group.units)
        return allowed_counts(self.group.units, self.multiple, least)[0]

    @property
    def multiple(self) -> int:
        """Return it in units, which may hold several channels of a layer (grouped convolutions)."""
        widths = [rows.shape[1] for rows in self.group.producers.values()]
        return math.lcm(*(self.channels // math.gcd(self.channels, width) for width in widths))

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that make the channels."""
        return tuple(self.group.producers)

    @property
    def masked(self) -> tuple[str, ...]:
        """The norms, and the layers that are silenced themselves."""
        bare = [name for name in self.group.producers if name in self.group.bare]
        return (*self.group.norms, *bare)

    def whole(self) -> Tensor:
        """Return which units are kept at first: all."""
        return torch.ones(self.group.units, dtype=torch.bool, device="cpu")

    def placed(self, units: Tensor) -> Tensor:
        """Return units on the CPU, where indices are."""
        return units.to("cpu", torch.bool)

    def combine(self, scores: Mapping[str, Tensor], how: str) -> Tensor:
        """Return ``[units]`` from the ``[C_out]`` scores of the group's layers, in float64.

        Args:
            scores: of its layers, at least one.
            how: "relative" takes the mean over layers of the score divided by its layer's mean, in
                the scale of the layers' means (a single layer keeps its scores); "mean" and "sum"
                take those.
        """
        rows = self.group.producers
        stacked = torch.stack([scores[m].double().cpu()[rows[m]].mean(1) for m in scores])
        if how == "sum":
            return stacked.sum(0)
        if how == "relative" and len(stacked) > 1:
            means = stacked.mean(1, keepdim=True)
            return (stacked / means.where(means != 0, 1)).mean(0) * means.mean()
        return stacked.mean(0)

    def spread(self, name: str, units: Tensor, found: Tensor | None) -> Tensor:
        """Return which channels of a layer or norm are kept, ``[C]``."""
        weight = self.place(name).parameter
        if found is None:
            found = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device)
        rows = self.group.norms.get(name, self.group.producers.get(name))
        assert rows is not None  # noqa: S101 (asked for by a name that the scope has)
        found[rows[~units.cpu()].flatten().to(found.device)] = False
        return found

    def add_elements(self, alive: Tensor, masks: dict[str, Tensor]) -> None:
        """Write that filters of pruned channels are gone, and the inputs that read them."""
        pruned = ~alive
        for layer, rows in self.group.producers.items():
            self._whole(masks, layer)[rows[pruned].flatten()] = False
        for layer, columns in self.group.consumers.items():
            mask = self._whole(masks, layer)
            width = mask.shape[1]
            # A depthwise filter went with its output; other groups lose the same columns each.
            if width > 1 or getattr(self.place(layer).owner, "groups", 1) == 1:
                mask[:, columns[pruned].flatten() % width] = False

    def _whole(self, masks: dict[str, Tensor], layer: str) -> Tensor:
        """Return the mask of a layer's weights, all kept if it is new."""
        if layer not in masks:
            weight = self.place(layer).parameter
            masks[layer] = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        return masks[layer]

    def resting(self, alive: Tensor) -> dict[str, Tensor]:
        """Return the channels of neuron layers behind pruned units."""
        found = {name: rows[~alive].flatten() for name, rows in self.group.neurons.items()}
        return {name: channels for name, channels in found.items() if len(channels)}


#: what is ranked: units, their number, the layers that they span
Scope: TypeAlias = LayerScope | GroupScope
