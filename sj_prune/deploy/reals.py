"""What stays in torch: operations on real values ``[T or 1, N, C, H, W]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sj_prune.deploy.leaves import pooled


def compute(op: str, settings: dict[str, Any], given: list[Tensor], steps: int) -> Tensor:
    """Return what an operation makes of real values.

    Args:
        op: of the step.
        settings: of the step.
        given: its inputs.
        steps: `T`: how often a value that is given once stands for.
    """
    if op in ("maxpool", "avgpool", "adaptive", "voting"):
        x = given[0]
        flat = pooled(op, settings, x.flatten(0, 1))
        return flat.reshape(len(x), -1, *flat.shape[1:])  # exporters have no number of samples
    return _RULES[op](settings, given, steps)


def _norm(settings: dict[str, Any], given: list[Tensor], steps: int) -> Tensor:
    scale, shift = (settings[k].view(-1, 1, 1) for k in ("scale", "shift"))
    return given[0] * scale + shift


def _mean(settings: dict[str, Any], given: list[Tensor], steps: int) -> Tensor:
    x = given[0]
    if settings["mean"]:
        return x.mean(0, keepdim=True)
    return x.sum(0, keepdim=True) if len(x) == steps else x * steps


def _cat(settings: dict[str, Any], given: list[Tensor], steps: int) -> Tensor:
    longest = max(len(x) for x in given)
    return torch.cat([x.expand(longest, *x.shape[1:]) for x in given], 2)


_RULES: dict[str, Callable[[dict[str, Any], list[Tensor], int], Tensor]] = {
    "norm": _norm,
    "add": lambda settings, given, steps: given[0] + given[1],
    "and": lambda settings, given, steps: given[0] * given[1],
    "complement": lambda settings, given, steps: 1.0 - given[0],
    "scale": lambda settings, given, steps: given[0] * settings["factor"],
    "cat": _cat,
    "mean": _mean,
}
