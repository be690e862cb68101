"""Rows of a parameter that belong to channels."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


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

    def pruned(self, alive: Callable[[str], Tensor], device: torch.device | str = "cpu") -> Tensor:
        """Return the rows of pruned units."""
        return self.of(~alive(self.scope), device)

    def of(self, units: Tensor, device: torch.device | str) -> Tensor:
        """Return the rows of some units."""
        return self.rows[units].flatten().to(device)


@dataclass
class Awake:
    """Which rows of a parameter are not pruned, made anew when others are."""

    _pruned: list[Tensor] = field(default_factory=list)
    _mask: Tensor | None = None

    def mask(self, parts: Sequence[Rows], parameter: Tensor) -> Tensor:
        """Return it as a bool tensor that broadcasts to the parameter, where that is."""
        for part in parts:
            part.follow(parameter.device)
        pruned = [part.index for part in parts]
        same = len(pruned) == len(self._pruned) and all(map(operator.is_, pruned, self._pruned))
        if self._mask is None or not same:
            mask = torch.ones(len(parameter), dtype=torch.bool, device=parameter.device)
            for index in pruned:
                mask.index_fill_(0, index, False)
            self._pruned, self._mask = pruned, mask.view(-1, *[1] * (parameter.ndim - 1))
        return self._mask
