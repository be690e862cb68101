"""The weights that a neuron may take and an input may send, by score, no more and no fewer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sj_prune.chips.mapping import Mapped
from sj_prune.export.synapses import reach


def few_enough(
    mask: Tensor, scores: Tensor, layers: Sequence[Mapped], fan_in: int | None, fan_out: int | None
) -> Tensor:
    """Return what is left of a mask under limits of fans: the highest scores that they admit.

    A limit holds for the places of a kernel that meet in one neuron, or at one input: under a
    stride or on a small map these are some of them. Where two limits meet, weights are taken in
    rounds: each row its best as far as both have room, until nothing can be added.

    Args:
        mask: ``[C_out, C_in / groups, kH, kW]``, True = may be kept.
        scores: the same shape, highest first.
        layers: whose weight it is: one, or several that share it.
        fan_in: most synapses of one neuron, or None.
        fan_out: most that leave one input, or None.
    """
    order = scores.flatten().double().argsort(descending=True, stable=True)
    rows = [rows for layer in layers for rows in _rows(layer, mask, fan_in, fan_out)]
    limits = [_Limit(each.flatten(), most, order) for each, most in rows]
    kept, left = torch.zeros_like(mask).flatten(), mask.flatten()
    while bool(left.any()):
        new = left
        for limit in limits:
            new = limit.admitted(new)
        kept, left = kept | new, left & ~new
        for limit in limits:
            left = limit.taken(new, left)
        for limit in limits:
            limit.only(left)
    return kept.view_as(mask)


def _rows(
    layer: Mapped, mask: Tensor, fan_in: int | None, fan_out: int | None
) -> Iterator[tuple[Tensor, int]]:
    """Yield which weights count together, by number, -1 for none, and how many may be kept."""
    outputs, inner = mask.shape[:2]
    output = torch.arange(outputs).view(-1, 1, 1, 1)
    group = output // (outputs // layer.groups)
    source = group * inner + torch.arange(inner).view(1, -1, 1, 1)
    for axis, number, most in ((1, output, fan_in), (0, source, fan_out)):
        if most is not None:
            for places in _places(layer, axis):
                yield torch.where(places, number.expand(mask.shape), -1), most


def _places(layer: Mapped, axis: int) -> Iterator[Tensor]:
    """Yield the largest sets of kernel places that meet in one neuron (1) or at one input (0)."""
    shapes = (layer.plan.values[i].shape for i in (layer.layer.input, layer.layer.output))
    sizes = zip(*(shape[1:] for shape in shapes), strict=True)
    height, width = (
        _largest(np.any(reach(layer.layer, dim, *size), axis)) for dim, size in enumerate(sizes)
    )
    for y in height:
        for x in width:
            yield torch.from_numpy(y[:, None] & x)


def _largest(sets: np.ndarray) -> list[np.ndarray]:
    """Return the rows that lie in no other row."""
    unique = np.unique(sets, axis=0)
    return [a for a in unique if (unique >= a).all(1).sum() == 1]


class _Limit:
    """At most so many of each row.

    Args:
        rows: by weight, -1 for those that are in none.
        most: of a row.
        order: of the weights, the highest score first.
    """

    def __init__(self, rows: Tensor, most: int, order: Tensor) -> None:
        order = order[rows[order] >= 0]
        self.order = order[rows[order].argsort(stable=True)]  # by row, in it by score
        self.row = rows[self.order]
        self.room = torch.full((int(rows.max()) + 1,), most)
        self._number()

    def _number(self) -> None:
        counts = self.row.unique_consecutive(return_counts=True)[1]
        self.first = (counts.cumsum(0) - counts).repeat_interleave(counts)

    def admitted(self, asked: Tensor) -> Tensor:
        """Return the best of what is asked for that rows have room for."""
        each = asked[self.order].long()
        before = each.cumsum(0) - each
        found = asked.clone()
        found[self.order] &= before - before[self.first] < self.room[self.row]
        return found

    def taken(self, new: Tensor, left: Tensor) -> Tensor:
        """Make room less by what is new; return what is left without full rows."""
        self.room.index_add_(0, self.row, -new[self.order].long())
        found = left.clone()
        found[self.order] &= self.room[self.row] > 0
        return found

    def only(self, left: Tensor) -> None:
        """Forget all that is not left."""
        open_ = left[self.order]
        self.order, self.row = self.order[open_], self.row[open_]
        self._number()
