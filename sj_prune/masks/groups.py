"""Groups of coupled channels and which of their units are pruned: names, counts, scores."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sj_prune.masks.manager import MaskManager
from sj_prune.masks.multiples import allowed_counts
from sj_prune.masks.select import count

__all__ = ["ChannelGroup", "GroupMasks"]


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


class GroupMasks(MaskManager):
    """Which units of every group are pruned; what that means for parameters is `ChannelMasks`'.

    Args:
        min_keep: number of units that every group keeps at least.
        channels: what the number of channels that a group keeps is a multiple of.
    """

    def __init__(self, *, min_keep: int = 1, channels: int = 1) -> None:
        super().__init__({})
        self.min_keep = min_keep
        self.channels = channels
        self.groups: dict[str, ChannelGroup] = {}
        self._modules: dict[str, nn.Module] = {}
        self._dead: dict[str, Tensor] = {}
        self._rows: dict[str, list[tuple[str, Tensor]]] = {}

    def add(self, net: nn.Module, group: ChannelGroup) -> None:
        """Learn of a group of the network; all of its channels are kept."""
        self.groups[group.name] = group
        used = {*group.consumers, *group.norms, *group.producers}
        self._modules.update((name, net.get_submodule(name)) for name in sorted(used))
        self._dead[group.name] = torch.zeros(group.units, dtype=torch.bool, device="cpu")
        silent = {n: rows for n, rows in group.producers.items() if n in group.bare}
        for name, rows in (*group.norms.items(), *silent.items()):
            self._rows.setdefault(name, []).append((group.name, rows))

    # ---- masks by name -------------------------------------------------------------------------

    def weight(self, name: str) -> Tensor:
        """Return the parameter whose first dimension the mask `name` counts."""
        found = self._modules[name]._parameters["weight"]
        assert found is not None  # noqa: S101 (for the type checker)
        return found

    def pruned(self, name: str) -> Tensor:
        """Return the inverted mask ``[C]``, on the parameter's device."""
        dead = torch.zeros(self.weight(name).shape[0], dtype=torch.bool, device="cpu")
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
        return self.least(self.groups[scope])

    def least(self, group: ChannelGroup) -> int:
        """Return how many units of a group are kept at least, before it is added too."""
        least = min(self.min_keep, group.units)
        return allowed_counts(group.units, self._multiple(group), least)[0]

    def multiple(self, scope: str) -> int:
        """Return what the number of kept units of a group is a multiple of."""
        return self._multiple(self.groups[scope])

    def _multiple(self, group: ChannelGroup) -> int:
        """Return it in units, which may hold several channels of a layer (grouped convolutions)."""
        widths = [rows.shape[1] for rows in group.producers.values()]
        return math.lcm(*(self.channels // math.gcd(self.channels, width) for width in widths))

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
        found = torch.zeros(weight.shape[0], dtype=torch.bool, device="cpu")
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

    @property
    def layers(self) -> list[str]:
        """Names of the layers that make channels, each once."""
        return list({m: None for scope in self.groups for m in self.members(scope)})

    # ---- masks by layer ------------------------------------------------------------------------

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
