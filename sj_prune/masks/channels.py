"""ChannelMasks: whole channels kept silent, their filters asleep until they wake.

A pruned unit is silenced where its value is made: gamma and beta of its norms are 0 in the network,
or filter and bias of a layer that no norm follows. What was there is kept aside. The filter behind
a norm *sleeps*: it keeps its value, bit by bit, whatever momentum, weight decay or a penalty would
do to it. So the gradient of gamma stays alive, and a method can tell which channel to wake.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sj_prune.masks.manager import MaskManager
from sj_prune.masks.select import count

__all__ = ["ChannelGroup", "ChannelMasks"]

logger = logging.getLogger("sj_prune")


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


def _no_neurons(name: str, channels: Tensor) -> None:
    """Before groups are known no neuron is to go to rest; a function, so that it pickles."""


@dataclass
class _Part:
    """Rows of one parameter that belong to a group.

    Attributes:
        module: whose parameter it is.
        attribute: its name there.
        group: name of the group.
        rows: the rows of every unit, ``[units, k]``.
        silent: 0 in the network where pruned, its value kept aside; else it sleeps there.
        index: rows that are pruned now.
        aside: their values, ``[len(index), *]``.
        zeroed: rows that are going to be 0 once, after the step in hand.
    """

    module: nn.Module
    attribute: str
    group: str
    rows: Tensor
    silent: bool
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    aside: Tensor | None = None
    zeroed: Tensor | None = None

    @property
    def parameter(self) -> Tensor:
        """The parameter itself."""
        found = self.module._parameters[self.attribute]
        assert found is not None  # noqa: S101 (for the type checker)
        return found

    def follow_device(self) -> None:
        """Move what is kept to where the parameter is."""
        device = self.parameter.device
        if self.index.device != device:
            self.index = self.index.to(device)
        if self.aside is not None and self.aside.device != device:
            self.aside = self.aside.to(device)

    def awake(self, value: Tensor) -> Tensor:
        """Return the parameter's value with the silent rows as they were before."""
        self.follow_device()
        if not self.silent or self.aside is None or not len(self.index):
            return value
        return value.index_copy(0, self.index, self.aside.to(value.dtype))

    def _dead_rows(self, dead: Tensor) -> Tensor:
        return self.rows[dead].flatten().to(self.parameter.device)

    def turn(self, dead: Tensor, wake: str) -> None:
        """Take over which units are pruned: keep the new ones aside, give the others back."""
        parameter = self.parameter
        awake = self.awake(parameter.detach()).clone()
        index = self._dead_rows(dead)
        if self.silent and wake == "restore":
            parameter.copy_(awake)
        # With "zero" woken rows stay as the network has them; new ones are silenced by `hold`.
        self.index, self.aside = index, awake[index]

    def zeroed_in(self, values: Tensor, dead: Tensor) -> Tensor:
        """Return another copy of the parameter with zeros in the rows of pruned units."""
        return values.index_fill(0, self._dead_rows(dead).to(values.device), 0)

    def clear(self, dead: Tensor) -> None:
        """Write zeros into the rows of pruned units, and keep nothing aside."""
        self.parameter.index_fill_(0, self._dead_rows(dead), 0)
        self.index, self.aside = self.index[:0], None

    def zero_later(self, dead: Tensor) -> None:
        """Write zeros into the rows of pruned units at the next `hold`."""
        self.zeroed = self._dead_rows(dead)

    def hold(self) -> None:
        """Make the parameter true to the mask."""
        self.follow_device()
        if self.zeroed is not None:
            self.parameter.index_fill_(0, self.zeroed.to(self.parameter.device), 0)
            self.zeroed = None
        if not len(self.index):
            return
        if self.silent:
            self.parameter.index_fill_(0, self.index, 0)
        elif self.aside is not None:
            self.parameter.index_copy_(0, self.index, self.aside.to(self.parameter.dtype))

    def clear_slots(self, optimizer: Optimizer) -> None:
        """Set what an optimizer remembers of pruned rows to 0."""
        parameter = self.parameter
        # `state` is a defaultdict: reading a missing key would create it.
        for slot in optimizer.state.get(parameter, {}).values():
            if isinstance(slot, Tensor) and slot.shape == parameter.shape and len(self.index):
                slot.index_fill_(0, self.index.to(slot.device), 0)


