"""N:M: of every m consecutive input channels n weights are kept, as sparse tensor cores want it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sj_prune.masks.allocation import ERK, Allocation
from sj_prune.masks.bindings import Binding, Hidden
from sj_prune.masks.structure import Unstructured
from sj_prune.masks.units import LayerScores


@dataclass(frozen=True)
class NM(Unstructured):
    """Of every `m` consecutive input channels of an output (and kernel place) `n` are kept.

    The final sparsity is ``1 - n/m``, in every layer. Within a block weights go by the drop score;
    on the way there the worst of all blocks go first. Growth exchanges within blocks: the blocks
    with the best pruned candidates by growth score each swap their lowest kept weight for it (where
    more are asked for than there are blocks, their second lowest too, and so on). Layers whose
    number of input channels is no multiple of `m` stay dense.

    Args:
        n: weights kept of a block, at least 1.
        m: weights of a block, more than `n`.
    """

    n: int = 2
    m: int = 4

    allocations = "Global() or Uniform()"

    def __post_init__(self) -> None:
        for name in ("n", "m"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Expected {name} to be an integer but got {value!r}")
        if not 1 <= self.n < self.m:
            raise ValueError(f"Expected 1 <= n < m but got n = {self.n}, m = {self.m}")

    @property
    def sparsity(self) -> float:  # type: ignore[override]
        """The one that its blocks have in the end."""
        return 1.0 - self.n / self.m

    def refuse(self, allocation: Allocation, binding: Binding) -> str | None:
        """Return why these do not go together with blocks, or None."""
        if isinstance(allocation, ERK) or getattr(allocation, "first_dense", False):
            return (
                f"allocation={allocation!r} gives layers densities of their own, and each keeps "
                f"{self.n} of {self.m}: Uniform() or Global()"
            )
        if isinstance(binding, Hidden):
            return "a hidden variable minds no blocks: structure=Unstructured()"
        return super().refuse(allocation, binding)

    def stays(self, producers: Sequence[nn.Module]) -> str | None:
        """Return why these layers stay, or None."""
        for layer in producers:
            if isinstance(layer, nn.modules.conv._ConvTransposeNd):
                return "of a transposed convolution no input channels lie side by side"
            inputs = layer.get_parameter("weight").shape[1]
            if inputs % self.m:
                return f"its {inputs} input channels make no blocks of {self.m}"
        return None

    def ranked(
        self, layers: Sequence[LayerScores], generator: torch.Generator
    ) -> list[LayerScores]:
        """Return scores by which any ranking of single weights minds the blocks.

        A weight is dropped by its place in its block, the worst places first. In layers that grow,
        candidates for a swap are in one order over all layers, the best first, and so are the kept
        weights that they would replace: whoever grows the `k` first drops their counterparts.
        """
        seen = [_Blocks(layer, self.m) for layer in layers]
        drops = [each.drop() for each in seen]
        growing = [i for i, layer in enumerate(layers) if layer.grow is not None]
        grows = {i: torch.full_like(drops[i], -math.inf) for i in growing}
        candidates = {i: seen[i].candidates(self.n, generator) for i in growing}
        for j in range(self.m - self.n if growing else 0):
            # 0 for the best j-th candidate of a block, up to 1.
            places = _places([candidates[i][:, :, j] for i in growing])
            if j == self.n - 1:  # a layer whose last kept would all go keeps one: its floor
                _last(places)
            for i, place in zip(growing, places, strict=True):
                score, where = candidates[i][0, :, j], candidates[i][-1, :, j].long()
                # What is not finite stays so, to be refused.
                grows[i].scatter_(1, where.unsqueeze(1), (-j - place + 0 * score).unsqueeze(1))
                if j < self.n:
                    lowest = seen[i].place == self.n - 1 - j
                    drops[i][lowest] = place + 0.5 - self.n + j + 0 * drops[i][lowest]
        for i in growing:  # what is asked for beyond takes back what went last
            grows[i] = torch.where(grows[i] == -math.inf, drops[i] - 2 * self.m, grows[i])
        return [
            replace(
                layer,
                drop=each.whole(drop),
                grow=each.whole(grows[i]) if i in grows else None,
            )
            for i, (layer, each, drop) in enumerate(zip(layers, seen, drops, strict=True))
        ]


class _Blocks:
    """The scores of one layer as ``[blocks, m]``."""

    def __init__(self, layer: LayerScores, m: int) -> None:
        self.layer, self.m = layer, m
        self.place = self._inverse(_order(self.split(layer.mask), self.split(layer.drop)))

    def split(self, values: Tensor) -> Tensor:
        """Return values of all weights by block, in float64."""
        return values.double().unflatten(1, (-1, self.m)).movedim(2, -1).reshape(-1, self.m)

    def whole(self, values: Tensor) -> Tensor:
        """Return values by block in the shape of the weight."""
        outputs, inputs, *kernel = self.layer.mask.shape
        shaped = values.view(outputs, inputs // self.m, *kernel, self.m)
        return shaped.movedim(-1, 2).reshape(self.layer.mask.shape)

    @staticmethod
    def _inverse(order: Tensor) -> Tensor:
        """Return at which place of its block each weight stands, 0 the best."""
        along = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return torch.empty_like(order).scatter_(1, order, along)

    def drop(self) -> Tensor:
        """Return minus the place, and the score itself between equal ones."""
        score = self.split(self.layer.drop)
        return score / (1 + score.abs()) / 2 - self.place

    def candidates(self, n: int, generator: torch.Generator) -> Tensor:
        """Return the pruned of each block, the best first: score, ties, noise and where it is.

        Args:
            n: how many of a block are kept.
            generator: CPU generator of the noise, which decides between equals.

        Returns:
            ``[3, blocks, m - n]``, or 4 where a tie is given.
        """
        layer = self.layer
        assert layer.grow is not None  # noqa: S101 (asked of growing layers alone)
        grow = self.split(layer.grow)
        noise = torch.rand(grow.shape, generator=generator, device="cpu").to(grow)
        ties = [] if layer.tie is None else [self.split(layer.tie)]
        keys = (grow, *ties, noise)
        order = _order((self.place >= n).to(grow), *keys)[:, : self.m - n]
        return torch.stack([*(key.gather(1, order) for key in keys), order.to(grow)])


def _order(*keys: Tensor) -> Tensor:
    """Return the order along the last dimension, highest first; ties go by the next key."""
    order = keys[-1].argsort(dim=-1, descending=True, stable=True)
    for key in reversed(keys[:-1]):
        again = key.gather(-1, order).argsort(dim=-1, descending=True, stable=True)
        order = order.gather(-1, again)
    return order


def _places(keys: Sequence[Tensor]) -> list[Tensor]:
    """Return the place of each candidate among those of all layers, in [0, 1), none twice."""
    joined = torch.cat([key.to(keys[0].device) for key in keys], 1)
    order = _order(*joined[:-1])
    place = torch.empty_like(joined[0])
    place[order] = torch.arange(len(order), device=place.device).to(place) / len(order)
    parts = place.split([key.shape[1] for key in keys])
    return [part.to(key.device) for part, key in zip(parts, keys, strict=True)]


def _last(places: Sequence[Tensor]) -> None:
    """Put the last candidate of each layer behind those of all others, in place."""
    total = sum(map(len, places))
    for i, place in enumerate(places, start=1):
        place[place.argmax()] = 1.0 - (1.0 - i / (len(places) + 1)) / total
