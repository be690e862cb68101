"""The engine of deployed networks: `deploy.cpp` behind ctypes.

Spikes are bytes ``[B, G, N, C, H, W]``: bit t of group g is step ``8 g + t``; the B planes are the
binary digits of a count, one for spikes. Buffers have `SLACK` bytes more than their elements.
"""

from __future__ import annotations

import ctypes
import functools
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sj_prune.engines import build
from sj_prune.neurons.reference import IF, LIF, Equations

SLACK = 64  # bytes behind a buffer that may be read
BITS, REALS, EVENTS, NEURONS = range(4)  # the kernels of deploy.cpp

_SOURCES = (
    "deploy.cpp",
    "deploy_events.h",
    "deploy_finish.h",
    "deploy_kernels.h",
    "deploy_pool.h",
    "deploy_rows.h",
    "deploy_tile.h",
    "step.h",
    "lanes.h",
)
# Layer, Pool and Addition of the C++ headers.
_LAYER = struct.Struct("10P21q4d")
_POOL = struct.Struct("2P17q")
_ADDITION = struct.Struct("3P4q")
_made: list[ctypes.CDLL] = []
_AT_REST = Equations(IF, 1.0, False, 1.0, None, True)


def problem() -> str | None:
    """Return None if the engine can be built here, else why not."""
    return build.problem()


def _inverse(eq: Equations) -> bool:
    """Tell whether tau is a power of two: then ``* (1 / tau)`` is ``/ tau`` to the last bit."""
    return eq.kind == LIF and math.frexp(eq.tau)[0] == 0.5


@functools.cache
def _variant(kind: int, decay_input: bool, hard: bool, inverse: bool) -> ctypes.CDLL:
    made = build.load(
        {
            "SJ_KIND": kind,
            "SJ_DECAY_INPUT": int(decay_input),
            "SJ_HARD": int(hard),
            "SJ_INVERSE": int(inverse),
            "SJ_DETACH": 1,  # only forward
        },
        "the engine of deployed networks",
        _SOURCES,
        "sj_layer",
        ("-ftree-vectorize", "-ftree-slp-vectorize"),
        patience=6.0,  # about ten times the neuron's own time
    )
    made.sj_layer.argtypes = [ctypes.c_char_p, ctypes.c_int64]
    made.sj_pool.argtypes = made.sj_add.argtypes = [ctypes.c_char_p]
    made.sj_unpack.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_double,
        ctypes.c_int64,
    ]
    made.sj_layer.restype = made.sj_pool.restype = None
    made.sj_add.restype = made.sj_unpack.restype = None
    made.sj_lanes.restype = ctypes.c_int64
    return made


def library(eq: Equations | None) -> ctypes.CDLL:
    """Return the engine for layers with neurons of these settings, or with none.

    Raises:
        RuntimeError: if it cannot be built; the message has the compiler's output.
    """
    if eq is None and _made:
        return _made[0]  # what has no neurons is the same in all variants
    eq = eq or _AT_REST
    made = _variant(eq.kind, eq.decay_input, eq.v_reset is not None, _inverse(eq))
    if not _made:
        _made.append(made)
    return made


@dataclass(frozen=True)
class Call:
    """One call of the engine with its arguments; buffers that it points to are kept alive."""

    function: Callable[..., object]
    arguments: tuple[object, ...]
    keeps: tuple[object, ...]

    def __call__(self) -> None:
        """Run it."""
        self.function(*self.arguments)


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def layer_call(
    kernel: int,
    eq: Equations | None,
    decay: float,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[int],
    rest_scale: float = 1.0,
) -> Call:
    """Return the call of one layer.

    Args:
        kernel: `BITS`, `REALS`, `EVENTS` or `NEURONS`.
        eq: settings of its neurons; None for real outputs.
        decay: ``sigmoid(w)`` for PLIF; not read otherwise.
        tensors: the ten of ``struct Layer``, in its order.
        numbers: the 21 integers of ``struct Layer``, in its order.
        rest_scale: what is added is multiplied by it.
    """
    settings = eq or _AT_REST
    if settings.kind == LIF:
        decay = 1.0 / settings.tau if _inverse(settings) else settings.tau
    packed = _LAYER.pack(
        *map(_pointer, tensors),
        *numbers,
        settings.v_threshold,
        settings.rest,
        decay,
        rest_scale,
    )
    return Call(library(eq).sj_layer, (packed, kernel), tuple(tensors))


def pool_call(given: Tensor, out: Tensor, numbers: Sequence[int]) -> Call:
    """Return the call of one pooling of packed spikes; `numbers` as in ``struct Pool``."""
    packed = _POOL.pack(given.data_ptr(), out.data_ptr(), *numbers)
    return Call(library(None).sj_pool, (packed,), (given, out))


def add_call(a: Tensor, b: Tensor, out: Tensor, planes: Sequence[int], size: int) -> Call:
    """Return the call that adds two counts of `size` bytes a plane; `planes` of a, b and out."""
    packed = _ADDITION.pack(a.data_ptr(), b.data_ptr(), out.data_ptr(), *planes, size)
    return Call(library(None).sj_add, (packed,), (a, b, out))


def unpack(given: Tensor, out: Tensor, steps: int, planes: int, scale: float, threads: int) -> None:
    """Write packed counts ``[B, G, *]`` times `scale` to `out`, ``[T, *]`` in float32."""
    size = out.numel() // steps
    library(None).sj_unpack(given.data_ptr(), out.data_ptr(), steps, planes, size, scale, threads)