class ChannelMasks(MaskManager):
    """Channel masks by norm name (layer name where no norm follows), ``[C]``, True = kept.

    Empty until `build` is told the groups. Units of coupled channels count once.

    Args:
        min_keep: number of units that every group keeps at least.
        wake: "restore" gives a waking channel the gamma and beta (or filter and bias) that it fell
            asleep with; "zero" starts them at 0.
        binds: "always"; or "update": masks bind at updates only, filters are zeroed too, and in
            between the optimizer moves everything, as SCA's released code does.
    """

    def __init__(self, *, min_keep: int = 1, wake: str = "restore", binds: str = "always") -> None:
        super().__init__({})
        self.min_keep = min_keep
        self.wake = wake
        self.binds = binds
        self.groups: dict[str, ChannelGroup] = {}
        self._modules: dict[str, nn.Module] = {}
        self._dead: dict[str, Tensor] = {}
        self._parts: dict[str, list[_Part]] = {}
        self._rows: dict[str, list[tuple[str, Tensor]]] = {}
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
            self.groups[group.name] = group
            self._modules.update((name, net.get_submodule(name)) for name in group.consumers)
            self._dead[group.name] = torch.zeros(group.units, dtype=torch.bool)
            for name, rows in group.norms.items():
                self._add(net, group, name, rows, silent=True)
            for name, rows in group.producers.items():
                self._add(net, group, name, rows, silent=name in group.bare)

    def _add(
        self, net: nn.Module, group: ChannelGroup, name: str, rows: Tensor, *, silent: bool
    ) -> None:
        self._modules[name] = module = net.get_submodule(name)
        for attribute in ("weight", "bias"):
            if module._parameters.get(attribute) is not None:
                part = _Part(module, attribute, group.name, rows, silent)
                self._parts.setdefault(f"{name}.{attribute}", []).append(part)
        if silent:
            self._rows.setdefault(name, []).append((group.name, rows))

    def bind_always(self) -> None:
        """Hold masks between updates too, from the next update on."""
        self.binds = "always"

    # ---- masks by name -------------------------------------------------------------------------

    def weight(self, name: str) -> Tensor:
        """Return the parameter whose first dimension the mask `name` counts."""
        found = self._modules[name]._parameters["weight"]
        assert found is not None  # noqa: S101 (for the type checker)
        return found

    def pruned(self, name: str) -> Tensor:
        """Return the inverted mask ``[C]``, on the parameter's device."""
        dead = torch.zeros(self.weight(name).shape[0], dtype=torch.bool)
        for group, rows in self._rows[name]:
            dead[rows[self._dead[group]].flatten()] = True
        return dead.to(self.weight(name).device)

    def __getitem__(self, name: str) -> Tensor:
        """Return a copy of one mask."""
        if name not in self._rows:
            raise KeyError(f"Expected a norm with a mask among {list(self)} but got {name!r}")
        return ~self.pruned(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def kept(self) -> dict[str, int]:
        """Return the number of kept channels of each norm."""
        return {name: int(self[name].sum()) for name in self}

    def sparsity(self) -> dict[str, float]:
        """Return the fraction pruned of each norm's channels; ``"total"`` counts a unit once."""
        result = {name: float(self.pruned(name).double().mean()) for name in self}
        kept, units = sum(self.kept_units().values()), sum(self.units().values())
        result["total"] = 1.0 - kept / units if units else 0.0
        return result

    # ---- what is ranked ------------------------------------------------------------------------

    @property
    def scopes(self) -> list[str]:
        """Names of the groups."""
        return list(self.groups)

    def alive(self, scope: str) -> Tensor:
        """Return which units of a group are kept, ``[units]``."""
        return ~self._dead[scope]

    def floor(self, scope: str) -> int:
        """Return how many units of a group are kept at least."""
        return min(self.min_keep, self.groups[scope].units)

    def units(self) -> dict[str, int]:
        """Return the number of units of each group."""
        return {name: group.units for name, group in self.groups.items()}

    def kept_units(self) -> dict[str, int]:
        """Return the number of kept units of each group."""
        kept = count([~dead for dead in self._dead.values()])
        return dict(zip(self._dead, kept, strict=True))

    def pruned_units(self) -> dict[str, list[int]]:
        """Return which units of each group are pruned."""
        return {name: dead.nonzero().flatten().tolist() for name, dead in self._dead.items()}

    def remember(self, layer: str, scores: Tensor, state: dict[str, Tensor]) -> None:
        """Keep the scores of a layer's awake channels in ``state["awake"]``."""
        before = state.get("awake", torch.zeros_like(scores))
        mask = self.layer_mask(layer).to(scores.device)
        state["awake"] = torch.where(mask, scores, before.to(scores))

    def members(self, scope: str) -> tuple[str, ...]:
        """Return the layers that make a group's channels."""
        return tuple(self.groups[scope].producers)

    def layer_mask(self, layer: str) -> Tensor:
        """Return which output channels of a layer are kept, ``[C_out]``."""
        return ~self.layer_units(layer, self._dead)

    def layer_units(self, layer: str, units: Mapping[str, Tensor]) -> Tensor:
        """Return what is true of groups' units, for the output channels of a layer, ``[C_out]``."""
        weight = self.weight(layer)
        found = torch.zeros(weight.shape[0], dtype=torch.bool)
        for group, rows in self._producing(layer):
            found[rows[units[group].cpu()].flatten()] = True
        return found.to(weight.device)

    def _producing(self, layer: str) -> list[tuple[str, Tensor]]:
        found = ((name, group.producers.get(layer)) for name, group in self.groups.items())
        return [(name, rows) for name, rows in found if rows is not None]

    def combine(self, scope: str, scores: Mapping[str, Tensor], how: str) -> Tensor:
        """Return ``[units]`` from the ``[C_out]`` scores of a group's layers, in float64.

        Args:
            scope: name of the group.
            scores: of its layers, at least one.
            how: "relative" takes the mean over layers of the score divided by its layer's mean, in
                the scale of the layers' means (a single layer keeps its scores); "mean" and "sum"
                take those.
        """
        rows = self.groups[scope].producers
        found = [scores[m].double().cpu()[rows[m]].mean(1) for m in scores]
        stacked = torch.stack(found)
        if how == "sum":
            return stacked.sum(0)
        if how == "relative" and len(found) > 1:
            means = stacked.mean(1, keepdim=True)
            return (stacked / means.where(means != 0, 1)).mean(0) * means.mean()
        return stacked.mean(0)

    # ---- what is held --------------------------------------------------------------------------

    def parameters(self) -> dict[str, Tensor]:
        """Return the held parameters by name."""
        return {key: parts[0].parameter for key, parts in self._parts.items()}

    @property
    def layers(self) -> list[str]:
        """Names of the layers that make channels, each once."""
        return list({m: None for scope in self.groups for m in self.members(scope)})

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

    def _silent(self) -> dict[str, list[_Part]]:
        return {k: parts for k, parts in self._parts.items() if parts[0].silent}

    def _targets(self) -> dict[str, tuple[str, str]]:
        return {key: (key.rpartition(".")[0], key.rpartition(".")[2]) for key in self._silent()}

    def _whole(self, masks: dict[str, Tensor], layer: str) -> Tensor:
        """Return the mask of a layer's weights, all kept if it is new."""
        if layer not in masks:
            weight = self.weight(layer)
            masks[layer] = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        return masks[layer]

    def element_masks(self) -> dict[str, Tensor]:
        """Return which weights of each layer remain, by layer name, in the weight's shape.

        Gone are the filters of pruned channels, and the inputs that read them.
        """
        masks: dict[str, Tensor] = {}
        for name, group in self.groups.items():
            dead = self._dead[name]
            for layer, rows in group.producers.items():
                self._whole(masks, layer)[rows[dead].flatten()] = False
            for layer, columns in group.consumers.items():
                mask = self._whole(masks, layer)
                width = mask.shape[1]
                # A depthwise filter went with its output; other groups lose the same columns each.
                if width > 1 or getattr(self._modules[layer], "groups", 1) == 1:
                    mask[:, columns[dead].flatten() % width] = False
        return masks

    def widths(self) -> dict[str, tuple[int, int]]:
        """Return output channels and how many of them are kept, by layer."""
        masks = {layer: self.layer_mask(layer) for layer in self.layers}
        kept = count(list(masks.values()))
        return {name: (len(m), n) for (name, m), n in zip(masks.items(), kept, strict=True)}

    def removed_parameters(self) -> int:
        """Return how many parameters `compact` will take away: weights, biases, norms."""
        weights = sum(int((~mask).sum()) for mask in self.element_masks().values())
        vectors = [part for parts in self._parts.values() for part in parts]
        vectors = [part for part in vectors if part.parameter.ndim == 1]
        return weights + sum(part.rows[self._dead[part.group]].numel() for part in vectors)

    # ---- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Return the unit masks by group, True = kept."""
        return {name: ~dead for name, dead in self._dead.items()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse masks of another network; none at all are those from before groups were known.

        Raises:
            ValueError: naming the first group that is missing, unknown or of another size.
        """
        if not state:
            return
        for name in [*self._dead, *state]:
            wanted = tuple(self._dead[name].shape) if name in self._dead else None
            got = tuple(state[name].shape) if name in state else None
            if wanted != got:
                raise ValueError(
                    f"Expected a mask of shape {wanted} for the group {name!r} but the checkpoint "
                    f"has {got}: it was saved from another architecture or with another skip="
                )

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
                part.aside.clone() if part.aside is not None else torch.empty(0) for part in parts
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
