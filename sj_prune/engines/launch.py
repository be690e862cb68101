"""What the CUDA engine launches: variants of `lif.cu` and their argument blocks.

Without CuPy or a device: the tests run the same launches on the host.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from sj_prune.neurons.reference import IF, LIF, Equations
from sj_prune.neurons.statistics import Statistic, macros, rows_of
from sj_prune.neurons.surrogates import Known, form_of

_TYPES = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat16"}


@dataclass(frozen=True)
class Variant:
    """One compilation of `lif.cu`; the fields are its macros, explained there and in `step.h`."""

    kind: int
    decay_input: int
    hard: int
    detach: int
    inverse: int
    surrogate: str
    type: str
    vec: int
    statistics: tuple[Statistic, ...] = ()
    store: int = 0
    chunk: int = 0
    grads: int = 0

    def options(self) -> tuple[str, ...]:
        """Return the macros as compiler options."""
        defined = {f"SJ_{f.name.upper()}": getattr(self, f.name) for f in fields(self)}
        defined |= macros(defined.pop("SJ_STATISTICS"))
        return tuple(f"-D{name}={value}" for name, value in defined.items() if value != "")


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
        surrogate=form_of(known).code,
        type=_TYPES[dtype],
        vec=vec,
    )


def forward_variant(  # noqa: PLR0917
    eq: Equations,
    known: Known,
    dtype: torch.dtype,
    vec: int,
    statistics: int,
    store: int,
    summed: bool = False,
) -> Variant:
    """Return the forward variant; settings that it ignores are empty, to compile fewer.

    Where maps are of one element, each its own maximum, samples may be `summed`.
    """
    rows = rows_of(statistics)
    if summed:
        rows = tuple([row._replace(maximum=False) for row in rows])
    full = _variant(eq, known, dtype, vec)
    surrogate = full.surrogate if store & 2 or "g" in [row.of for row in rows] else ""
    return replace(full, detach=0, surrogate=surrogate, statistics=rows, store=store)


def backward_variant(
    eq: Equations, known: Known, dtype: torch.dtype, vec: int, chunk: int, grads: int
) -> Variant:
    """Return the backward variant."""
    return replace(_variant(eq, known, dtype, vec), chunk=chunk, grads=grads)


_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int, ctypes.c_float
_NEURON = [(name, _FLOAT) for name in ("threshold", "reset", "decay", "alpha")]


def _pointers(names: str) -> list[tuple[str, Any]]:
    return [(name, _POINTER) for name in names.split()]


class ForwardArguments(ctypes.Structure):
    """Argument of ``sj_rows``, ``sj_groups`` and ``sj_columns``."""

    _fields_ = [
        *_pointers("x v0 q spikes v partials v_seq h_seq g_seq"),
        *((name, _LONG) for name in ("stride", "units", "channels", "map", "positions")),
        *((name, _INT) for name in ("steps", "group", "log_lanes", "log_columns", "v0_each")),
        ("per_element", _FLOAT),
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
