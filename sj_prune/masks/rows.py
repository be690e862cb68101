"""Rows of a parameter that belong to channels, and what optimizers remember of pruned places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer


def fill_slots(optimizers: Iterable[Optimizer], parameter: Tensor, where: Tensor) -> None:
    """Set what optimizers remember of a parameter to 0.

    Args:
        optimizers: any.
        parameter: of theirs or not.
        where: a bool tensor of its shape, or row indices ``[k]``.
    """
    for optimizer in optimizers:
        # `state` is a defaultdict: reading a missing key would create it.
        for slot in optimizer.state.get(parameter, {}).values():
            if isinstance(slot, Tensor) and slot.shape == parameter.shape:
                mine = where.to(slot.device)
                if where.dtype == torch.bool:
                    slot.masked_fill_(mine, 0)
                elif len(mine):
                    slot.index_fill_(0, mine, 0)


@dataclass
class Rows:
    """Rows of one parameter that belong to the units of a group.

    Attributes:
        scope: name of the group.
        rows: the rows of every unit, ``[units, k]``.
        silent: 0 in the network where pruned; else the rows keep their value, bit by bit.
        index: rows that are pruned now.
        aside: their values, ``[len(index), *]``.
        zeroed: rows that are going to be 0 once, after the step in hand.
    """

    scope: str
    rows: Tensor
    silent: bool
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long, device="cpu"))
    aside: Tensor | None = None
    zeroed: Tensor | None = None

    def follow(self, device: torch.device) -> None:
        """Move what is kept to where the parameter is."""
        if self.index.device != device:
            self.index = self.index.to(device)
        if self.aside is not None and self.aside.device != device:
            self.aside = self.aside.to(device)

    def of(self, units: Tensor, device: torch.device) -> Tensor:
        """Return the rows of some units."""
        return self.rows[units].flatten().to(device)
