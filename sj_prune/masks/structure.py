"""Structures: what is pruned as one piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

__all__ = ["Channels", "Layer", "Structure", "Unstructured"]

#: the layers whose weights are pruned
Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclass(frozen=True)
class Unstructured:
    """Single weights: every element of a weight tensor is a unit of its own."""

    def units(self, scores: Tensor, weight: Tensor) -> Tensor:
        """Return the scores of the units, here one per element.

        Args:
            scores: of the elements; anything that broadcasts to the weight's shape, such as
                ``[C_out, 1, 1, 1]`` for a score of the post-synaptic neuron.
            weight: the layer's weight.
        """
        return scores.expand_as(weight)


@dataclass(frozen=True)
class Channels:
    """Whole output channels, each with everything that is coupled with it.

    Channels that meet in a residual addition are one unit, and so are a channel and its depthwise
    filter. A silent channel has gamma = beta = 0 at its norm (filter and bias without one).

    Args:
        linear: prune features of linear layers too.
        min_keep: number of units that every group keeps at least.
        multiple: the number of channels that a group keeps is a multiple of this, at least one, or
            all of them: CPU kernels and tensor cores are fast at widths of 8, 16 or 32. The exact
            count of every group is rounded up or down, to the nearer side where the sum admits it;
            the sum comes as near as that to the sparsity asked for, so at most half a multiple away
            (of two as near the sparser). Growth replaces channels within these counts.
    """

    linear: bool = True
    min_keep: int = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        for name, reason in (("min_keep", " (no group is ever emptied)"), ("multiple", "")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Expected {name} to be an integer but got {value!r}")
            if value < 1:
                raise ValueError(f"Expected {name} of at least 1{reason} but got {value}")

    def units(self, scores: Tensor, weight: Tensor) -> Tensor:
        """Return one score per output channel, ``[C_out]``.

        Args:
            scores: ``[C_out]``, or of the elements as for `Unstructured`: then their mean.
            weight: the layer's weight.
        """
        if scores.ndim == weight.ndim:
            scores = scores.flatten(1).mean(1)
        return scores.expand(weight.shape[0])


#: what a method may prune as one piece
Structure: TypeAlias = Unstructured | Channels
