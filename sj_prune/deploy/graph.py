"""A network as a graph: values between layers, and nodes that make them.

A value is, at every time step and for every sample, a map ``[C, H, W]`` (features: ``[C, 1, 1]``);
static values are the same at every step, which is how a still image enters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


class UnsupportedError(ValueError):
    """Raised for what cannot be deployed; the message names it and says why.

    Attributes:
        nodes: how many operations were understood before.
    """

    nodes = 0


@dataclass
class Value:
    """What travels between nodes.

    Attributes:
        shape: ``(C, H, W)`` of one sample at one step.
        tail: the dimensions behind time and batch as the network has them.
        static: the same at every step.
    """

    shape: tuple[int, int, int]
    tail: tuple[int, ...]
    static: bool = False

    @property
    def size(self) -> int:
        """Elements of one sample at one step."""
        return math.prod(self.shape)


@dataclass
class Node:
    """One operation.

    Attributes:
        op: "layer", "norm", "neuron", "maxpool", "avgpool", "adaptive", "reshape", "add", "and",
            "complement", "cat", "scale", "voting", "mean" (over time) or "torch".
        name: of the module, or of the module in which the operation stands.
        inputs: numbers of values.
        output: number of a value.
        module: the module, for those that are one.
        settings: what else the operation needs.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    output: int
    module: nn.Module | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """Nodes in the order in which the network ran them.

    Attributes:
        values: by number; number 0 is the input.
        nodes: in order.
        output: number of the value that the network returns.
        timed: the output has a dimension of time.
        sequence: the input has one, ``[T, N, *]``; else it is ``[N, *]``, shown `steps` times.
        steps: `T` of the input that the graph was made with.
    """

    values: list[Value]
    nodes: list[Node]
    output: int
    timed: bool
    sequence: bool
    steps: int

    def users(self) -> list[int]:
        """Return how often each value is read; the network's caller reads the output."""
        counts = [0] * len(self.values)
        for node in self.nodes:
            for i in node.inputs:
                counts[i] += 1
        counts[self.output] += 1
        return counts


def check_input(x_seq: object) -> None:
    """Refuse what no network of spikes takes.

    Raises:
        TypeError: if it is no floating tensor, or an empty one.
    """
    if not isinstance(x_seq, Tensor) or not x_seq.is_floating_point() or 0 in x_seq.shape:
        got = f"{x_seq.dtype} {tuple(x_seq.shape)}" if isinstance(x_seq, Tensor) else type(x_seq)
        raise TypeError(f"Expected x_seq to be a floating tensor with elements but got {got}")


def as_map(tail: tuple[int, ...]) -> tuple[int, int, int]:
    """Return ``(C, H, W)`` for the dimensions behind time and batch.

    Raises:
        UnsupportedError: for more than three of them.
    """
    if len(tail) > 3:
        raise UnsupportedError(
            f"Expected values [T, N, C, H, W] or smaller but got {tail} behind time and batch: "
            "maps of three dimensions (Conv3d, MaxPool3d) are not understood"
        )
    channels = tail[0] if tail else 1
    space = tail[1:]
    return channels, space[0] if len(space) == 2 else 1, space[-1] if space else 1
