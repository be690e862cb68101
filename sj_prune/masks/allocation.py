"""Allocations: how many of the kept units each layer gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from sj_prune._checks import check_flag
from sj_prune.masks.select import count
from sj_prune.masks.units import LayerScores, keep_top


@dataclass(frozen=True)
class Pool:
    """Layers (by index) that are ranked together, and how many units they keep in all."""

    layers: tuple[int, ...]
    keep: int


class Allocation(Protocol):
    """How a total is divided over layers."""

    def least(self, sizes: Sequence[int], floors: Sequence[int]) -> int:
        """Return the smallest total that can be divided over layers of these sizes and floors."""
        ...

    def pools(
        self,
        layers: Sequence[LayerScores],
        keep: int,
        *,
        across_layers: bool,
        generator: torch.Generator | None,
    ) -> list[Pool]:
        """Return pools that cover every layer once and keep `keep` units in total."""
        ...


def apportion(
    total: int, ideal: Sequence[float], floors: Sequence[int], caps: Sequence[int]
) -> list[int]:
    """Divide `total` in proportion to `ideal`, each share within its floor and cap, exactly.

    Shares that meet a bound stay there and the rest is divided anew; what rounding leaves over
    goes to the largest remainders (ties to the earlier layer).

    Raises:
        ValueError: if the bounds do not admit the total.
    """
    if not sum(floors) <= total <= sum(caps):
        raise ValueError(
            f"Expected a total between {sum(floors)} and {sum(caps)} to divide but got {total}"
        )
    scale = _scale(total, ideal, floors, caps)
    shares = [min(max(scale * q, f), c) for q, f, c in zip(ideal, floors, caps, strict=True)]
    counts = [min(int(share), cap) for share, cap in zip(shares, caps, strict=True)]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    while (left := total - sum(counts)) != 0:
        step = 1 if left > 0 else -1
        for i in order if step > 0 else reversed(order):
            if left == 0:
                break
            if floors[i] <= counts[i] + step <= caps[i]:
                counts[i] += step
                left -= step
    return counts


def _scale(total: int, ideal: Sequence[float], floors: Sequence[int], caps: Sequence[int]) -> float:
    """Return the factor at which the bounded shares add up to `total`, by bisection."""

    def filled(scale: float) -> float:
        bounds = zip(ideal, floors, caps, strict=True)
        return sum(min(max(scale * q, f), c) for q, f, c in bounds)

    low, high = 0.0, 1.0
    while filled(high) < total and high < 1e30:
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if filled(middle) < total else (low, middle)
    return high


def _layerwise(layers: Sequence[LayerScores], keep: int, ideal: Sequence[float]) -> list[Pool]:
    """One pool a layer; a layer that cannot grow gets no more than it has alive."""
    alive = count([layer.mask for layer in layers])
    caps = [n if x.grow is None else x.size for x, n in zip(layers, alive, strict=True)]
    if sum(caps) < keep:
        raise ValueError(
            f"Expected at least {keep} units alive but only {sum(caps)} are, and this method does "
            "not regrow them: ask for a sparsity no lower than the present one"
        )
    counts = apportion(
        keep, ideal, [min(x.floor, c) for x, c in zip(layers, caps, strict=True)], caps
    )
    return [Pool((i,), n) for i, n in enumerate(counts)]


@dataclass(frozen=True)
class Global:
    """One ranking over all layers; none falls below its floor."""

    def least(self, sizes: Sequence[int], floors: Sequence[int]) -> int:
        """Return the sum of the floors."""
        return sum(floors)

    def pools(
        self,
        layers: Sequence[LayerScores],
        keep: int,
        *,
        across_layers: bool,
        generator: torch.Generator | None,
    ) -> list[Pool]:
        """Return one pool of all; layers that differ in growth take their counts from it first.

        Where growth is ranked within layers, or a layer cannot grow, the global ranking by drop
        score says how many units each keeps; only layers that grow across stay pooled.
        """
        growing = [i for i, layer in enumerate(layers) if layer.grow is not None]
        rest = [i for i in range(len(layers)) if i not in set(growing)]
        if not growing or (across_layers and not rest):
            return [Pool(tuple(range(len(layers))), keep)]
        counts = self._counts(layers, keep, generator)
        if not across_layers:
            return [Pool((i,), n) for i, n in enumerate(counts)]
        pooled = Pool(tuple(growing), keep - sum(counts[i] for i in rest))
        return [*(Pool((i,), counts[i]) for i in rest), pooled]

    @staticmethod
    def _counts(
        layers: Sequence[LayerScores], keep: int, generator: torch.Generator | None
    ) -> list[int]:
        alive = count([layer.mask for layer in layers])
        if keep > sum(alive):
            # More units than are alive: growth is shared in proportion to what each layer has.
            caps = [n if x.grow is None else x.size for x, n in zip(layers, alive, strict=True)]
            return apportion(keep, [float(n) for n in alive], alive, caps)
        return count(keep_top(layers, keep, generator))


@dataclass(frozen=True)
class Uniform:
    """The same density in every layer.

    Args:
        first_dense: keep the first layer whole, as RigL's uniform variant does.
    """

    first_dense: bool = False

    def __post_init__(self) -> None:
        check_flag("first_dense", self.first_dense)

    def least(self, sizes: Sequence[int], floors: Sequence[int]) -> int:
        """Return the sum of the floors, with all of the first layer if it stays dense."""
        whole = self.first_dense and len(sizes) > 1
        return sizes[0] + sum(floors[1:]) if whole else sum(floors)

    def pools(
        self,
        layers: Sequence[LayerScores],
        keep: int,
        *,
        across_layers: bool,
        generator: torch.Generator | None,
    ) -> list[Pool]:
        """Return one pool a layer."""
        ideal = [float(layer.size) for layer in layers]
        if self.first_dense and len(layers) > 1:
            first = layers[0].size
            least = self.least([layer.size for layer in layers], [x.floor for x in layers])
            if keep < least:
                raise ValueError(
                    f"Expected to keep at least {least} units, the first layer whole and the floor "
                    f"of each other, but got {keep}; lower the sparsity or set first_dense=False"
                )
            others = _layerwise(layers[1:], keep - first, ideal[1:])
            return [Pool((0,), first), *(Pool((p.layers[0] + 1,), p.keep) for p in others)]
        return _layerwise(layers, keep, ideal)


@dataclass(frozen=True)
class ERK:
    """Erdos-Renyi-Kernel: a layer's density is proportional to ``sum(shape) / prod(shape)``.

    Small layers are kept denser; those that would exceed density 1 are whole.
    """

    def least(self, sizes: Sequence[int], floors: Sequence[int]) -> int:
        """Return the sum of the floors."""
        return sum(floors)

    def pools(
        self,
        layers: Sequence[LayerScores],
        keep: int,
        *,
        across_layers: bool,
        generator: torch.Generator | None,
    ) -> list[Pool]:
        """Return one pool a layer."""
        return _layerwise(layers, keep, [float(sum(layer.mask.shape)) for layer in layers])
