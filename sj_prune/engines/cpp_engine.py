"""The CPU engine: `lif.cpp` behind ctypes."""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from sj_prune.engines import build, torch_engine
from sj_prune.engines.memory import Layout, copy_back
from sj_prune.engines.request import requested
from sj_prune.neurons.reference import IF, LIF, PLIF, Equations
from sj_prune.neurons.statistics import TABLE, Statistic, macros, rows_of
from sj_prune.neurons.surrogates import KNOWN, Known, form_of

logger = logging.getLogger("sj_prune")

# ForwardArguments and BackwardArguments of lif.cpp. Packed: ctypes takes 1 us an argument.
_FORWARD = struct.Struct("8P8q4dq")
_BACKWARD = struct.Struct("8P5q4dq")
_GRAIN = 1 << 15  # element-steps that make up for waking a thread, as in torch's own loops


def available() -> str | None:
    """Return None if the engine runs here, else why not."""
    return build.problem()


partial_rows = torch_engine.partial_rows


class _Variant(NamedTuple):
    """One compilation of `lif.cpp`; settings that a pass ignores are empty, to compile fewer."""

    backward: bool
    kind: int
    decay_input: bool
    detach: bool
    surrogate: str
    statistics: tuple[Statistic, ...]
    store: int
    grads: int
    double: bool

    def defines(self) -> dict[str, object]:
        """Return the macros, explained in `step.h` and `lif_block.h`."""
        numbers = ("backward", "kind", "decay_input", "detach", "store", "grads")
        defined: dict[str, object] = {f"SJ_{n.upper()}": int(getattr(self, n)) for n in numbers}
        if self.surrogate:
            defined["SJ_SURROGATE"] = self.surrogate
        return {
            **defined,
            **macros(self.statistics),
            "SJ_TYPE": "double" if self.double else "float",
        }

    def __str__(self) -> str:
        """Return what a user may be told."""
        told = [f"CPU engine, {'backward' if self.backward else 'forward'} pass of {self._node()}"]
        recorded = [name for name, row in TABLE.items() if row in self.statistics]
        told += [f"recording {' '.join(recorded)}"] if recorded else []
        told += ["stored sequences"] if self.store else []
        told += ["float64"] if self.double else []
        return ", ".join(told)

    def _node(self) -> str:
        decay = "" if self.decay_input or self.kind == IF else " without decay_input"
        node = f"{('IF', 'LIF', 'PLIF')[self.kind]} nodes{decay}"
        names = [cls.__name__ for cls, form in KNOWN.items() if form.code == self.surrogate]
        return f"{node} with {names[0]}" if names else node


def _forward_variant(
    eq: Equations, known: Known, statistics: int, store: int, dtype: torch.dtype
) -> _Variant:
    rows = rows_of(statistics)
    surrogate = form_of(known).code if store & 2 or "g" in [row.of for row in rows] else ""
    decay_input, double = eq.decay_input and eq.kind != IF, dtype == torch.float64
    return _Variant(False, eq.kind, decay_input, False, surrogate, rows, store, 0, double)


def _backward_variant(eq: Equations, known: Known, grads: int, dtype: torch.dtype) -> _Variant:
    decay_input, double = eq.decay_input and eq.kind != IF, dtype == torch.float64
    code = form_of(known).code
    return _Variant(True, eq.kind, decay_input, eq.detach_reset, code, (), 0, grads, double)


@functools.cache
def _library(variant: _Variant) -> ctypes.CDLL | str:
    """Return the library of a variant, or why it cannot be had: that is not tried again."""
    try:
        library = build.load(variant.defines(), str(variant))
    except build.BuildError as error:
        if requested() == "auto":
            logger.warning("%s cannot be compiled, plain torch serves: %s", variant, error)
        return str(error)
    run = library.sj_backward if variant.backward else library.sj_forward
    run.argtypes, run.restype = [ctypes.c_char_p], None
    library.sj_tile.restype = ctypes.c_int64
    return library


def _serving(variant: _Variant, eq: Equations) -> ctypes.CDLL | None:
    """Return the library of a variant, or None where plain torch serves.

    Raises:
        RuntimeError: if there is none and ``SJ_PRUNE_ENGINE`` forces this engine.
    """
    if eq.v_reset is None and math.isinf(eq.v_threshold):
        return None  # a potential of inf * 0: see `settle` in step.h
    library = _library(variant)
    if not isinstance(library, str):
        return library
    if requested() == "cpp":
        raise RuntimeError(
            f"Expected engine 'cpp' (SJ_PRUNE_ENGINE) to serve, but {variant} cannot be compiled: "
            f"{library}; unset it or set it to auto"
        )
    return None


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


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()  # 0 too for a tensor without elements


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
    spikes, v, partials, *sequences = outputs
    store = int(sequences[0].numel() > 0) | int(sequences[1].numel() > 0) << 1
    variant = _forward_variant(eq, known, statistics, store, x_seq.dtype)
    library = _serving(variant, eq)
    if library is None:
        torch_engine.forward(x_seq, v_init, w, eq, known, statistics, outputs)
        return
    layout = Layout.of(x_seq)
    x, v0 = layout.arrange(x_seq), layout.initial(v_init)
    buffers = [layout.writable(spikes), layout.writable(v), partials]
    buffers += map(layout.writable, sequences)
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
        int(any(v0.stride())),
        layout.last,
        eq.v_reset is not None,
        _has_exact_inverse(eq),
        *_numbers(eq, known, w),
        _threads(x),
    )
    library.sj_forward(arguments)
    copy_back(outputs, buffers)


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
    given_bits = int(grads[0] is not None) | int(grads[2] is not None) << 1
    library = _serving(_backward_variant(eq, known, given_bits, x_seq.dtype), eq)
    if library is None:
        torch_engine.backward(grads, x_seq, v_init, w, eq, known, outputs)
        return
    layout = Layout.of(x_seq)
    x, v0 = layout.arrange(x_seq), layout.initial(v_init)
    given = [None if g is None else layout.arrange(g) for g in grads]
    grad_x, grad_v, grad_w = outputs
    buffers = [layout.writable(grad_x), layout.writable(grad_v)]
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
        int(any(v0.stride())),
        eq.v_reset is not None,
        _has_exact_inverse(eq),
        threshold,
        rest,
        decay,
        alpha,
        _threads(x),
    )
    library.sj_backward(arguments)
    copy_back((grad_x, grad_v), buffers)
    if grad_q is not None:
        grad_w.copy_(grad_q.sum() * (decay * (1.0 - decay)))
