"""What the CUDA engine launches: variants of `lif.cu`, launch geometry, argument blocks.

Pure functions of shapes and alignments, without CuPy or a device: the tests run the same launches
on the host.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sj_prune.neurons.activity import STATISTICS
from sj_prune.neurons.reference import IF, LIF, PLIF, Equations
from sj_prune.neurons.surrogates import Known

__all__ = [
    "BackwardArguments",
    "BackwardPlan",
    "FinishArguments",
    "ForwardArguments",
    "ForwardPlan",
    "Launch",
    "MergeArguments",
    "Variant",
    "backward_plan",
    "backward_variant",
    "forward_plan",
    "forward_variant",
    "neuron",
]

FORWARD_THREADS = 256
BACKWARD_THREADS = 128
_WARP = 32
_MOST_SPLITS = 65535  # gridDim.y
_TYPES = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat16"}
_CRITICALITY = 1 << STATISTICS.index("criticality_mean") | 1 << STATISTICS.index("criticality_max")


@dataclass(frozen=True)
class Variant:
    """One compilation of `lif.cu`; the fields are its macros, explained there and in `step.h`."""

    kind: int
    decay_input: int
    hard: int
    detach: int
    inverse: int
    surrogate: int
    type: str
    vec: int
    statistics: int = 0
    store: int = 0
    chunk: int = 0
    grads: int = 0

    def options(self) -> tuple[str, ...]:
        """Return the macros as compiler options."""
        return tuple(f"-DSJ_{name.upper()}={value}" for name, value in asdict(self).items())


def _single(value: float) -> float:
    return ctypes.c_float(value).value


def has_exact_inverse(tau: float) -> bool:
    """Tell whether ``x / tau`` equals ``x * (1 / tau)`` to the last bit, in single precision."""
    return math.frexp(_single(tau))[0] == 0.5


def _variant(eq: Equations, known: Known, dtype: torch.dtype, vec: int) -> Variant:
    if dtype not in _TYPES:
        raise TypeError(f"Expected x_seq of the CUDA engine in {list(_TYPES)} but got {dtype}")
    return Variant(
        kind=eq.kind,
        decay_input=int(eq.decay_input and eq.kind != IF),
        hard=int(eq.v_reset is not None),
        detach=int(eq.detach_reset),
        inverse=int(eq.kind == LIF and has_exact_inverse(eq.tau)),
        surrogate=known.id,
        type=_TYPES[dtype],
        vec=vec,
    )


def forward_variant(
    eq: Equations, known: Known, dtype: torch.dtype, vec: int, statistics: int, store: int
) -> Variant:
    """Return the forward variant; settings that it ignores are set to 0, to compile fewer."""
    wants_derivative = statistics & _CRITICALITY or store & 2
    full = _variant(eq, known, dtype, vec)
    surrogate = full.surrogate if wants_derivative else 0
    return replace(full, detach=0, surrogate=surrogate, statistics=statistics, store=store)


def backward_variant(
    eq: Equations, known: Known, dtype: torch.dtype, vec: int, chunk: int, grads: int
) -> Variant:
    """Return the backward variant."""
    return replace(_variant(eq, known, dtype, vec), chunk=chunk, grads=grads)


# ---- geometry ------------------------------------------------------------------------------------


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


# ---- arguments -----------------------------------------------------------------------------------

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int, ctypes.c_float
_NEURON = [(name, _FLOAT) for name in ("threshold", "reset", "decay", "alpha")]


def _pointers(names: str) -> list[tuple[str, Any]]:
    return [(name, _POINTER) for name in names.split()]


class ForwardArguments(ctypes.Structure):
    """Argument of ``sj_rows`` and ``sj_columns``."""

    _fields_ = [
        *_pointers("x v0 q spikes v partials v_seq h_seq g_seq"),
        *((name, _LONG) for name in ("stride", "units", "channels", "map")),
        *((name, _INT) for name in ("steps", "log_lanes", "log_columns", "v0_each")),
        *_NEURON,
    ]


class MergeArguments(ctypes.Structure):
    """Argument of ``sj_merge``."""

    _fields_ = [*_pointers("scratch partials"), ("count", _LONG), ("splits", _INT)]


class BackwardArguments(ctypes.Structure):
    """Argument of ``sj_backward``."""

    _fields_ = [
        *_pointers("grad_spikes grad_v grad_v_seq x v0 q grad_x grad_v0 grad_q starts"),
        ("elements", _LONG),
        ("steps", _INT),
        ("v0_each", _INT),
        *_NEURON,
    ]


class FinishArguments(ctypes.Structure):
    """Argument of ``sj_finish``."""

    _fields_ = [*_pointers("grad_q q grad_w"), ("blocks", _INT)]


def neuron(eq: Equations, known: Known) -> dict[str, float]:
    """Return the numbers of a layer by field; PLIF's `decay` is read from the device instead."""
    decay = 1.0 / _single(eq.tau) if eq.kind == LIF and has_exact_inverse(eq.tau) else eq.tau
    return {
        "threshold": eq.v_threshold,
        "reset": eq.rest,
        "decay": decay,
        "alpha": known.alpha,
    }


@dataclass(frozen=True)
class Launch:
    """One kernel launch; all of a call use the same variant."""

    kernel: str
    blocks: tuple[int, int]
    threads: int
    arguments: ctypes.Structure
