"""MaskManager: owns the masks of a network and keeps its weights and optimizers true to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sj_prune.masks.copies import apply_to_copy
from sj_prune.masks.fill import keep_where, write
from sj_prune.masks.held import Held, HeldElements, HeldRows
from sj_prune.masks.keys import Place
from sj_prune.masks.masks import Masks
from sj_prune.masks.scopes import Scope
from sj_prune.masks.select import count

logger = logging.getLogger("sj_prune")


class MaskManager(Masks):
    """Masks by name, copies, True = kept; and the parameters that are held true to them.

    The name is that of the weight's layer, or of the norm for whole channels (of the layer where no
    norm follows). Masks are no buffers (DDP would broadcast them at every forward); they enter a
    checkpoint through `state_dict` and follow the device of their weight.

    Args:
        net: the network.
        scopes: what is ranked: units and the layers that they span.
        held: what is held true to the masks, by parameter key.
        known: False: scopes are not known before a forward has told them.
    """

    def __init__(
        self,
        net: nn.Module,
        scopes: Iterable[Scope] = (),
        held: Mapping[str, Held] | None = None,
        *,
        known: bool = True,
    ) -> None:
        super().__init__(scopes)
        self._net = net
        self._held = dict(held or {})
        self._rows = {key: h for key, h in self._held.items() if isinstance(h, HeldRows)}
        self.known = known
        self._spread: dict[str, tuple[int, Tensor]] = {}

    def layer_mask(self, layer: str, alive: Mapping[str, Tensor] | None = None) -> Tensor:
        """As `Masks.layer_mask`; that of now is kept where the weight is, until masks change."""
        if alive:
            return super().layer_mask(layer, alive)
        changes, found = self._spread.get(layer, (-1, None))
        if found is None or changes != self.changes or found.device != self.weight(layer).device:
            found = super().layer_mask(layer)
            self._spread[layer] = self.changes, found
        return found

    def removed_parameters(self) -> int:
        """Return how many parameters of the network are pruned: weights, biases, norms."""
        weights = sum(count(~mask for mask in self.element_masks().values()))
        return weights + sum(held.removed(self.alive) for held in self._rows.values())

    def parameters(self) -> dict[str, Tensor]:
        """Return the held parameters by key."""
        return {key: held.place.parameter for key, held in self._held.items()}

    def gated(self) -> dict[str, Tensor]:
        """Return those whose gradient may be alive where they are pruned."""
        return {k: h.place.parameter for k, h in self._held.items() if h.hides_gradient}

    def weight(self, layer: str) -> Tensor:
        """Return the weight of a layer or norm."""
        return Place(self._net, layer).parameter

    def scored(self, layer: str, attribute: str = "weight") -> Tensor:
        """Return a parameter as a method scores it: all channels awake; read-only where not."""
        value = Place(self._net, layer, attribute).parameter.detach()
        held = self._rows.get(f"{layer}.{attribute}")
        return value if held is None else held.scored(value)

    def holds(self, key: str) -> bool:
        """Tell whether anything of a parameter is pruned."""
        return self._held[key].holds(self.alive)

    def zero_pruned(self, key: str, values: Tensor) -> Tensor:
        """Return a tensor of a parameter's shape with 0 where it is pruned."""
        return self._held[key].zeroed(self.alive, values)

    @torch.no_grad()
    def install(
        self,
        masks: Mapping[str, Tensor],
        optimizers: Iterable[Optimizer] = (),
        *,
        cleared: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Replace masks, and make weights and optimizers true to them.

        Masks that bind at updates only are written by the next `enforce`: at the end of the step.

        Args:
            masks: new masks by scope, True = kept.
            optimizers: whose state is zeroed where pruned.
            cleared: kept entries of single weights that start anew: they and their slots are 0.
        """
        optimizers = list(optimizers)
        for name, mask in masks.items():
            self._replace(name, mask)
        for held in self._held.values():
            held.turn(self.alive, cleared or {}, optimizers)
        self.enforce([key for key, h in self._held.items() if not h.at_updates], optimizers)

    @torch.no_grad()
    def keep_still(self, new: Mapping[str, Tensor]) -> None:
        """Let new units, by scope, move from the next step on: their gradient in this one is 0."""
        for held in self._held.values():
            if held.place.parameter.grad is not None:
                held.keep_still(new, held.place.parameter.grad)

    @torch.no_grad()
    def enforce(
        self, keys: Iterable[str] | None = None, optimizers: Iterable[Optimizer] = ()
    ) -> None:
        """Make parameters (all by default) and optimizer slots true to the masks."""
        optimizers = list(optimizers)
        held = [self._held[key] for key in (self._held if keys is None else keys)]
        write(one for each in held for one in each.holding(self.alive, optimizers))

    @torch.no_grad()
    def look(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Hold everything that is bound between updates; what binds at updates only stays."""
        self.enforce([k for k, h in self._held.items() if not h.at_updates], optimizers)

    @torch.no_grad()
    def written(self, *, few: bool = False) -> bool:
        """Tell whether somebody wrote where units are pruned; waits for the device.

        Args:
            few: look at a sample of every parameter.
        """
        held = [h for h in self._held.values() if not h.at_updates]
        found = [h.written(self.alive, few=few) for h in held]
        return any(count(found))

    def elements(self, keys: Iterable[str]) -> list[HeldElements]:
        """Return what holds those of these parameters whose single elements are pruned."""
        held = [self._held[key] for key in keys]
        return [each for each in held if isinstance(each, HeldElements)]

    def zeros(self) -> dict[str, Tensor]:
        """Return which units of each scope are 0 or silent in the network now."""
        found: dict[str, Tensor] = {}
        for held in self._held.values():
            for scope, zero in held.zeros().items():
                known = found.get(scope)
                found[scope] = zero if known is None else known & zero.to(known.device)
        return found

    @torch.no_grad()
    def mask_gradients(self, keys: Iterable[str]) -> None:
        """Set the gradients of pruned entries of the parameters `keys` to 0."""
        held = [(self._held[key], self._held[key].place.parameter.grad) for key in keys]
        found = [(each, grad) for each, grad in held if grad is not None]
        write(one for each, grad in found for one in each.zeroing(self.alive, grad))

    def adopt_zeros(self, keys: Iterable[str]) -> None:
        """Let the masks of single weights follow them: pruned is what equals 0 now."""
        for held in self.elements(keys):
            self._replace(held.scope, held.place.parameter.detach() != 0)

    @torch.no_grad()
    def burn(self) -> None:
        """Write zeros where units are pruned, for good: weights, norms, sleeping filters."""
        self._warn_of_revived()
        for held in self._rows.values():
            held.burn(self.alive)
        for layer, mask in self.element_masks().items():
            keep_where(self.weight(layer).data, mask)

    def _warn_of_revived(self) -> None:
        """Say which channels training has brought back since the update that pruned them."""
        loose = {held.place.module for held in self._rows.values() if held.at_updates}
        names = [name for name in self if name in loose and self._revived(name)]
        if names:
            logger.warning(
                "channels of %s are pruned but have come back since the last update, for these "
                "masks bind at updates only: they are zeroed now, so the network computes "
                "something else than when it was trained last; finalize right after an update, or "
                'let masks bind in between too (SCA: enforce="always")',
                names,
            )

    def _revived(self, name: str) -> bool:
        pruned = self.pruned(name)
        found = (h.place for h in self._rows.values() if h.place.module == name)
        return any(bool(place.parameter[pruned].any()) for place in found)

    def apply_(self, other_net: nn.Module) -> nn.Module:
        """Zero the pruned weights of another copy of the network, such as an EMA.

        Args:
            other_net: the same network, or a wrapper that holds it as ``module`` or ``net``
                (`torch.optim.swa_utils.AveragedModel`, DDP, a `PruningWrapper`).

        Returns:
            `other_net`.

        Raises:
            TypeError: if it is no module.
            ValueError: if a layer is missing there or has another shape; nothing is changed then.
        """
        silent = {key: held for key, held in self._held.items() if held.hides_gradient}
        return apply_to_copy(other_net, silent, self.alive)

    # ---- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the masks by scope, True = kept."""
        return {name: self.alive(name).clone() for name in self._scopes}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse masks of another network; none at all are those from before scopes were known.

        Raises:
            ValueError: naming the first key that is missing, unknown or of another shape.
        """
        if not state and self._rows:
            return
        for name in [*self._scopes, *state]:
            wanted = tuple(self._alive[name].shape) if name in self._scopes else None
            got = tuple(state[name].shape) if name in state else None
            if wanted != got:
                raise ValueError(
                    f"Expected a mask of shape {wanted} at {name!r} but the checkpoint has {got}: "
                    "it was saved from another architecture or with another skip="
                )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over masks; parameters are left as they are, and what is aside comes separately.

        Raises:
            ValueError: as `check_state`; nothing is changed then.
        """
        self.check_state(state)
        for name, scope in self._scopes.items():
            self._replace(name, state[name].to(torch.bool) if name in state else scope.whole())
        self.idle = frozenset(filter(self.whole, self.idle))
        for held in self._rows.values():
            held.reload(self.alive)

    def aside(self) -> dict[str, list[Tensor]]:
        """Return the values kept aside of silenced parameters, by key; none of single weights."""
        found = {key: held.aside() for key, held in self._rows.items()}
        return {key: values for key, values in found.items() if values is not None}

    def load_aside(self, state: Mapping[str, list[Tensor]]) -> None:
        """Take over what `aside` returned, after `load_state_dict`."""
        for key, values in state.items():
            self._rows[key].load_aside(values)

    def check_aside(self, masks: Mapping[str, Tensor], state: Mapping[str, list[Tensor]]) -> None:
        """Refuse values kept aside that do not belong to these masks.

        Raises:
            ValueError: naming the first key that does not fit.
        """
        mine = [key for key, held in self._rows.items() if masks and held.hides_gradient]
        for key in dict.fromkeys([*mine, *state]):
            held, values = self._rows.get(key), state.get(key, [])
            if held is None or not held.fits(masks, values):
                raise ValueError(
                    f"Expected values kept aside at {key!r} that fit the masks but the checkpoint "
                    f"has shapes {[tuple(value.shape) for value in values]}: it is damaged"
                )

    def settle(self) -> None:
        """Take over weights that have been loaded: filters sleep as they are now."""
        for held in self._rows.values():
            held.settle()
