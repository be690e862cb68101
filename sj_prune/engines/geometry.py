"""How the CUDA engine cuts a tensor: elements a thread, grids, chunks of time.

Pure functions of shapes and alignments, without CuPy or a device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sj_prune.neurons.reference import PLIF

FORWARD_THREADS = 256
BACKWARD_THREADS = 128
_WARP = 32
_MOST_SPLITS = 65535  # gridDim.y


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _power(n: int) -> int:
    """Return the smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()


def width(most: int, sizes: Iterable[int], tensors: Sequence[Tensor | None]) -> int:
    """Return the elements a thread moves: a power of two of at most `most`.

    It divides all `sizes`, and accesses of so many elements (in words of at most 16 bytes) to
    `tensors` are aligned.
    """
    common = math.gcd(most, *sizes)
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            size = tensor.element_size()
            # gcd with 16 is the alignment up to which this pointer goes; 16 serves any width.
            alignment = math.gcd(16, tensor.data_ptr())
            common = math.gcd(common, most if alignment == 16 else max(1, alignment // size))
    return common & -common


@dataclass(frozen=True)
class Grid:
    """A launch of ``sj_rows`` or ``sj_columns``: ``blocks`` is (x, y), y splits the map."""

    kernel: str
    blocks: tuple[int, int]
    lanes: int
    columns: int = 1

    @property
    def splits(self) -> int:
        """Number of blocks that share one map."""
        return self.blocks[1]


def _splits(blocks: int, iterations: int, processors: int) -> int:
    """Return over how many blocks to split a map so that the device has work enough."""
    if blocks >= 4 * processors:
        return 1
    return min(iterations, _ceil(8 * processors, blocks), _MOST_SPLITS)


def flat_grid(vectors: int) -> Grid:
    """Return the grid where nothing is reduced: all elements of a step are one row."""
    splits = min(_ceil(vectors, FORWARD_THREADS), _MOST_SPLITS)
    return Grid("sj_rows", (1, splits), FORWARD_THREADS)


def rows_grid(rows: int, vectors: int, processors: int) -> Grid:
    """Return the grid for channels first.

    Args:
        rows: samples times channels.
        vectors: size of the map over the elements of a thread.
        processors: multiprocessors of the device.
    """
    lanes = min(FORWARD_THREADS, _power(vectors))
    # Fewer threads a row mean fewer steps of reduction, while there are rows enough to fill the
    # device (2048 threads a multiprocessor) four times over.
    while lanes > _WARP and rows * lanes // 2 >= 8192 * processors:
        lanes //= 2
    blocks = _ceil(rows * lanes, FORWARD_THREADS)
    return Grid("sj_rows", (blocks, _splits(blocks, _ceil(vectors, lanes), processors)), lanes)


def columns_grid(samples: int, vectors: int, elements: int, processors: int) -> Grid:
    """Return the grid for channels last.

    Args:
        samples: batch size.
        vectors: channels over the elements of a thread.
        elements: size of the map.
        processors: multiprocessors of the device.
    """
    most = FORWARD_THREADS if elements == 1 else _WARP
    columns = min(most, _power(vectors))
    lanes = min(FORWARD_THREADS // columns, _power(elements))
    together = FORWARD_THREADS // (columns * lanes)
    blocks = _ceil(vectors, columns) * _ceil(samples, together)
    splits = _splits(blocks, _ceil(elements, lanes), processors)
    return Grid("sj_columns", (blocks, splits), lanes, columns)


def chunk_and_width(kind: int, steps: int, itemsize: int) -> tuple[int, int]:
    """Return steps and elements whose potentials a thread of the backward pass keeps.

    Their product is at most 64 (PLIF, which keeps two values: 32), so that registers suffice. More
    steps than fit with four elements a thread are cut into chunks, at the price of reading the
    input twice.
    """
    budget = 32 if kind == PLIF else 64
    chunk = min(max(4, _power(steps)), budget // 4)
    return chunk, min(16 // itemsize, budget // chunk)


@dataclass(frozen=True)
class ForwardPlan:
    """How a forward pass is cut: the tensor as the kernels see it, and their grid."""

    samples: int
    channels: int
    elements: int
    last: bool
    vec: int
    grid: Grid


def forward_plan(
    x: Tensor, last: bool, statistics: int, tensors: Sequence[Tensor], processors: int
) -> ForwardPlan:
    """Plan the forward pass over `x` ``[T, N, C, *]`` (or ``[T, N]``, one channel).

    Args:
        x: the input, contiguous or channels-last in memory.
        last: which of the two.
        statistics: bits of the wanted statistics.
        tensors: all tensors accessed element by element.
        processors: multiprocessors of the device.
    """
    channels = x.shape[2] if x.ndim > 2 else 1
    samples, elements = x.shape[1], x[0, 0].numel() // channels
    if not statistics:  # nothing to reduce: everything is one row
        samples, channels, elements, last = 1, 1, samples * channels * elements, False
    elif elements == 1:  # nothing to reduce over the map: everything is one sample
        samples, channels, last = 1, samples * channels, True
    vec = width(16 // x.element_size(), (channels if last else elements,), tensors)
    if not statistics:
        grid = flat_grid(elements // vec)
    elif last:
        grid = columns_grid(samples, channels // vec, elements, processors)
    else:
        grid = rows_grid(samples * channels, elements // vec, processors)
    return ForwardPlan(samples, channels, elements, last, vec, grid)


@dataclass(frozen=True)
class BackwardPlan:
    """How a backward pass is cut."""

    chunk: int
    vec: int
    blocks: int
    chunks: int


def backward_plan(
    x: Tensor, kind: int, tensors: Sequence[Tensor | None], processors: int
) -> BackwardPlan:
    """Plan the backward pass over `x` ``[T, *]``; arguments as in `forward_plan`."""
    steps, elements = x.shape[0], x[0].numel()
    chunk, most = chunk_and_width(kind, steps, x.element_size())
    vec = width(most, (elements,), tensors)
    blocks = min(_ceil(elements // vec, BACKWARD_THREADS), 2**31 - 1)
    if kind == PLIF:  # each block leaves one sum to add up
        blocks = min(blocks, 8 * processors)
    return BackwardPlan(chunk, vec, blocks, _ceil(steps, chunk))
