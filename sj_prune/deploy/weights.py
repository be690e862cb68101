"""The weights of a layer as the engine reads them: only those that are not 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sj_prune.deploy.plan import Form, Layer

_ENTRY = np.dtype([("row", np.uint32), ("weight", np.float32)])


@dataclass
class Entries:
    """A sparse matrix.

    Attributes:
        start: where each row's entries start, int64.
        entries: pairs of uint32 and float32, as int64 in memory.
    """

    start: Tensor
    entries: Tensor


@dataclass
class Weights:
    """What one layer keeps.

    Attributes:
        bias: ``[C_out]`` in float32, or None.
        density: the fraction of weights that are not 0.
        number: how many are not 0.
        dense: folded weights in float32, while they are needed: for the dense kernel.
        by_output: for the kernels that go over output channels.
        by_input: for the event kernel, ``[kH, kW, planes, C_in, C_out]``; `C_out` filled up to a
            multiple of 16.
    """

    bias: Tensor | None
    density: float
    number: int
    dense: Tensor | None
    by_output: Entries | None = None
    by_input: Tensor | None = None

    def read_by(self, kernel: str) -> tuple[Tensor | None, Tensor | None]:
        """Return where rows start, and entries, as the engine's kernel of this name reads them."""
        if kernel == "events":
            return None, self.by_input
        return (self.by_output.start, self.by_output.entries) if self.by_output else (None, None)

    def bytes(self) -> int:
        """Return how much memory it takes."""
        tensors = [self.bias, self.dense, self.by_input]
        if self.by_output:
            tensors += [self.by_output.start, self.by_output.entries]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def entries(layer: Layer, form: Form, groups: int, channels: int) -> tuple[np.ndarray, ...]:
    """Return output channel, row of a tile and weight of everything that is multiplied.

    Args:
        layer: with weights.
        form: of its input; each plane is multiplied with its own multiple of a weight.
        groups: of the convolution.
        channels: of its input.

    Returns:
        int64, int64 and float32 arrays, sorted by output channel.
    """
    assert layer.weight is not None  # noqa: S101
    # The product with the scale in float64, then one rounding: as exact as a folded norm.
    weight = (layer.weight * form.scale).float().numpy()
    outputs, inner, i, j = np.nonzero(weight)
    values = weight[outputs, inner, i, j]
    height, width = weight.shape[2:]
    group = outputs // (weight.shape[0] // groups)
    rows = ((group * weight.shape[1] + inner) * height + i) * width + j
    planes = max(form.planes, 1)
    if planes > 1:
        size = channels * height * width
        rows = np.concatenate([rows + b * size for b in range(planes)])
        values = np.concatenate([values * np.float32(1 << b) for b in range(planes)])
        outputs = np.tile(outputs, planes)
        order = np.argsort(outputs, kind="stable")
        outputs, rows, values = outputs[order], rows[order], values[order]
    return outputs, rows, values


def matrix(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, count: int) -> Entries:
    """Return a sparse matrix of `count` rows; what came first in a row stays first."""
    order = np.argsort(rows, kind="stable")
    packed = np.empty(len(values) + 8, _ENTRY)  # never empty
    packed["row"][: len(values)], packed["weight"][: len(values)] = columns[order], values[order]
    start = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=count), out=start[1:])
    return Entries(torch.from_numpy(start), torch.from_numpy(packed.view(np.int64)))


def by_input(layer: Layer, form: Form) -> Tensor:
    """Return all weights as the event kernel reads them, see `Weights`."""
    assert layer.weight is not None  # noqa: S101
    weight = (layer.weight * form.scale).float().permute(2, 3, 1, 0)
    weight = F.pad(weight, (0, -weight.shape[-1] % 16))
    planes = [weight * (1 << b) for b in range(form.planes)]
    return torch.stack(planes, 2).contiguous()
