"""What is written where units are pruned: into weights, gradients, and what optimizers remember."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from sj_prune.engines.fill import Write, fused, on_device

# Integers as wide as a value.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Values at a time: what a pass keeps on the side stays in the cache.
_PART = 1 << 18


def write(writes: Iterable[Write]) -> None:
    """Write zeros or rows in place: on a CUDA device all with one launch, where CuPy runs."""
    for values, where, source in fused(writes):
        if where.dtype == torch.bool:
            keep_where(values, where)
        elif source is None:
            values.index_fill_(0, where, 0)
        else:
            values.index_copy_(0, where, source)


def keep_where(values: Tensor, kept: Tensor) -> Tensor:
    """Set values to 0 where a bool tensor of their shape is False, in place, whatever they are.

    Their bits are joined with all ones or none: `masked_fill_` branches at every value, which takes
    three times as long on a CPU, and a product would keep what is not finite.
    """
    for part, mine in _parts(values.view(_BITS[values.element_size()]), kept):
        part.bitwise_and_(mine.view(torch.int8).neg())
    return values


def kept_of(values: Tensor, kept: Tensor) -> Tensor:
    """Return values with 0 where a bool tensor that broadcasts to them is False."""
    if not on_device(values) or values.requires_grad:
        return values.where(kept, 0)
    # One launch: `where` would make a tensor of that 0 first.
    return (values.view(_BITS[values.element_size()]) * kept).view(values.dtype)


def lift_where_not(values: Tensor, kept: Tensor) -> None:
    """Make 0 to 1 where a bool tensor of their shape is False, in place; no other bit changes."""
    for part, mine in _parts(values, kept):
        part.sub_(mine.view(torch.int8) - 1)


def _parts(values: Tensor, kept: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    if values.numel() <= _PART:
        return iter([(values, kept)])
    rows = max(1, _PART * len(values) // values.numel())
    return zip(values.split(rows), kept.split(rows), strict=True)


def slots(
    optimizers: Iterable[Optimizer], parameter: Tensor, names: Container[str] | None = None
) -> Iterator[Tensor]:
    """Yield what optimizers remember of every element of a parameter, of theirs or not.

    Args:
        optimizers: any.
        parameter: any.
        names: of the slots that are asked for; all by default.
    """
    for optimizer in optimizers:
        # `state` is a defaultdict: reading a missing key would create it.
        for name, slot in optimizer.state.get(parameter, {}).items():
            wanted = names is None or name in names
            if wanted and isinstance(slot, Tensor) and slot.shape == parameter.shape:
                yield slot
