"""What a parameter is in the network where units are pruned: 0, silent, or asleep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from sj_prune.engines.fill import Write
from sj_prune.masks.fill import kept_of, slots, write
from sj_prune.masks.keys import Place
from sj_prune.masks.rows import Awake, Rows
from sj_prune.masks.select import sampled

# Rows that are looked at where a sample has to do.
_ROWS = 16

#: returns which units of a scope are kept, by its name
Alive: TypeAlias = Callable[[str], Tensor]


@dataclass
class HeldElements:
    """A weight whose pruned elements are 0, with its slots.

    Attributes:
        place: of the weight.
        scope: name of the scope whose units its elements are.
    """

    place: Place
    scope: str
    _sample: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)

    at_updates = False
    hides_gradient = True

    def turn(
        self, alive: Alive, cleared: Mapping[str, Tensor], optimizers: Sequence[Optimizer]
    ) -> None:
        """Start elements that are cleared, by scope, at 0 with fresh slots."""
        self._sample = None
        if self.scope in cleared:
            write(self._zeros(~cleared[self.scope].to(self.place.parameter.device), optimizers))

    def keep_still(self, new: Mapping[str, Tensor], grad: Tensor) -> None:
        """Set the gradient of new elements, by scope, to 0."""
        if self.scope in new:
            grad.masked_fill_(new[self.scope].to(grad.device), 0)

    def holding(self, alive: Alive, optimizers: Sequence[Optimizer]) -> Iterator[Write]:
        """Yield what sets pruned elements and their slots to 0."""
        return self._zeros(alive(self.scope), optimizers)

    def _zeros(self, kept: Tensor, optimizers: Sequence[Optimizer]) -> Iterator[Write]:
        weight = self.place.parameter
        yield weight.data, kept, None  # a pending backward does not mind zeros held at 0
        for slot in slots(optimizers, weight):
            yield slot, kept.to(slot.device), None

    def written(self, alive: Alive, *, few: bool) -> Tensor:
        """Return whether a pruned element is not 0, on the device; of a sample, if `few`."""
        weight = self.place.parameter.detach()
        if few:
            return weight.take(self._places(alive)).any()
        return torch.gt(weight != 0, alive(self.scope)).any()

    def touched(self, optimizers: Iterable[Optimizer]) -> list[Tensor]:
        """Return what steps write: the weight and its slots."""
        weight = self.place.parameter
        return [weight, *slots(optimizers, weight)]

    def sample(self, alive: Alive, optimizers: Iterable[Optimizer]) -> list[Tensor]:
        """Return some pruned elements of the weight and its slots; of those on the CPU."""
        found = (t.detach() for t in self.touched(optimizers) if t.device.type == "cpu")
        return [tensor.take(self._places(alive)[::4]) for tensor in found]

    def _places(self, alive: Alive) -> Tensor:
        """Return where to look for what was written, for as long as the mask stays."""
        kept = alive(self.scope)
        if self._sample is None or self._sample[0] is not kept:
            self._sample = (kept, sampled(kept))
        return self._sample[1]

    def zeros(self) -> dict[str, Tensor]:
        """Return which units are 0, by scope."""
        return {self.scope: self.place.parameter.detach() == 0}

    def holds(self, alive: Alive) -> bool:
        """Tell whether any element is pruned."""
        return not bool(alive(self.scope).all())

    def zeroing(self, alive: Alive, values: Tensor) -> Iterator[Write]:
        """Yield what sets values to 0 at pruned elements."""
        yield values, alive(self.scope), None

    def zeroed(self, alive: Alive, values: Tensor) -> Tensor:
        """Return values with 0 at pruned elements."""
        return kept_of(values, alive(self.scope))

    def zero_in_copy(self, alive: Alive, values: Tensor) -> Tensor:
        """Return a copy's weight with 0 at pruned elements."""
        return values.where(alive(self.scope).to(values.device), 0)


