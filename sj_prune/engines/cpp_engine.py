"""The CPU engine: `lif.cpp` behind ctypes."""

from __future__ import annotations

import ctypes
import functools
import math
import struct

import torch
from torch import Tensor

from sj_prune.engines import build
from sj_prune.neurons.reference import LIF, PLIF, Equations, compute_dtype
from sj_prune.neurons.surrogates import Known

__all__ = ["available", "backward", "forward"]

# ForwardArguments and BackwardArguments of lif.cpp. Packed: ctypes takes 1 us an argument.
_FORWARD = struct.Struct("8P6q4dq")
_BACKWARD = struct.Struct("8P3q4dq")
_GRAIN = 1 << 15  # element-steps that make up for waking a thread, as in torch's own loops


def available() -> str | None:
    """Return None if the engine runs here, else why not."""
    return build.problem()


@functools.cache
def _library(
    kind: int,
    decay_input: bool,
    hard: bool,
    detach: bool,
    surrogate: int,
    statistics: int,
    dtype: torch.dtype,
    inverse: bool,
) -> ctypes.CDLL:
    library = build.load(
        {
            "SJ_KIND": kind,
            "SJ_DECAY_INPUT": int(decay_input),
            "SJ_HARD": int(hard),
            "SJ_DETACH": int(detach),
            "SJ_SURROGATE": surrogate,
            "SJ_STATISTICS": statistics,
            "SJ_INVERSE": int(inverse),
            "SJ_TYPE": "double" if dtype == torch.float64 else "float",
        }
    )
    library.sj_forward.argtypes = library.sj_backward.argtypes = [ctypes.c_char_p]
    library.sj_forward.restype = library.sj_backward.restype = None
    library.sj_tile.restype = ctypes.c_int64
    return library


def _variant(eq: Equations, known: Known, statistics: int, dtype: torch.dtype) -> ctypes.CDLL:
    hard = eq.v_reset is not None
    return _library(
        eq.kind,
        eq.decay_input,
        hard,
        eq.detach_reset,
        known.id,
        statistics,
        dtype,
        _has_exact_inverse(eq),
    )


def _has_exact_inverse(eq: Equations) -> bool:
    """Tell whether tau is a power of two: then ``* (1 / tau)`` is ``/ tau`` to the last bit."""
    return eq.kind == LIF and math.frexp(eq.tau)[0] == 0.5


def _threads(x: Tensor) -> int:
    """Return how many threads pay: waking them for a small layer costs more than it saves."""
    return max(1, min(torch.get_num_threads(), x.numel() // _GRAIN))


def _numbers(eq: Equations, known: Known, w: Tensor | None) -> tuple[float, ...]:
    decay = 1.0 / eq.tau if _has_exact_inverse(eq) else eq.tau
    if eq.kind == PLIF:
        assert w is not None  # noqa: S101
        decay = float((w if w.dtype == torch.float64 else w.float()).sigmoid())
    return eq.v_threshold, eq.rest, decay, known.alpha


def _channels_last(x_seq: Tensor) -> bool:
    """Tell whether ``[T, N, C, *]`` lies in memory as ``[T, N, *, C]``."""
    return x_seq.ndim > 3 and not x_seq.is_contiguous() and x_seq.movedim(2, -1).is_contiguous()


def _like(x_seq: Tensor, tensor: Tensor, last: bool) -> Tensor:
    """Return `tensor` (a sequence or one step) in the layout and type of the computation."""
    tensor = tensor.to(compute_dtype(x_seq.dtype))
    if not last:
        return tensor.contiguous()
    dim = 2 - (x_seq.ndim - tensor.ndim)
    return tensor.movedim(dim, -1).contiguous().movedim(-1, dim)


def _initial(x_seq: Tensor, v_init: Tensor, last: bool) -> tuple[Tensor, int]:
    """Return the initial potentials and their stride: 0 where all are one number in memory."""
    if not any(v_init.stride()) and v_init.dtype == compute_dtype(x_seq.dtype):
        return v_init, 0
    return _like(x_seq, v_init, last), 1


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()  # 0 too for a tensor without elements


def _result(out: Tensor, layout: Tensor) -> Tensor:
    """Return `out` if the engine can write into it, else a buffer to copy from."""
    fits = out.dtype == layout.dtype and out.stride() == layout.stride()
    return out if fits else torch.empty_like(layout)


def _step_result(out: Tensor, x: Tensor) -> Tensor:
    """Return `out` if the engine can write one step of `x` into it, else a buffer."""
    fits = out.dtype == x.dtype and out.stride() == x.stride()[1:]
    return out if fits else torch.empty_like(x[0])


def forward(
    x_seq: Tensor,
    v_init: Tensor,
    w: Tensor | None,
    eq: Equations,
    known: Known,
    statistics: int,
    outputs: tuple[Tensor, ...],
) -> None:
    """Fill `outputs` (spikes, v, partials, v_seq, h_seq, g_seq; empty where not wanted)."""
    last = _channels_last(x_seq)
    x = _like(x_seq, x_seq, last)
    v0, v0_stride = _initial(x_seq, v_init, last)
    spikes, v, partials, *sequences = outputs
    buffers = [_result(spikes, x), _step_result(v, x), partials]
    buffers += [_result(s, x) if s.numel() else s for s in sequences]
    steps, samples = x.shape[:2]
    channels = x.shape[2] if x.ndim > 2 else 1
    arguments = _FORWARD.pack(
        _pointer(x),
        _pointer(v0),
        *map(_pointer, buffers),
        steps,
        samples,
        channels,
        x.numel() // (steps * samples * channels),
        v0_stride,
        last,
        *_numbers(eq, known, w),
        _threads(x),
    )
    _variant(eq, known, statistics, x.dtype).sj_forward(arguments)
    for out, buffer in zip(outputs, buffers, strict=True):
        if out is not buffer:
            out.copy_(buffer)


def backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    x_seq: Tensor,
    v_init: Tensor,
    w: Tensor | None,
    eq: Equations,
    known: Known,
    outputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill `outputs` (gradients of x_seq, v_init and w; empty where not wanted)."""
    last = _channels_last(x_seq)
    x = _like(x_seq, x_seq, last)
    v0, v0_stride = _initial(x_seq, v_init, last)
    given = [None if g is None else _like(x_seq, g, last) for g in grads]
    grad_x, grad_v, grad_w = outputs
    buffers = [_result(grad_x, x), _step_result(grad_v, x) if grad_v.numel() else grad_v]
    library = _variant(eq, known, 0, x.dtype)
    grad_q = None
    if eq.kind == PLIF:
        grad_q = torch.empty(
            -(-x[0].numel() // library.sj_tile()), dtype=torch.float64, device="cpu"
        )
    threshold, rest, decay, alpha = _numbers(eq, known, w)
    arguments = _BACKWARD.pack(
        *map(_pointer, given),
        _pointer(x),
        _pointer(v0),
        *map(_pointer, buffers),
        _pointer(grad_q),
        x.shape[0],
        x.numel() // x.shape[0],
        v0_stride,
        threshold,
        rest,
        decay,
        alpha,
        _threads(x),
    )
    library.sj_backward(arguments)
    for out, buffer in zip((grad_x, grad_v), buffers, strict=True):
        if out is not buffer:
            out.copy_(buffer)
    if grad_q is not None:
        grad_w.copy_(grad_q.sum() * (decay * (1.0 - decay)))
