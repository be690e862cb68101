"""Augmentation of event frames as the literature on DVS-CIFAR10 does it.

The resizing, flips and rolls of TET (Deng et al. 2022) and the cutout of neuromorphic data
augmentation (Li et al. 2022). Every transform takes one sample ``[T, 2, H, W]`` or a batch
``[N, T, 2, H, W]``; a sample is changed alike at all its time steps. Random numbers are drawn on
the CPU, so that a seed gives the same result on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

Generator = torch.Generator | None


class _Transform:
    """Brings one sample and a batch to the same form."""

    def __call__(self, x: torch.Tensor, generator: Generator = None) -> torch.Tensor:
        """Transform frames.

        Args:
            x: ``[T, 2, H, W]`` or ``[N, T, 2, H, W]``.
            generator: CPU generator; default: torch's own.

        Raises:
            ValueError: `x` has another number of dimensions.
        """
        if x.ndim == 5:
            return self._apply(x, generator)
        if x.ndim == 4:
            return self._apply(x.unsqueeze(0), generator).squeeze(0)
        raise ValueError(
            f"Expected frames [T, 2, H, W] or [N, T, 2, H, W] but got {tuple(x.shape)}: "
            "add the dimension of time"
        )

    def _apply(self, x: torch.Tensor, generator: Generator) -> torch.Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Resize(_Transform):
    """Resize to ``[size, size]``: bilinear with anti-aliasing, which keeps the mean event count.

    Args:
        size: height and width afterwards.
    """

    size: int = 48

    def __post_init__(self) -> None:
        _at_least("size", self.size, 1)

    def _apply(self, x: torch.Tensor, generator: Generator) -> torch.Tensor:
        if x.shape[-2:] == (self.size, self.size):
            return x
        frames = x.flatten(0, 1).float()
        small = F.interpolate(frames, (self.size, self.size), mode="bilinear", antialias=True)
        return small.unflatten(0, x.shape[:2])


@dataclass(frozen=True)
class RandomFlip(_Transform):
    """Mirror left and right.

    Args:
        p: probability.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        _probability(self.p)

    def _apply(self, x: torch.Tensor, generator: Generator) -> torch.Tensor:
        flip = torch.rand(len(x), generator=generator) < self.p
        return torch.where(_column(flip, x), x.flip(-1), x)


@dataclass(frozen=True)
class RandomRoll(_Transform):
    """Shift around the borders, down and right by -`pixels` to `pixels` each.

    Args:
        pixels: largest shift.
    """

    pixels: int = 5

    def __post_init__(self) -> None:
        _at_least("pixels", self.pixels, 0)

    def _apply(self, x: torch.Tensor, generator: Generator) -> torch.Tensor:
        shift = torch.randint(-self.pixels, self.pixels + 1, (2, len(x)), generator=generator)
        shift = shift.to(x.device, non_blocking=True)
        for dim, by in zip((-2, -1), shift, strict=True):
            size = x.shape[dim]
            source = (torch.arange(size, device=x.device) - by[:, None]) % size
            shape = [len(x), 1, 1, 1, 1]
            shape[dim] = size
            x = x.gather(dim, source.view(shape).expand_as(x))
        return x


@dataclass(frozen=True)
class Cutout(_Transform):
    """Zero a square with its center anywhere, cut at the borders.

    Args:
        length: largest edge in pixels; an edge of 1 to `length` is drawn for each sample.
        p: probability.
    """

    length: int = 8
    p: float = 0.5

    def __post_init__(self) -> None:
        _at_least("length", self.length, 1)
        _probability(self.p)

    def _apply(self, x: torch.Tensor, generator: Generator) -> torch.Tensor:
        n, (height, width) = len(x), x.shape[-2:]
        edge = torch.randint(1, self.length + 1, (n,), generator=generator)
        edge[torch.rand(n, generator=generator) >= self.p] = 0
        top = torch.randint(height, (n,), generator=generator) - edge // 2
        left = torch.randint(width, (n,), generator=generator) - edge // 2
        rows = _between(height, top, edge).to(x.device, non_blocking=True)
        columns = _between(width, left, edge).to(x.device, non_blocking=True)
        hole = rows[:, :, None] & columns[:, None, :]
        return x.masked_fill(hole[:, None, None], 0)


@dataclass(frozen=True)
class Compose(_Transform):
    """One transform after another.

    Args:
        transforms: in order.
    """

    transforms: Sequence[_Transform]

    def _apply(self, x: torch.Tensor, generator: Generator) -> torch.Tensor:
        for transform in self.transforms:
            x = transform(x, generator)
        return x


def event_augmentation(flip: float = 0.5, roll: int = 5, cutout: int = 8) -> Compose:
    """Return the usual augmentation of DVS-CIFAR10 at 48x48: flip, roll, cutout."""
    return Compose((RandomFlip(flip), RandomRoll(roll), Cutout(cutout)))


def _between(size: int, start: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Return ``[N, size]``, True from each start for each length."""
    position = torch.arange(size)
    return (position >= start[:, None]) & (position < (start + length)[:, None])


def _column(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.to(x.device, non_blocking=True).view(-1, *[1] * (x.ndim - 1))


def _at_least(name: str, value: int, low: int) -> None:
    if not isinstance(value, int) or value < low:
        raise ValueError(f"Expected {name} to be an integer >= {low} but got {value}")


def _probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"Expected p in [0, 1] but got {p}")
