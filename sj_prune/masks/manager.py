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
        """Set the gradients of pruned entries of the layers `names` to 0."""
        for name in names:
            grad = self.weight(name).grad
            if grad is not None:
                grad.masked_fill_(self.pruned(name), 0)

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
        net = _unwrap(other_net, self)
        modules = dict(net.named_modules())
        for name in self:
            weight = getattr(modules.get(name), "weight", None)
            shape = None if weight is None else tuple(weight.shape)
            if shape != tuple(self._pruned[name].shape):
                raise ValueError(
                    f"Expected a weight of shape {tuple(self._pruned[name].shape)} at {name!r} in "
                    f"the other network but got {shape}: apply masks to a copy of the same network"
                )
        for name in self:
            weight = modules[name].weight
            assert isinstance(weight, Tensor)  # noqa: S101 (for the type checker)
            weight.masked_fill_(self._pruned[name].to(weight.device), 0)
        return other_net

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
