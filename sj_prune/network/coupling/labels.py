"""Channel labels: which channels a dimension of a tensor counts, followed through views.

Every output channel of a weighted layer has a label. A tensor's labels stand along one dimension;
labels that must live and die together are joined (union-find), those that cannot be pruned are
frozen with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """What the positions of one dimension of a tensor stand for.

    Attributes:
        dim: the dimension, not negative.
        ids: label of every position, ``[size of dim]``.
        zero: the tensor is 0 where its channel is silent.
        raw: layers whose output this still is, before any norm: they must be silenced themselves if
            it is read like this.
    """

    dim: int
    ids: Tensor
    zero: bool = True
    raw: frozenset[str] = frozenset()

    def at(self, dim: int, ids: Tensor | None = None) -> Labels:
        """Return the same labels along another dimension."""
        return replace(self, dim=dim, ids=self.ids if ids is None else ids)


class Partition:
    """Labels joined into classes, and why some of them are frozen."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}

    def new(self, number: int) -> Tensor:
        """Return so many fresh labels."""
        first = len(self._parent)
        self._parent.extend(range(first, first + number))
        return torch.arange(first, first + number, device="cpu")

    def find(self, label: int) -> int:
        """Return the representative of a label's class."""
        root = label
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[label] != root:
            self._parent[label], label = root, self._parent[label]
        return root

    def roots(self, ids: Tensor) -> list[int]:
        """Return the representatives of several labels."""
        parent, found = self._parent, []
        for label in ids.tolist():  # millions in a large network, nearly all of them at their root
            root = parent[label]
            found.append(root if parent[root] == root else self.find(label))
        return found

    def join(self, a: Tensor, b: Tensor) -> None:
        """Join two lists of labels, pair by pair."""
        for x, y in set(zip(a.tolist(), b.tolist(), strict=True)):
            x, y = self.find(x), self.find(y)
            if x == y:
                continue
            root, other = min(x, y), max(x, y)
            self._parent[other] = root
            if other in self._reasons:
                self._reasons.setdefault(root, self._reasons.pop(other))

    def freeze(self, ids: Tensor, reason: str) -> None:
        """Keep the classes of these labels whole; the first reason stays."""
        for root in set(self.roots(ids)):
            self._reasons.setdefault(root, reason)

    def reason(self, root: int) -> str | None:
        """Return why a class is frozen, or None."""
        return self._reasons.get(root)


def reshaped(labels: Labels, before: torch.Size, after: torch.Size) -> Labels | None:
    """Return the labels of a tensor that was reshaped, or None if they fill several dimensions."""
    first, last, new_first, new_last = _block(labels.dim, before, after)
    inner, outer = before[labels.dim + 1 : last], before[first : labels.dim]
    spread = labels.ids.view(1, -1, 1).expand(prod(outer), -1, prod(inner))
    shape = tuple(after[new_first:new_last])
    block = spread.reshape(shape)
    varying = [d for d in range(len(shape)) if _varies(block, d)]
    if len(varying) > 1:
        return None
    if varying:
        dim = varying[0]
    else:  # one label throughout: where the channels were, as near as can be told
        dim = max(range(len(shape)), key=lambda d: (shape[d] == len(labels.ids), -d), default=0)
        if not shape:
            return None
    index = [0] * len(shape)
    ids = block[tuple(slice(None) if d == dim else index[d] for d in range(len(shape)))]
    return labels.at(new_first + dim, ids.clone())


def _varies(block: Tensor, dim: int) -> bool:
    return bool((block != block.narrow(dim, 0, 1)).any())


def _block(dim: int, before: torch.Size, after: torch.Size) -> tuple[int, int, int, int]:
    """Return the smallest runs of dimensions before and after that hold the same elements.

    ``before[first:last]`` holds `dim`; its product equals that of ``after[new_first:new_last]``.
    """
    i = j = first = new_first = 0
    a = b = 1
    while True:
        a *= before[i]
        i += 1
        while a != b:
            if b < a:
                b *= after[j]
                j += 1
            else:
                a *= before[i]
                i += 1
        if i > dim:
            # Dimensions of size 1 behind belong to nobody: leave them out of the block.
            return first, i, new_first, j
        first, new_first = i, j
