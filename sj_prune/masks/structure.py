"""Structures: what is pruned as one piece, and what that makes of a network's parameters.

A structure says what its units are called (`unit`, `scope`), whether a forward has to show first
what is coupled (`needs_forward`), whether pruned units sleep and can wake (`sleeps`), how scores of
a layer become scores of units (`units`) and mind what units have to do with each other (`ranked`),
what it does not go together with (`refuse`, `stays`, a final `sparsity` of its own), and builds the
`masks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from sj_prune._checks import check_integer
from sj_prune.masks.allocation import ERK, Allocation
from sj_prune.masks.bindings import AtUpdates, Binding, Hidden, Sleep
from sj_prune.masks.held import Held, HeldElements, HeldRows
from sj_prune.masks.keys import Place
from sj_prune.masks.manager import MaskManager
from sj_prune.masks.rows import Rows
from sj_prune.masks.scopes import ChannelGroup, GroupScope, LayerScope
from sj_prune.masks.units import LayerScores


@dataclass(frozen=True)
class Unstructured:
    """Single weights: every element of a weight tensor is a unit of its own."""

    unit = "weights"
    scope = "layers"
    needs_forward = False
    sleeps = False
    sparsity: ClassVar[float | None] = None
    allocations = "Global(), Uniform() or ERK()"

    def units(self, scores: Tensor, weight: Tensor) -> Tensor:
        """Return the scores of the units, here one per element.

        Args:
            scores: of the elements, anything that broadcasts to the weight's shape; or ``[C_out]``,
                one for all weights of a post-synaptic neuron.
            weight: the layer's weight.
        """
        if scores.ndim == 1:
            scores = scores.view(-1, *[1] * (weight.ndim - 1))
        return scores.expand_as(weight)

    def refuse(self, allocation: Allocation, binding: Binding) -> str | None:
        """Return why these do not go together with single weights, or None."""
        if isinstance(binding, Sleep | AtUpdates):
            return (
                f"binding={binding!r} holds whole channels, and single weights neither sleep nor "
                "wake: structure=Channels(), or binding=Strict()"
            )
        return None

    def stays(self, producers: Sequence[nn.Module]) -> str | None:
        """Return None: single weights of every layer may go."""
        return None

    def ranked(
        self, layers: Sequence[LayerScores], generator: torch.Generator
    ) -> list[LayerScores]:
        """Return the scores of all scopes as they are: any unit may go."""
        return list(layers)

    def masks(
        self,
        net: nn.Module,
        layers: Iterable[str],
        groups: Iterable[ChannelGroup],
        binding: Binding,
    ) -> MaskManager:
        """Return one mask a layer."""
        places = [Place(net, name) for name in layers]
        held = {place.module: HeldElements(place, place.module) for place in places}
        return MaskManager(net, map(LayerScope, places), held)


@dataclass(frozen=True)
class Channels:
    """Whole output channels, each with everything that is coupled with it.

    Channels that meet in a residual addition are one unit, and so are a channel and its depthwise
    filter. A silent channel has gamma = beta = 0 at its norm (filter and bias without one).

    Args:
        linear: prune features of linear layers too.
        min_keep: number of units that every group keeps at least.
        multiple: the number of channels that a group keeps is a multiple of this, at least one, or
            all of them: CPU kernels and tensor cores are fast at widths of 8, 16 or 32. The exact
            count of every group is rounded up or down, to the nearer side where the sum admits it;
            the sum comes as near as that to the sparsity asked for, so at most half a multiple away
            (of two as near the sparser). Growth replaces channels within these counts.
    """

    linear: bool = True
    min_keep: int = 1
    multiple: int = 1

    unit = "channels"
    scope = "groups"
    needs_forward = True
    sleeps = True
    sparsity: ClassVar[float | None] = None
    allocations = "Global() or Uniform()"

    def __post_init__(self) -> None:
        for name, reason in (("min_keep", " (no group is ever emptied)"), ("multiple", "")):
            if (value := check_integer(name, getattr(self, name))) < 1:
                raise ValueError(f"Expected {name} of at least 1{reason} but got {value}")

    def units(self, scores: Tensor, weight: Tensor) -> Tensor:
        """Return one score per output channel, ``[C_out]``.

        Args:
            scores: ``[C_out]``, or of the elements as for `Unstructured`: then their mean.
            weight: the layer's weight.
        """
        if scores.ndim == weight.ndim:
            scores = scores.flatten(1).mean(1)
        return scores.expand(weight.shape[0])

    def refuse(self, allocation: Allocation, binding: Binding) -> str | None:
        """Return why these do not go together with whole channels, or None."""
        if isinstance(allocation, ERK):
            return (
                f"allocation={allocation!r} gives densities by the shape of weights, which "
                "channels do not have: Global() or Uniform()"
            )
        if isinstance(binding, Hidden):
            return (
                "a hidden variable stands behind every single weight, and a channel has none: "
                "structure=Unstructured()"
            )
        return None

    def stays(self, producers: Sequence[nn.Module]) -> str | None:
        """Return why channels of these layers stay, or None."""
        if not self.linear and any(isinstance(layer, nn.Linear) for layer in producers):
            return "features of linear layers stay: structure=Channels(linear=False)"
        return None

    def ranked(
        self, layers: Sequence[LayerScores], generator: torch.Generator
    ) -> list[LayerScores]:
        """Return the scores of all groups as they are: any unit may go."""
        return list(layers)

    def scopes(self, net: nn.Module, groups: Iterable[ChannelGroup]) -> list[GroupScope]:
        """Return the scopes of groups of coupled channels."""
        place = partial(Place, net)
        return [GroupScope(group, place, self.min_keep, self.multiple) for group in groups]

    def masks(
        self,
        net: nn.Module,
        layers: Iterable[str],
        groups: Iterable[ChannelGroup],
        binding: Binding,
    ) -> MaskManager:
        """Return the masks of groups of coupled channels."""
        scopes = self.scopes(net, groups)
        held: dict[str, Held] = {}
        for scope in scopes:
            group = scope.group
            for name, rows in group.norms.items():
                _hold(held, Place(net, name), group.name, rows, binding, silent=True)
            for name, rows in group.producers.items():
                _hold(held, Place(net, name), group.name, rows, binding, silent=name in group.bare)
        return MaskManager(net, scopes, held)


def _hold(
    held: dict[str, Held],
    place: Place,
    group: str,
    rows: Tensor,
    binding: Binding,
    *,
    silent: bool,
) -> None:
    """Hold weight and bias of a module where channels of a group are pruned."""
    wake = binding.wake if isinstance(binding, Sleep) else "restore"
    for attribute in ("weight", "bias"):
        here = Place(place.net, place.module, attribute)
        if here.owner._parameters.get(attribute) is None:
            continue
        key = f"{place.module}.{attribute}"
        new = HeldRows(here, wake, isinstance(binding, AtUpdates))
        known = held.setdefault(key, new)
        assert isinstance(known, HeldRows)  # noqa: S101 (for the type checker)
        known.parts.append(Rows(group, rows, silent))


#: what a plan may prune as one piece
Structure: TypeAlias = Unstructured | Channels
