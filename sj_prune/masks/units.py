"""What is ranked: the scores of one layer, and the ranking of several under a floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune.masks.select import count, top_k


@dataclass(frozen=True)
class LayerScores:
    """What the algorithm reads of one layer.

    Attributes:
        name: for messages.
        mask: what is alive now, True = kept.
        drop: score by which alive units are kept, highest first; the mask's shape.
        grow: score by which others are grown, highest first; None: this layer never regrows.
        tie: decides between equal growth scores; None: a seeded order does.
        floor: number of units that are kept at least.
        multiple: the number kept is a multiple of this, or all.
    """

    name: str
    mask: Tensor
    drop: Tensor
    grow: Tensor | None = None
    tie: Tensor | None = None
    floor: int = 1
    multiple: int = 1

    @property
    def size(self) -> int:
        """Number of units, alive or not."""
        return self.mask.numel()


def keep_top(
    layers: Sequence[LayerScores], keep: int, generator: torch.Generator | None
) -> list[Tensor]:
    """Return the `keep` highest drop scores among the alive units, at least the floor of each."""
    chosen = _top(layers, range(len(layers)), keep, generator)
    alive = count([layer.mask for layer in layers])
    floors = [min(layer.floor, n) for layer, n in zip(layers, alive, strict=True)]
    forced: set[int] = set()
    # A layer below its floor keeps its best units; the others give some up. Seldom runs.
    while short := [i for i, n in enumerate(count(chosen)) if n < floors[i] and i not in forced]:
        forced.update(short)
        free = [i for i in range(len(layers)) if i not in forced]
        for i in short:
            (chosen[i],) = _top(layers, [i], floors[i], generator)
        left = keep - sum(floors[i] for i in forced)
        for i, mask in zip(free, _top(layers, free, left, generator), strict=True):
            chosen[i] = mask
    return chosen


def _top(
    layers: Sequence[LayerScores],
    which: Sequence[int],
    k: int,
    generator: torch.Generator | None,
) -> list[Tensor]:
    drops = [layers[i].drop for i in which]
    return top_k(drops, k, [layers[i].mask for i in which], generator=generator)
