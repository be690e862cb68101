"""MaskManager: owns the masks of a network and keeps its weights and optimizers true to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sj_prune.masks.select import count
from sj_prune.masks.structure import Layer

__all__ = ["MaskManager"]


class MaskManager(Mapping[str, Tensor]):
    """Element masks by layer name: a read-only mapping of copies, True = kept.

    Masks are no buffers (DDP would broadcast them at every forward); they enter a checkpoint
    through `state_dict` and follow the device of their weight.

    Args:
        layers: the modules whose ``weight`` is masked, by name.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._layers = dict(layers)
        # Stored inverted: what is applied at every step is "fill where pruned".
        self._pruned = {
            name: torch.zeros_like(self.weight(name), dtype=torch.bool) for name in self._layers
        }

    # ---- what is ranked ------------------------------------------------------------------------

    @property
    def scopes(self) -> list[str]:
        """Names of what is ranked: here layers, whose units are their weights."""
        return list(self)

    def alive(self, scope: str) -> Tensor:
        """Return which units are kept."""
        return self[scope]

    def floor(self, scope: str) -> int:
        """Return how many units are kept at least."""
        return 1

    def multiple(self, scope: str) -> int:
        """Return what the number of kept units is a multiple of: any, of single weights."""
        return 1

    def units(self) -> dict[str, int]:
        """Return the number of units of each scope."""
        return {name: self._pruned[name].numel() for name in self}

    def kept_units(self) -> dict[str, int]:
        """Return the number of kept units of each scope."""
        return self.kept()

    def pruned_units(self) -> dict[str, list[int]]:
        """Return which units are pruned, where few enough to be listed: not single weights."""
        return {}

    def remember(self, layer: str, scores: Tensor, state: dict[str, Tensor]) -> None:
        """Keep what a layer's channels scored while awake; single weights have nothing to keep."""

    def members(self, scope: str) -> tuple[str, ...]:
        """Return the layers whose scores make those of a scope."""
        return (scope,)

    def layer_mask(self, layer: str) -> Tensor:
        """Return what a method sees as the mask of a layer."""
        return self[layer]

    def layer_units(self, layer: str, units: Mapping[str, Tensor]) -> Tensor:
        """Return what is true of a scope's units, for a layer, in the shape of its mask."""
        return units[layer]

    def combine(self, scope: str, scores: Mapping[str, Tensor], how: str) -> Tensor:
        """Return the scores of a scope's units from those of its members."""
        return scores[scope]

    # ---- what is held --------------------------------------------------------------------------

    @property
    def layers(self) -> list[str]:
        """Names of the layers that a method sees."""
        return list(self)

    def parameters(self) -> dict[str, Tensor]:
        """Return the masked parameters by key."""
        return {name: self.weight(name) for name in self}

    def gated(self) -> dict[str, Tensor]:
        """Return those whose gradient may be alive where they are pruned."""
        return self.parameters()

    def scored_weight(self, layer: str) -> Tensor:
        """Return a layer's weight as a method scores it."""
        return self.weight(layer).detach()

    def scored_bias(self, layer: str) -> Tensor:
        """Return a layer's bias as a method scores it."""
        return self._layers[layer].bias.detach()  # type: ignore[union-attr]

    def holds(self, key: str) -> bool:
        """Tell whether anything of a parameter is pruned."""
        return bool(self.pruned(key).any())

    def zero_pruned_(self, key: str, values: Tensor) -> Tensor:
        """Set pruned entries of a tensor of a parameter's shape to 0, in place."""
        return values.masked_fill_(self.pruned(key), 0)

    def zero_pruned(self, key: str, values: Tensor) -> Tensor:
        """Return a tensor of a parameter's shape with 0 at pruned entries."""
        return values.masked_fill(self.pruned(key), 0)

    def zero_in_copy(self, key: str, values: Tensor) -> Tensor:
        """Return the parameter of another copy of the network with 0 at pruned entries."""
        return values.masked_fill(self.pruned(key).to(values.device), 0)

    def element_masks(self) -> dict[str, Tensor]:
        """Return which weights of each layer remain, by layer name, in the weight's shape."""
        return self.masks

    def widths(self) -> dict[str, tuple[int, int]]:
        """Return output channels and how many of them are kept, by layer; none for weights."""
        return {}

    def removed_parameters(self) -> int:
        """Return how many parameters of the network are pruned."""
        return sum(self.units().values()) - sum(self.kept_units().values())

    def bind_always(self) -> None:
        """Hold masks between updates too: those of single weights are held anyway."""

    def burn(self) -> None:
        """Write zeros where weights are pruned."""
        self.enforce(self, ())

    def weight(self, name: str) -> Tensor:
        """Return the weight parameter that the mask `name` belongs to."""
        return self._layers[name].weight

    def pruned(self, name: str) -> Tensor:
        """Return the inverted mask itself (no copy), on the weight's device."""
        mask, device = self._pruned[name], self.weight(name).device
        if mask.device != device:
            mask = self._pruned[name] = mask.to(device)
        return mask

    def __getitem__(self, name: str) -> Tensor:
        """Return a copy of one mask."""
        if name not in self._pruned:
            raise KeyError(f"Expected a pruned layer among {list(self._pruned)} but got {name!r}")
        return ~self.pruned(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pruned)

    def __len__(self) -> int:
        return len(self._pruned)

    @property
    def masks(self) -> dict[str, Tensor]:
        """All masks by name, copies."""
        return {name: self[name] for name in self}

    def kept(self) -> dict[str, int]:
        """Return the number of kept weights of each layer."""
        pruned = count([self.pruned(name) for name in self])
        return {n: self._pruned[n].numel() - p for n, p in zip(self, pruned, strict=True)}

    def sparsity(self) -> dict[str, float]:
        """Return the fraction pruned of each layer, and of all under ``"total"``."""
        kept = self.kept()
        sizes = {name: self._pruned[name].numel() for name in self}
        result = {name: 1.0 - kept[name] / sizes[name] for name in self}
        result["total"] = 1.0 - sum(kept.values()) / sum(sizes.values())
        return result

    @torch.no_grad()
    def install(
        self,
        masks: Mapping[str, Tensor],
        optimizers: Iterable[Optimizer] = (),
        *,
        cleared: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Replace masks, zero the pruned weights and the optimizers' slots there.

        Args:
            masks: new masks by name, True = kept.
            optimizers: whose state for these weights is zeroed where pruned.
            cleared: kept entries that start anew: weight and slots are set to 0 there too.
        """
        for name, mask in masks.items():
            weight = self.weight(name)
            self._pruned[name] = ~mask.to(weight.device)
            if cleared is not None:
                self._fill(weight, cleared[name].to(weight.device), optimizers)
        self.enforce(masks, optimizers)

    @torch.no_grad()
    def enforce(self, names: Iterable[str], optimizers: Iterable[Optimizer]) -> None:
        """Set weights and optimizer slots of the layers `names` to 0 where pruned."""
        optimizers = list(optimizers)
        for name in names:
            self._fill(self.weight(name), self.pruned(name), optimizers)

    @staticmethod
    def _fill(weight: Tensor, where: Tensor, optimizers: Iterable[Optimizer]) -> None:
        weight.masked_fill_(where, 0)
        for optimizer in optimizers:
            # `state` is a defaultdict: reading a missing key would create it.
            for slot in optimizer.state.get(weight, {}).values():
                if isinstance(slot, Tensor) and slot.shape == weight.shape:
                    slot.masked_fill_(where.to(slot.device), 0)

    @torch.no_grad()
    def mask_gradients(self, names: Iterable[str]) -> None:
        """Set the gradients of pruned entries of the parameters `names` to 0."""
        parameters = self.parameters()
        for name in names:
            grad = parameters[name].grad
            if grad is not None:
                self.zero_pruned_(name, grad)

    def adopt_zeros(self, names: Iterable[str]) -> None:
        """Let the masks follow the weights: pruned is what equals 0 now."""
        for name in names:
            self._pruned[name] = self.weight(name).detach() == 0

    @torch.no_grad()
    def apply_(self, other_net: nn.Module) -> nn.Module:
        """Zero the pruned weights of another copy of the network, such as an EMA.

        Args:
            other_net: the same network, or a wrapper that holds it as ``module`` or ``net``
                (`torch.optim.swa_utils.AveragedModel`, DDP, a `PruningWrapper`).

        Returns:
            `other_net`.

        Raises:
            ValueError: if a layer is missing there or has another shape; nothing is changed then.
        """
        if not isinstance(other_net, nn.Module):
            raise TypeError(
                f"Expected another copy of the network but got {type(other_net).__name__}"
            )
        targets = self._targets()
        net = _unwrap(other_net, [name for name, _ in targets.values()])
        modules, parameters = dict(net.named_modules()), self.parameters()
        for key, (name, attribute) in targets.items():
            wanted = tuple(parameters[key].shape)
            found = getattr(modules.get(name), attribute, None)
            shape = None if found is None else tuple(found.shape)
            if shape != wanted:
                raise ValueError(
                    f"Expected a {attribute} of shape {wanted} at {name!r} in the other network "
                    f"but got {shape}: apply masks to a copy of the same network"
                )
        for key, (name, attribute) in targets.items():
            parameter = getattr(modules[name], attribute)
            parameter.copy_(self.zero_in_copy(key, parameter))
        return other_net

    def _targets(self) -> dict[str, tuple[str, str]]:
        """Return key -> module and attribute of the parameters that are 0 where pruned."""
        return {name: (name, "weight") for name in self}

    def asleep(self) -> dict[str, list[Tensor]]:
        """Return values kept aside, by key: none, for pruned weights are gone."""
        return {}

    def load_asleep(self, state: Mapping[str, list[Tensor]]) -> None:
        """Take over what `asleep` returned."""

    def settle(self) -> None:
        """Take over weights that have been loaded: nothing to do, for pruned weights are gone."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the masks, True = kept."""
        return self.masks

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse masks of another network.

        Raises:
            ValueError: naming the first key that is missing, unknown or of another shape.
        """
        for name in [*self, *state]:
            wanted = tuple(self._pruned[name].shape) if name in self._pruned else None
            got = tuple(state[name].shape) if name in state else None
            if wanted != got:
                raise ValueError(
                    f"Expected a mask of shape {wanted} at {name!r} but the checkpoint has {got}: "
                    "it was saved from another architecture or with another skip="
                )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over masks; weights are left as they are.

        Raises:
            ValueError: as `check_state`; nothing is changed then.
        """
        self.check_state(state)
        for name, mask in state.items():
            self._pruned[name] = ~mask.to(self.weight(name).device, dtype=torch.bool)


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
