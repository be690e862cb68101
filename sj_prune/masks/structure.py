"""Structures: what is pruned as one piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

__all__ = ["Layer", "Unstructured"]

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

    def mask(self, units: Tensor, weight: Tensor) -> Tensor:
        """Return the element mask of the units that are kept, in the shape of the weight."""
        return units.view_as(weight)
