"""Zeros written where units are pruned: into weights, gradients, and what optimizers remember."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

# Integers as wide as a value.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Values at a time: what a pass keeps on the side stays in the cache.
_PART = 1 << 18


def keep_where(values: Tensor, kept: Tensor) -> Tensor:
    """Set values to 0 where a bool tensor of their shape is False, in place, whatever they are.

    Their bits are joined with all ones or none: `masked_fill_` branches at every value, which takes
    three times as long on a CPU, and a product would keep what is not finite.
    """
    rows = max(1, _PART * len(values) // max(1, values.numel()))
    bits = values.view(_BITS[values.element_size()])
    for part, mine in zip(bits.split(rows), kept.split(rows), strict=True):
        part.bitwise_and_(mine.view(torch.int8).neg())
    return values


def slots(optimizers: Iterable[Optimizer], parameter: Tensor) -> Iterator[Tensor]:
    """Yield what optimizers remember of every element of a parameter, of theirs or not."""
    for optimizer in optimizers:
        # `state` is a defaultdict: reading a missing key would create it.
        for slot in optimizer.state.get(parameter, {}).values():
            if isinstance(slot, Tensor) and slot.shape == parameter.shape:
                yield slot
