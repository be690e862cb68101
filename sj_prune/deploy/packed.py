"""What pooling, adding and joining do to packed spikes and counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sj_prune.engines import deploy_engine as engine


class Packed(NamedTuple):
    """A count in memory.

    Attributes:
        data: bytes ``[B * G * N * C * H * W]`` and the engine's slack.
        planes: B.
        shape: ``(G, N, C, H, W)``.
    """

    data: Tensor
    planes: int
    shape: tuple[int, int, int, int, int]

    def view(self) -> Tensor:
        """Return the bytes as ``[B, G, N, C, H, W]``."""
        return self.data[: -engine.SLACK].view(self.planes, *self.shape)


def packed_call(
    op: str,
    settings: dict[str, Any],
    given: list[Packed],
    out: Packed,
    steps: int,
    threads: int,
) -> Callable[[], object]:
    """Return what runs one operation.

    Args:
        op: of a step.
        settings: of the step.
        given: its inputs.
        out: where the result goes.
        steps: `T`.
        threads: of the engine.
    """
    a = given[0]
    if op in ("maxpool", "avgpool", "adaptive"):
        numbers = _pool_numbers(settings, a, out)
        return engine.pool_call(a.data, out.data, [*numbers, int(op != "maxpool"), threads])
    if op == "add":
        size = out.view()[0].numel()
        planes = [a.planes, given[1].planes, out.planes]
        return engine.add_call(a.data, given[1].data, out.data, planes, size)
    if op == "and":
        return lambda: torch.bitwise_and(a.data, given[1].data, out=out.data)
    if op == "complement":
        mask = _mask(out, steps)
        return lambda: torch.bitwise_xor(a.data, mask, out=out.data)
    if op == "scale":
        return lambda: out.data.copy_(a.data)
    return _cat(given, out)


def _pool_numbers(settings: dict[str, Any], given: Packed, out: Packed) -> list[int]:
    groups, samples, channels, height, width = given.shape
    return [
        given.planes,
        out.planes,
        groups * samples * channels,
        height,
        width,
        *out.shape[3:],
        *settings["kernel"],
        *settings["stride"],
        *settings["padding"],
        *settings["dilation"],
    ]


def _mask(out: Packed, steps: int) -> Tensor:
    """Return ones for the bits of all steps: bits beyond `T` stay 0."""
    mask = torch.zeros_like(out.data)
    used = Packed(mask, out.planes, out.shape).view()
    for g in range(out.shape[0]):
        used[:, g] = (1 << min(8, steps - 8 * g)) - 1
    return mask


def _cat(given: list[Packed], out: Packed) -> Callable[[], object]:
    parts, whole = [p.view() for p in given], out.view()

    def call() -> None:
        at = 0
        for part in parts:
            whole[: len(part), :, :, at : at + part.shape[3]] = part
            at += part.shape[3]

    return call
