"""How the CUDA engine cuts a tensor: elements a thread, grids, chunks of time.

Pure functions of shapes and alignments, without CuPy or a device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sj_prune.neurons.reference import PLIF

FORWARD_THREADS = 256
BACKWARD_THREADS = 128
_WARP = 32
_KEPT = 64  # potentials in registers of a thread
_MOST_SPLITS = 65535  # gridDim.y
_WORTH = 0.05  # of the threads that must idle less for a step of shared memory
_MANY = 1024  # threads a multiprocessor holds, and more than it does with these kernels


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
    """A launch of a forward kernel: ``blocks`` is (x, y), y splits the map.

    Attributes:
        lanes: threads along the map (``sj_groups``: that join one row).
        columns: threads along the channels.
        group: rows a block (``sj_groups``).
        idle: fraction of a block's threads times rounds without an element.
    """

    kernel: str
    blocks: tuple[int, int]
    lanes: int
    columns: int = 1
    group: int = 1
    threads: int = FORWARD_THREADS
    idle: float = 0.0

    @property
    def splits(self) -> int:
        """Number of blocks that share one map."""
        return self.blocks[1]


def _splits(blocks: int, iterations: int, processors: int) -> int:
    """Return over how many blocks to split a map so that the device has work enough."""
    if blocks >= 4 * processors:
        return 1
    return min(iterations, _ceil(8 * processors, blocks), _MOST_SPLITS)


def _idle(work: int, width: int) -> float:
    """Return the fraction of `width` threads that find nothing to do while they go through it."""
    return 1.0 - work / (_ceil(work, width) * width)


def _lanes(maps: int, most: int, vectors: int, processors: int) -> int:
    """Return the threads, at most `most`, along a map of `vectors` that idle least.

    Few of them save steps of the reduction, while all `maps` have threads enough for the device;
    eight read 128 bytes side by side.
    """
    most = min(most, _power(vectors))
    choices = [most]
    while choices[-1] > 8 and maps * choices[-1] // 2 >= _MANY * processors:
        choices.append(choices[-1] // 2)
    return min(reversed(choices), key=lambda lanes: _idle(vectors, lanes))


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
    lanes = _lanes(rows, FORWARD_THREADS, vectors, processors)
    blocks = _ceil(rows * lanes, FORWARD_THREADS)
    splits = _splits(blocks, _ceil(vectors, lanes), processors)
    return Grid("sj_rows", (blocks, splits), lanes, idle=_idle(vectors, lanes))


def groups_grid(rows: int, elements: int, vec: int, processors: int) -> Grid | None:
    """Return the grid for channels first where a block has several rows; None for large maps.

    Args:
        rows: samples times channels.
        elements: size of the map, at least `vec`.
        vec: elements of a thread, which divide all elements of a step but perhaps no map.
        processors: multiprocessors of the device.
    """
    together = vec // math.gcd(vec, elements)  # rows that end where a thread's elements do
    best, least = None, math.inf
    for rounds, warps in itertools.product(range(1, 17), range(FORWARD_THREADS // _WARP, 0, -1)):
        threads = warps * _WARP
        group = min(rounds * threads * vec // elements, threads, _ceil(rows, together) * together)
        group -= group % together
        if not group:
            continue
        blocks = _ceil(rows, group)
        if rounds > 4 and blocks < processors:
            continue
        # Rounds until all is done, 512 threads at a time on each multiprocessor.
        cost = rounds * max(1.0, blocks * threads / (512 * processors))
        if cost < 0.99 * least:
            lanes = min(_WARP, _power(threads // group + 1) // 2)
            idle = 1.0 - group * elements / (rounds * threads * vec)
            best = Grid("sj_groups", (blocks, 1), lanes, 1, group, threads, idle)
            least = cost
    return best


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
    lanes = _lanes(samples * columns, FORWARD_THREADS // columns, elements, processors)
    together = FORWARD_THREADS // (columns * lanes)
    blocks = _ceil(vectors, columns) * _ceil(samples, together)
    splits = _splits(blocks, _ceil(elements, lanes), processors)
    return Grid("sj_columns", (blocks, splits), lanes, columns, idle=_idle(elements, lanes))


def partial_rows(samples: int, channels: int, itemsize: int, processors: int) -> int:
    """Return rows of partials of maps of one element: of as many samples as a block has lanes.

    More, up to 64, while there are blocks enough.
    """
    vectors = _ceil(channels, 16 // itemsize)
    columns = min(_WARP, _power(vectors))
    together, tiles = FORWARD_THREADS // columns, _ceil(vectors, columns)
    while together < 64 and tiles * _ceil(samples, together) >= 8 * processors:
        together *= 2
    return _ceil(samples, together)


def chunk_and_width(steps: int, itemsize: int) -> tuple[int, int]:
    """Return steps and elements whose potentials a thread of the backward pass keeps.

    Their product is at most 64, so that registers suffice. Up to 64 steps the input is read once,
    by threads of fewer elements where there are more than 16; then there are chunks of 64 steps,
    at the price of reading all but the last of these twice. The last steps of a chunk are idle
    where the sequence ends before: it is as long as that, in steps of the loads in flight.
    """
    unit = 4 if steps <= 32 else 8
    chunk = min(unit * _ceil(steps, unit), _KEPT)
    return chunk, min(16 // itemsize, _power(_KEPT // chunk + 1) // 2)


@dataclass(frozen=True)
class ForwardPlan:
    """How a forward pass is cut: the tensor as the kernels see it, and their grid."""

    samples: int
    channels: int
    elements: int
    last: bool
    vec: int
    grid: Grid


def forward_plan(  # noqa: PLR0917
    x: Tensor,
    last: bool,
    statistics: int,
    tensors: Sequence[Tensor],
    processors: int,
    rows: int | None = None,
) -> ForwardPlan:
    """Plan the forward pass over `x` ``[T, N, C, *]`` (or ``[T, N]``, one channel).

    Args:
        x: the input, contiguous or channels-last in memory.
        last: which of the two.
        statistics: bits of the wanted statistics.
        tensors: all tensors accessed element by element.
        processors: multiprocessors of the device.
        rows: `partial_rows`; by default the samples.
    """
    channels = x.shape[2] if x.ndim > 2 else 1
    samples, elements = x.shape[1], x[0, 0].numel() // channels
    if not statistics:  # nothing to reduce: everything is one row
        samples, channels, elements, last = 1, 1, samples * channels * elements, False
    elif rows is not None and rows < samples:  # samples stand for the elements of a map
        samples, elements, last = rows, _ceil(samples, rows), True
    elif elements == 1:  # nothing to reduce over the map: everything is one sample
        samples, channels, last = 1, samples * channels, True
    most = 16 // x.element_size()
    vec = width(most, (channels if last else elements,), tensors)
    if not statistics:
        grid = flat_grid(elements // vec)
    elif last:
        grid = columns_grid(samples, channels // vec, elements, processors)
    else:
        rows = samples * channels
        grid = rows_grid(rows, elements // vec, processors)
        wide = width(min(most, _power(elements + 1) // 2), (rows * elements,), tensors)
        groups = groups_grid(rows, elements, wide, processors)
        if groups and (wide > vec or grid.idle > groups.idle + _WORTH):
            vec, grid = wide, groups
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
    chunk, most = chunk_and_width(steps, x.element_size())
    vec = width(most, (elements,), tensors)
    blocks = min(_ceil(elements // vec, BACKWARD_THREADS), 2**31 - 1)
    if kind == PLIF:  # each block leaves one sum to add up
        blocks = min(blocks, 8 * processors)
    return BackwardPlan(chunk, vec, blocks, _ceil(steps, chunk))
