"""An image moving before the sensor on a smooth closed path."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

FloatArray = npt.NDArray[np.float64]
# Rec. 601 luma: what a monochrome sensor makes of red, green and blue.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ClosedLoop:
    """A circle, gone round several times at constant speed.

    DVS-CIFAR10 was recorded from images in "repeated closed-loop smooth movement" (Li, Liu, Ji, Li,
    Shi 2017). A circle is the smoothest closed path: every direction of an edge is crossed equally.

    Args:
        amplitude: radius in pixels of the sensor.
        loops: how often the circle is gone round.
        steps: in how many straight pieces the whole path is cut.
        duration: microseconds of the whole path.

    Raises:
        ValueError: a setting is out of range.
    """

    amplitude: float = 6.0
    loops: int = 2
    steps: int = 100
    duration: int = 200_000

    def __post_init__(self) -> None:
        if not 0 <= self.amplitude < float("inf"):
            raise ValueError(f"Expected amplitude >= 0 but got {self.amplitude}")
        for name in ("loops", "steps", "duration"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Expected {name} to be an integer >= 1 but got {value}")
        if self.duration < self.steps:
            raise ValueError(
                f"Expected duration >= steps but got {self.duration} us for {self.steps} steps: "
                "a step takes at least 1 us"
            )

    @property
    def margin(self) -> int:
        """Pixels that an image needs beyond the sensor on each side."""
        return math.ceil(self.amplitude) + 1

    def times(self) -> npt.NDArray[np.int64]:
        """Return the times of the ends of the steps in microseconds ``[steps + 1]``."""
        return np.arange(self.steps + 1, dtype=np.int64) * self.duration // self.steps

    def offsets(self) -> FloatArray:
        """Return the positions (down, right) in pixels at these times ``[steps + 1, 2]``."""
        angle = 2 * np.pi * self.loops * np.arange(self.steps + 1) / self.steps
        return self.amplitude * np.stack((np.sin(angle), np.cos(angle)), axis=1)

    def views(self, canvas: FloatArray) -> Iterator[FloatArray]:
        """Yield what the sensor sees at each of the times.

        Args:
            canvas: ``[S + 2 * margin, S + 2 * margin]`` for a sensor of ``S`` by ``S`` pixels.

        Yields:
            ``[S, S]``, bilinear between the pixels of `canvas`.
        """
        size = canvas.shape[0] - 2 * self.margin
        for down, right in self.offsets():
            # The view goes against the image.
            top, left = self.margin - down, self.margin - right
            i, j = int(top), int(left)
            block = canvas[i : i + size + 1, j : j + size + 1]
            rows = block[:-1] + (top - i) * (block[1:] - block[:-1])
            yield rows[:, :-1] + (left - j) * (rows[:, 1:] - rows[:, :-1])


def as_gray(images: Any) -> torch.Tensor:  # noqa: ANN401 - tensors and whatever numpy takes
    """Return 8-bit images as luminance.

    Args:
        images: uint8 ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, H, W, C]`` with one or three
            channels; a tensor or an array.

    Returns:
        float32 in 0..1 ``[N, H, W]``.

    Raises:
        ValueError: another type or shape.
    """
    stack = torch.as_tensor(images).cpu()
    if stack.dtype != torch.uint8 or stack.ndim not in (3, 4):
        raise ValueError(
            "Expected uint8 images [N, H, W], [N, C, H, W] or [N, H, W, C] but got "
            f"{stack.dtype} {tuple(stack.shape)}: scale to 0..255 and convert"
        )
    if stack.ndim == 3:
        stack = stack.unsqueeze(1)
    elif stack.shape[1] not in (1, 3):
        stack = stack.movedim(3, 1)
    if stack.shape[1] == 1:
        return stack[:, 0].float() / 255
    if stack.shape[1] != 3:
        raise ValueError(
            f"Expected 1 or 3 channels but got shape {tuple(torch.as_tensor(images).shape)}"
        )
    return torch.einsum("nchw,c->nhw", stack.float(), torch.tensor(_LUMA)) / 255


def log_canvas(gray: torch.Tensor, size: int, dark: float) -> FloatArray:
    """Enlarge a gray image ``[H, W]`` in 0..1 to ``[size, size]`` and take its logarithm."""
    large = F.interpolate(gray[None, None], (size, size), mode="bilinear", align_corners=False)
    return np.log(large[0, 0].numpy().astype(np.float64) + dark)
