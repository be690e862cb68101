"""Samples of a pass joined to the statistics of a layer on CUDA with one launch: `collect.cu`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sj_prune.engines.cupy_device import Launch, Source, available, run
from sj_prune.engines.request import requested

# As in `collect.cu`.
_THREADS, _COLUMNS, _ROWS = 256, 32, 64
_MOST = 65535  # gridDim.y


class CollectArguments(ctypes.Structure):
    """Argument of ``sj_collect``."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("partials", "sums", "samples", "overflowed", "scratch", "ticket")
        ),
        *((name, ctypes.c_longlong) for name in ("rows", "columns", "count", "each")),
    ]


def serves(partials: Tensor) -> bool:
    """Tell whether `collect` is for these: single precision on CUDA, where CuPy runs."""
    if partials.device.type != "cuda" or partials.dtype != torch.float32:
        return False
    return requested() in ("auto", "cupy") and available() is None


def collect(  # noqa: PLR0917
    partials: Tensor,
    count: int,
    sums: Tensor,
    samples: Tensor,
    overflowed: Tensor,
    ticket: Tensor,
) -> None:
    """Add the finite samples of a pass, as `Activity.update` does.

    Args:
        partials: ``[R, C, k]``, float32.
        count: the samples that they are of.
        sums: ``[C, k]``, float64 and contiguous.
        samples: how many were added, one int64.
        overflowed: how many were not.
        ticket: an int32 of the caller's that is 0 before and after.
    """
    partials, rows, columns = partials.contiguous(), len(partials), sums.numel()
    blocks = -(-columns // _COLUMNS), min(-(-rows // _ROWS), _MOST)
    scratch = sums.new_empty(blocks[1], columns)
    tensors = (partials, sums, samples, overflowed, scratch, ticket)
    pointers = [tensor.data_ptr() for tensor in tensors]
    arguments = CollectArguments(*pointers, rows, columns, count, -(-count // rows))
    run(partials.device, Source("collect.cu"), Launch("sj_collect", blocks, _THREADS, arguments))
