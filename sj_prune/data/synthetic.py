"""Ten classes of rendered images, so that every pipeline runs without a download."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


def _box(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v))


def _plus(u: Array, v: Array) -> Array:
    arm = np.minimum(np.abs(u), np.abs(v)) - 0.28
    return np.maximum(arm, _box(u, v) - 1)


def _cross(u: Array, v: Array) -> Array:
    return _plus((u + v) / np.sqrt(2), (u - v) / np.sqrt(2))


def _triangle(u: Array, v: Array) -> Array:
    return np.maximum(v - 0.7, np.abs(u) * 0.87 - v * 0.5 - 0.5)


def _windowed(wave: Array, u: Array, v: Array) -> Array:
    return np.maximum(wave, np.hypot(u, v) - 1)


# Signed distances: negative inside the shape. u points right and v down, the shape fills -1..1.
# Alphabetical: folders are numbered so.
_SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "checker": lambda u, v: _windowed(np.sin(5 * u) * np.sin(5 * v) / 3, u, v),
    "cross": _cross,
    "disk": lambda u, v: np.hypot(u, v) - 0.9,
    "frame": lambda u, v: np.abs(_box(u, v) - 0.68) - 0.16,
    "plus": _plus,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.16,
    "square": lambda u, v: _box(u, v) - 0.8,
    "stripes_h": lambda u, v: _windowed(np.sin(7 * v) / 5, u, v),
    "stripes_v": lambda u, v: _windowed(np.sin(7 * u) / 5, u, v),
    "triangle": _triangle,
}
SYNTHETIC_CLASSES = tuple(_SHAPES)
"""The names of the classes in the order of their labels, which is the alphabet's."""


def synthetic_images(
    n_per_class: int, classes: int = 10, size: int = 32, seed: int = 0, *, clutter: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Render shapes and gratings at random place, scale, slant, color and contrast, with noise.

    Half of the images are dark on light, the others light on dark, on a background with a slope of
    brightness and small blobs: the mean color says nothing of the class.

    Args:
        n_per_class: images of each class.
        classes: how many of :data:`SYNTHETIC_CLASSES`, from the first.
        size: height and width in pixels.
        seed: the same seed gives the same images.
        clutter: blobs behind each shape; more are harder.

    Returns:
        Images, uint8 ``[N, 3, size, size]``, and labels, int64 ``[N]``, in a random order.

    Raises:
        ValueError: an argument is out of range.
    """
    if n_per_class < 1 or size < 8 or clutter < 0:
        raise ValueError(
            "Expected n_per_class >= 1, size >= 8 and clutter >= 0 but got "
            f"{n_per_class}, {size} and {clutter}"
        )
    if not 1 <= classes <= len(SYNTHETIC_CLASSES):
        raise ValueError(f"Expected 1 to {len(SYNTHETIC_CLASSES)} classes but got {classes}")
    rng = np.random.default_rng(seed)
    stacks = [
        _render(_SHAPES[name], n_per_class, size, clutter, rng)
        for name in SYNTHETIC_CLASSES[:classes]
    ]
    order = rng.permutation(n_per_class * classes)
    labels = np.repeat(np.arange(classes), n_per_class)[order]
    return torch.from_numpy(np.concatenate(stacks)[order]), torch.from_numpy(labels)


def _render(
    shape: Callable[[Array, Array], Array],
    n: int,
    size: int,
    clutter: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.uint8]:
    def uniform(low: float, high: float, *trailing: int) -> Array:
        return rng.uniform(low, high, (n, *(trailing or (1, 1))))

    grid = (np.arange(size) + 0.5) / size * 2 - 1
    right, down = grid[None, None, :], grid[None, :, None]
    scale, slant = uniform(0.45, 0.75), uniform(-0.25, 0.25)
    x, y = (right - uniform(-0.25, 0.25)) / scale, (down - uniform(-0.25, 0.25)) / scale
    u, v = np.cos(slant) * x + np.sin(slant) * y, np.cos(slant) * y - np.sin(slant) * x
    coverage = _coverage(shape(u, v) * scale, size)
    sign = np.where(rng.random((n, 1, 1)) < 0.5, -1.0, 1.0)
    slope = uniform(-0.12, 0.12) * right + uniform(-0.12, 0.12) * down
    behind = np.zeros((n, size, size))
    for _ in range(clutter):
        away = np.hypot(right - uniform(-1, 1), down - uniform(-1, 1))
        behind += uniform(-0.3, 0.3) * _coverage(away - uniform(0.08, 0.25), size)
    gray = 0.5 + slope + behind * (1 - coverage) + sign * uniform(0.3, 0.6) * (coverage - 0.5)
    color = gray[:, None] + (coverage - 0.5)[:, None] * uniform(-0.1, 0.1, 3, 1, 1)
    noisy = color + uniform(0.01, 0.05, 1, 1, 1) * rng.standard_normal((n, 3, size, size))
    return (noisy.clip(0, 1) * 255).round().astype(np.uint8)


def _coverage(distance: Array, size: int) -> Array:
    """Return how much of each pixel a shape covers; edges are a pixel wide against aliasing."""
    return 1 / (1 + np.exp(np.clip(distance * size * 1.5, -40, 40)))
