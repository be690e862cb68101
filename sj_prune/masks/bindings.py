"""Bindings: what a pruned unit is between updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class Strict:
    """0 after every step, and so are its gradient and its optimizer slots."""


@dataclass(frozen=True)
class Sleep:
    """Of channels: silent at the norm, while the filter sleeps bit by bit as it was.

    Args:
        wake: "restore" gives a waking channel the gamma and beta that it fell asleep with; "zero"
            starts them at 0.
    """

    wake: str = "restore"

    def __post_init__(self) -> None:
        if self.wake not in ("restore", "zero"):
            raise ValueError(
                f"Expected wake to be one of ('restore', 'zero') but got {self.wake!r}"
            )


@dataclass(frozen=True)
class AtUpdates:
    """Of channels: zeroed at an update; in between the optimizer moves everything (SCA's code)."""


class Transform(Protocol):
    """How a weight follows the hidden variable behind it; a small frozen dataclass."""

    def start(self, weight: Tensor, hidden: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the hidden tensors that belong to a weight, by name, in its shape.

        Args:
            weight: of a layer: at first, and whenever somebody writes it.
            hidden: what is kept of the layer so far, beside them what penalties keep there.
        """
        ...

    def absorb(self, hidden: dict[str, Tensor], weight: Tensor) -> None:
        """Move the hidden variable, in place, by what a step did to the weight."""
        ...

    def weight(self, hidden: dict[str, Tensor]) -> Tensor:
        """Return the weight that belongs to the hidden variable."""
        ...


@dataclass(frozen=True)
class Hidden:
    """A hidden variable behind every weight decides what is 0: sparsity emerges.

    The weight stays the optimizer's leaf, its gradient and slots alive where it is 0.

    Args:
        transform: how the weight follows.
    """

    transform: Transform


#: what a plan's `binding` may be
Binding: TypeAlias = Strict | Sleep | AtUpdates | Hidden