@dataclass
class HeldRows:
    """A parameter of channels: silent where pruned, its value kept aside; or it sleeps there.

    Attributes:
        place: of the parameter.
        wake: "restore" or "zero".
        at_updates: pruned rows are zeroed once, at an update, and move in between.
        parts: rows of every group.
    """

    place: Place
    wake: str = "restore"
    at_updates: bool = False
    parts: list[Rows] = field(default_factory=list)
    _awake: Awake = field(default_factory=Awake, repr=False, compare=False)

    @property
    def hides_gradient(self) -> bool:
        """Behind a silenced parameter no gradient reaches a sleeping filter."""
        return self.parts[0].silent

    def scored(self, value: Tensor) -> Tensor:
        """Return the value with the silent rows as they were before."""
        for part in self.parts:
            part.follow(value.device)
            if part.silent and part.aside is not None and len(part.index):
                value = value.index_copy(0, part.index, part.aside.to(value.dtype))
        return value

    def turn(
        self, alive: Alive, cleared: Mapping[str, Tensor], optimizers: Sequence[Optimizer]
    ) -> None:
        """Keep newly pruned rows aside, give the others back.

        What is regrown in the update that it is dropped in never slept: nothing is cleared.
        """
        for part in self.parts:
            index = part.pruned(alive, self.place.parameter.device)
            if self.at_updates:
                part.zeroed = index
            else:
                self._turn(part, index)

    def _turn(self, part: Rows, index: Tensor) -> None:
        parameter = self.place.parameter
        part.follow(parameter.device)
        awake = parameter.detach().clone()
        if part.silent and part.aside is not None and len(part.index):
            awake.index_copy_(0, part.index, part.aside.to(awake.dtype))
            if self.wake == "restore":
                parameter.copy_(awake)
        # With "zero" woken rows stay as the network has them; new ones are silenced by `hold`.
        part.index, part.aside = index, awake[index]

    def keep_still(self, new: Mapping[str, Tensor], grad: Tensor) -> None:
        """Set the gradient of new rows, by scope, to 0, but where pruned ones move as well."""
        for part in self.parts:
            if part.scope in new and not self.at_updates:
                grad.index_fill_(0, part.of(new[part.scope], grad.device), 0)

    def holding(self, alive: Alive, optimizers: Sequence[Optimizer]) -> Iterator[Write]:
        """Yield what makes rows silent, or as they were when they fell asleep; their slots 0."""
        place = self.place.parameter
        parameter = place.data  # a pending backward does not mind
        for part in self.parts:
            part.follow(parameter.device)
            if part.zeroed is not None:
                yield parameter, part.zeroed.to(parameter.device), None
                part.zeroed = None
            if not len(part.index):
                continue
            if part.silent:
                yield parameter, part.index, None
            elif part.aside is not None:
                yield parameter, part.index, part.aside.to(parameter.dtype)
            for slot in slots(optimizers, place):
                yield slot, part.index.to(slot.device), None

    def written(self, alive: Alive, *, few: bool) -> Tensor:
        """Return whether a row is neither silent nor asleep; of a sample, if `few`."""
        parameter = self.place.parameter.detach()
        found = torch.zeros((), dtype=torch.bool, device=parameter.device)
        for part in self.parts:
            part.follow(parameter.device)
            step = max(1, len(part.index) // _ROWS) if few else 1
            rows = parameter[part.index[::step]]
            if part.silent:
                found = found | rows.any()
            elif part.aside is not None:
                found = found | (rows != part.aside[::step].to(rows.dtype)).any()
        return found

    def zeros(self) -> dict[str, Tensor]:
        """Return which units are silent already, by group."""
        parameter = self.place.parameter.detach()
        return {
            part.scope: (parameter[part.rows.to(parameter.device)] == 0).flatten(1).all(1)
            for part in self.parts
            if part.silent
        }

    def holds(self, alive: Alive) -> bool:
        """Tell whether a row sleeps."""
        return any(len(part.index) for part in self.parts)

    def zeroing(self, alive: Alive, values: Tensor) -> Iterator[Write]:
        """Yield what sets the rows of sleeping channels to 0."""
        for part in self.parts:
            part.follow(self.place.parameter.device)
            yield values, part.index, None

    def zeroed(self, alive: Alive, values: Tensor) -> Tensor:
        """Return values with 0 in the rows of sleeping channels; themselves where none sleeps."""
        if not self.holds(alive):
            return values
        return kept_of(values, self._awake.mask(self.parts, self.place.parameter))

    def zero_in_copy(self, alive: Alive, values: Tensor) -> Tensor:
        """Return a copy's parameter with 0 in the rows of pruned channels, however masks bind."""
        for part in self.parts:
            values = values.index_fill(0, part.pruned(alive, values.device), 0)
        return values

    def removed(self, alive: Alive) -> int:
        """Return how many entries of a norm's or bias' vector are pruned."""
        if self.place.parameter.ndim != 1:
            return 0
        return sum(part.pruned(alive).numel() for part in self.parts)

    def aside(self) -> list[Tensor] | None:
        """Return the values kept aside of a silenced parameter, by group."""
        if not self.hides_gradient:
            return None
        empty = torch.empty(0, device="cpu")
        return [empty if part.aside is None else part.aside.clone() for part in self.parts]

    def load_aside(self, values: Sequence[Tensor]) -> None:
        """Take over what `aside` returned, after `reload`."""
        for part, value in zip(self.parts, values, strict=True):
            if len(part.index):
                part.aside = value.clone().to(self.place.parameter.device)

    def fits(self, masks: Mapping[str, Tensor], values: Sequence[Tensor]) -> bool:
        """Tell whether `load_aside` can take values over once these masks are loaded."""
        parameter = self.place.parameter
        if len(values) != len(self.parts):
            return False
        for part, value in zip(self.parts, values, strict=True):
            mask = masks.get(part.scope)
            rows = 0 if mask is None else part.rows[~mask.cpu().bool()].numel()
            if not rows or self.at_updates:
                continue
            if value.shape != (rows, *parameter.shape[1:]) or value.dtype != parameter.dtype:
                return False
            if value.isnan().any():
                return False
        return True

    def reload(self, alive: Alive) -> None:
        """Follow masks that have been loaded; what an update before was still to write is void."""
        parameter = self.place.parameter
        for part in self.parts:
            part.zeroed = None
            if not self.at_updates:
                part.index = part.pruned(alive, parameter.device)
                part.aside = parameter.detach()[part.index].clone()

    def settle(self) -> None:
        """Let filters sleep as they have been loaded."""
        parameter = self.place.parameter
        for part in self.parts:
            part.follow(parameter.device)
            if not part.silent and len(part.index):
                part.aside = parameter.detach()[part.index].clone()

    def burn(self, alive: Alive) -> None:
        """Write zeros into the rows of pruned units, and keep nothing aside."""
        parameter = self.place.parameter
        for part in self.parts:
            parameter.index_fill_(0, part.pruned(alive, parameter.device), 0)
            part.index, part.aside = part.index[:0], None


#: a parameter that masks hold
Held: TypeAlias = HeldElements | HeldRows
