"""ChannelMasks: whole channels kept silent, their filters asleep until they wake.

A pruned unit is silenced where its value is made: gamma and beta of its norms are 0 in the network,
or filter and bias of a layer that no norm follows. What was there is kept aside. The filter behind
a norm *sleeps*: it keeps its value, bit by bit, whatever momentum, weight decay or a penalty would
do to it. So the gradient of gamma stays alive, and a method can tell which channel to wake.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sj_prune.masks.asleep import Part
from sj_prune.masks.groups import ChannelGroup, GroupMasks

__all__ = ["ChannelGroup", "ChannelMasks"]

logger = logging.getLogger("sj_prune")


def _no_neurons(name: str, channels: Tensor) -> None:
    """Before groups are known no neuron is to go to rest; a function, so that it pickles."""


class ChannelMasks(GroupMasks):
    """Channel masks by norm name (layer name where no norm follows), ``[C]``, True = kept.

    Empty until `build` is told the groups. Units of coupled channels count once.

    Args:
        min_keep: number of units that every group keeps at least.
        channels: what the number of channels that a group keeps is a multiple of.
        wake: "restore" gives a waking channel the gamma and beta (or filter and bias) that it fell
            asleep with; "zero" starts them at 0.
        binds: "always"; or "update": masks bind at updates only, filters are zeroed too, and in
            between the optimizer moves everything, as SCA's released code does.
    """

    def __init__(
        self,
        *,
        min_keep: int = 1,
        channels: int = 1,
        wake: str = "restore",
        binds: str = "always",
    ) -> None:
        super().__init__(min_keep=min_keep, channels=channels)
        self.wake = wake
        self.binds = binds
        self._parts: dict[str, list[Part]] = {}
        self._silence: Callable[[str, Tensor], None] = _no_neurons

    def build(
        self,
        net: nn.Module,
        groups: Iterable[ChannelGroup],
        silence: Callable[[str, Tensor], None],
    ) -> None:
        """Learn the groups of a network; all channels are kept then.

        Args:
            net: the network.
            groups: what is pruned together.
            silence: called with the name of a neuron layer and the channels of it that are to go to
                rest.
        """
        self._silence = silence
        for group in groups:
            self.add(net, group)
            for name, rows in group.norms.items():
                self._add(group, name, rows, silent=True)
            for name, rows in group.producers.items():
                self._add(group, name, rows, silent=name in group.bare)

    def _add(self, group: ChannelGroup, name: str, rows: Tensor, *, silent: bool) -> None:
        module = self._modules[name]
        for attribute in ("weight", "bias"):
            if module._parameters.get(attribute) is not None:
                part = Part(module, attribute, group.name, rows, silent)
                self._parts.setdefault(f"{name}.{attribute}", []).append(part)

    def bind_always(self) -> None:
        """Hold masks between updates too, from the next update on."""
        self.binds = "always"

    # ---- what is held --------------------------------------------------------------------------

    def parameters(self) -> dict[str, Tensor]:
        """Return the held parameters by name."""
        return {key: parts[0].parameter for key, parts in self._parts.items()}

    def gated(self) -> dict[str, Tensor]:
        """Return the silenced parameters: behind them no gradient reaches a sleeping filter."""
        return {key: parts[0].parameter for key, parts in self._silent().items()}

    def scored_weight(self, layer: str) -> Tensor:
        """Return a layer's weight as if all of its channels were awake; read-only where not."""
        return self._scored(layer, "weight")

    def scored_bias(self, layer: str) -> Tensor:
        """As `scored_weight`, for its bias."""
        return self._scored(layer, "bias")

    def _scored(self, layer: str, attribute: str) -> Tensor:
        value = self._modules[layer]._parameters[attribute].detach()  # type: ignore[union-attr]
        for part in self._parts.get(f"{layer}.{attribute}", ()):
            value = part.awake(value)
        return value

    @torch.no_grad()
    def install(
        self,
        masks: Mapping[str, Tensor],
        optimizers: Iterable[Optimizer] = (),
        *,
        cleared: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Put units to sleep and wake others.

        Masks that bind at updates only are written by the next `enforce`: at the end of the step.

        Args:
            masks: new masks by group, ``[units]``, True = kept.
            optimizers: whose state for sleeping channels is zeroed.
            cleared: not used: what is regrown in the update it is dropped in never slept.
        """
        for name, mask in masks.items():
            self._dead[name] = ~mask.cpu()
        for parts in self._parts.values():
            for part in parts:
                if self.binds == "always":
                    part.turn(self._dead[part.group], self.wake)
                else:
                    part.zero_later(self._dead[part.group])
        if self.binds == "always":
            self.enforce(self._parts, optimizers)
        self._rest()

    def _rest(self) -> None:
        """Let the neurons of sleeping channels go to rest, whatever state they carry."""
        for name, group in self.groups.items():
            for neuron, channels in group.neurons.items():
                dead = channels[self._dead[name]].flatten()
                if len(dead):
                    self._silence(neuron, dead)

    @torch.no_grad()
    def enforce(
        self, names: Iterable[str] | None = None, optimizers: Iterable[Optimizer] = ()
    ) -> None:
        """Make parameters true to the masks: silent ones 0, sleeping ones as they were; slots 0."""
        optimizers = list(optimizers)
        for key in self._parts if names is None else names:
            for part in self._parts[key]:
                part.hold()
                for optimizer in optimizers:
                    part.clear_slots(optimizer)

    def zero_pruned_(self, key: str, values: Tensor) -> Tensor:
        """Set the rows of sleeping channels to 0, in place."""
        for part in self._parts[key]:
            part.follow_device()
            values.index_fill_(0, part.index, 0)
        return values

    def zero_pruned(self, key: str, values: Tensor) -> Tensor:
        """Return a tensor of a parameter's shape with 0 in the rows of sleeping channels."""
        return self.zero_pruned_(key, values.clone()) if self.holds(key) else values

    def zero_in_copy(self, key: str, values: Tensor) -> Tensor:
        """Return a copy's parameter with 0 in the rows of pruned channels, however masks bind."""
        for part in self._parts[key]:
            values = part.zeroed_in(values, self._dead[part.group])
        return values

    def holds(self, key: str) -> bool:
        """Tell whether a row of a parameter sleeps."""
        return any(len(part.index) for part in self._parts[key])

    @torch.no_grad()
    def burn(self) -> None:
        """Write zeros where channels are pruned: norms, sleeping filters, and what reads them."""
        if self.binds != "always":
            self._warn_of_revived()
        for parts in self._parts.values():
            for part in parts:
                part.clear(self._dead[part.group])
        for layer, mask in self.element_masks().items():
            self.weight(layer).masked_fill_(~mask, 0)

    def _warn_of_revived(self) -> None:
        """Say which channels training has brought back since the update that pruned them."""
        names = [name for name in self if self._revived(name)]
        if names:
            logger.warning(
                "channels of %s are pruned but have come back since the last update, for these "
                "masks bind at updates only: they are zeroed now, so the network computes "
                "something else than when it was trained last; finalize right after an update, or "
                'let masks bind in between too (SCA: enforce="always")',
                names,
            )

    def _revived(self, name: str) -> bool:
        found = (self._modules[name]._parameters.get(each) for each in ("weight", "bias"))
        pruned = self.pruned(name)
        return any(bool(p[pruned].any()) for p in found if p is not None)

    def _silent(self) -> dict[str, list[Part]]:
        return {k: parts for k, parts in self._parts.items() if parts[0].silent}

    def _targets(self) -> dict[str, tuple[str, str]]:
        return {key: (key.rpartition(".")[0], key.rpartition(".")[2]) for key in self._silent()}

    def removed_parameters(self) -> int:
        """Return how many parameters `compact` will take away: weights, biases, norms."""
        weights = sum(int((~mask).sum()) for mask in self.element_masks().values())
        vectors = [part for parts in self._parts.values() for part in parts]
        vectors = [part for part in vectors if part.parameter.ndim == 1]
        return weights + sum(part.rows[self._dead[part.group]].numel() for part in vectors)

    # ---- checkpoints ---------------------------------------------------------------------------

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over masks; parameters are left as they are, and what is asleep comes separately.

        Without any, saved before groups were known, all channels are kept.

        Raises:
            ValueError: as `check_state`; nothing is changed then.
        """
        self.check_state(state)
        for name, dead in self._dead.items():
            mask = state.get(name, torch.ones_like(dead))
            self._dead[name] = ~mask.to("cpu", torch.bool)
        for parts in self._parts.values():
            for part in parts:
                part.zeroed = None  # what an update before was still to write
                if self.binds == "always":
                    part.index = part._dead_rows(self._dead[part.group])
                    part.aside = part.parameter.detach()[part.index].clone()

    def asleep(self) -> dict[str, list[Tensor]]:
        """Return the values kept aside of silenced parameters, by name."""
        return {
            key: [
                part.aside.clone() if part.aside is not None else torch.empty(0, device="cpu")
                for part in parts
            ]
            for key, parts in self._silent().items()
        }

    def load_asleep(self, state: Mapping[str, list[Tensor]]) -> None:
        """Take over what `asleep` returned, after `load_state_dict`."""
        for key, values in state.items():
            for part, value in zip(self._parts[key], values, strict=True):
                if len(part.index):
                    part.aside = value.clone().to(part.parameter.device)
        self._rest()

    def settle(self) -> None:
        """Let filters sleep as they have been loaded."""
        for parts in self._parts.values():
            for part in parts:
                part.follow_device()
                if not part.silent and len(part.index):
                    part.aside = part.parameter.detach()[part.index].clone()
