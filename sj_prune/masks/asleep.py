"""What a parameter is in the network where channels are pruned: silent, or asleep."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Part"]


@dataclass
class Part:
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
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long, device="cpu"))
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
