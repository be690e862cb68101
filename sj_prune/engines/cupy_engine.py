"""The CUDA engine: `lif.cu` through CuPy, which only this module imports.

Kernels run on torch's current stream and device and touch only torch's memory, so a call that was
run once before can be captured in a CUDA graph. Contiguous and channels-last tensors are used as
they are, other layouts copied.

CuPy compiles with ``-ftz=true``: a potential below 1.2e-38 counts as 0.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sj_prune.engines import geometry, launch
from sj_prune.engines.launch import Launch, Variant
from sj_prune.engines.memory import Layout, copy_back
from sj_prune.neurons.reference import PLIF, Equations
from sj_prune.neurons.surrogates import Known

logger = logging.getLogger("sj_prune")

_EXTRAS = (12, 13)  # CUDA releases of the extras in setup.cfg
# No contraction into fused multiply-adds: spikes equal the reference.
OPTIONS = ("-std=c++17", "--fmad=false")


@functools.cache
def available() -> str | None:
    """Return None if the engine runs here, else why not and what to install."""
    built = torch.version.cuda
    if built is None or not torch.cuda.is_available():
        return "torch sees no CUDA device"
    major = int(built.split(".")[0])
    if major not in _EXTRAS:
        return f"torch is built for CUDA {major}: no extra of sj_prune brings a CuPy that fits"
    extra = f"pip install sj_prune[cuda{major}]"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error}): {extra}"
    except OSError as error:  # it makes the folder of its cache
        return (
            f"CuPy cannot be imported ({error}): set CUPY_CACHE_DIR to a folder that can be written"
        )
    found = cupy.cuda.runtime.runtimeGetVersion() // 1000
    if found != major:
        return f"CuPy is built for CUDA {found} but torch for CUDA {major}: {extra}"
    return None


@functools.cache
def source() -> str:
    """Return `lif.cu` with `step.h` in it, so that CuPy's disk cache sees a change of either."""
    folder = Path(__file__).parent
    header = (folder / "step.h").read_text().replace("#pragma once\n", "")
    header = header.replace('#include "lanes.h"\n', "")  # in its branch for hosts
    return (folder / "lif.cu").read_text().replace('#include "step.h"\n', header)


# ---- CuPy ----------------------------------------------------------------------------------------


@functools.cache
def _module(device: int, variant: Variant) -> Any:  # noqa: ANN401
    """Return the module of `variant` on the current device, which is number `device`."""
    import cupy

    logger.debug("compiling %s for CUDA device %d", variant, device)
    return cupy.RawModule(code=source(), options=(*OPTIONS, *variant.options()))


@functools.cache
def _kernel(device: int, variant: Variant, name: str) -> Any:  # noqa: ANN401
    return _module(device, variant).get_function(name)


class _Stream:
    """A stream of torch for CuPy; torch's own class speaks this protocol only in late releases."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[int]:
    """Make torch's current stream of `device` CuPy's; yield the device's number."""
    import cupy

    stream = torch.cuda.current_stream(device)
    index = stream.device_index
    if hasattr(cupy.cuda.Stream, "from_external"):
        theirs = cupy.cuda.Stream.from_external(_Stream(stream.cuda_stream))
    else:  # CuPy 13
        theirs = cupy.cuda.ExternalStream(stream.cuda_stream, index)
    with torch.cuda.device(index), cupy.cuda.Device(index), theirs:
        yield index


def _by_value(arguments: Any) -> np.ndarray:  # noqa: ANN401
    """Return an argument block as CuPy passes it: an array of one item of that many bytes."""
    return np.frombuffer(arguments, dtype=np.dtype((np.void, len(bytes(arguments)))), count=1)


def _run(device: torch.device, variant: Variant, *launches: Launch) -> None:
    with _on(device) as index:
        for one in launches:
            kernel = _kernel(index, variant, one.kernel)
            kernel(one.blocks, (one.threads,), (_by_value(one.arguments),))


@functools.cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


# ---- tensors -------------------------------------------------------------------------------------


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _each(v0: Tensor) -> tuple[Tensor, ...]:
    """Return the initial potentials if each has its own place in memory, else nothing."""
    return (v0,) if any(v0.stride()) else ()


def _pointers(**tensors: Tensor | None) -> dict[str, int | None]:
    return {name: _pointer(tensor) for name, tensor in tensors.items()}


def _q(w: Tensor | None) -> Tensor | None:
    """Return PLIF's ``sigmoid(w)`` in single precision; it stays on the device."""
    if w is None:
        return None
    return (w if w.dtype == torch.float64 else w.float()).sigmoid().float()


# ---- the two passes ------------------------------------------------------------------------------


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
    layout = Layout.of(x_seq)
    x, v0 = layout.arrange(x_seq, x_seq.dtype), layout.initial(v_init)
    spikes, v, partials, *sequences = outputs
    buffers = [layout.writable(spikes, x.dtype), layout.writable(v), partials]
    buffers += map(layout.writable, sequences)
    elementwise = (x, *_each(v0), *buffers[:2], *buffers[3:])
    plan = geometry.forward_plan(x, layout.last, statistics, elementwise, _processors(x.device))
    split = statistics and plan.grid.splits > 1
    scratch = partials.new_empty(plan.grid.splits, *partials.shape) if split else partials
    names = ("spikes", "v", "partials", "v_seq", "h_seq", "g_seq")
    filled = {**dict(zip(names, buffers, strict=True)), "partials": scratch}
    q = _q(w)
    arguments = launch.ForwardArguments(
        **_pointers(x=x, v0=v0, q=q, **filled),
        stride=v0.numel(),
        units=plan.samples if plan.last else plan.samples * plan.channels,
        channels=plan.channels,
        map=plan.elements,
        steps=x.shape[0],
        log_lanes=plan.grid.lanes.bit_length() - 1,
        log_columns=plan.grid.columns.bit_length() - 1,
        v0_each=len(_each(v0)),
        **launch.neuron(eq, known),
    )
    store = int(sequences[0].numel() > 0) | int(sequences[1].numel() > 0) << 1
    variant = launch.forward_variant(eq, known, x.dtype, plan.vec, statistics, store)
    launches = [Launch(plan.grid.kernel, plan.grid.blocks, geometry.FORWARD_THREADS, arguments)]
    if split:
        launches.append(_merge(scratch, partials))
    _run(x.device, variant, *launches)
    copy_back(outputs, buffers)


def _merge(scratch: Tensor, partials: Tensor) -> Launch:
    count = partials.numel()
    arguments = launch.MergeArguments(
        **_pointers(scratch=scratch, partials=partials), count=count, splits=len(scratch)
    )
    blocks = -(-count // geometry.FORWARD_THREADS)
    return Launch("sj_merge", (blocks, 1), geometry.FORWARD_THREADS, arguments)


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
    layout = Layout.of(x_seq)
    x, v0 = layout.arrange(x_seq, x_seq.dtype), layout.initial(v_init)
    types = (x.dtype, torch.float32, torch.float32)
    given = [
        None if grad is None else layout.arrange(grad, dtype)
        for grad, dtype in zip(grads, types, strict=True)
    ]
    grad_x, grad_v, grad_w = outputs
    buffers = [layout.writable(grad_x, x.dtype), layout.writable(grad_v)]
    elementwise = (x, *_each(v0), *given, *buffers)
    plan = geometry.backward_plan(x, eq.kind, elementwise, _processors(x.device))
    starts = v0.new_empty(plan.chunks - 1, v0.numel())
    grad_q = v0.new_empty(plan.blocks if eq.kind == PLIF else 0, dtype=torch.float64)
    q = _q(w)
    grad_spikes, grad_last, grad_sequence = given
    arguments = launch.BackwardArguments(
        **_pointers(grad_spikes=grad_spikes, grad_v=grad_last, grad_v_seq=grad_sequence),
        **_pointers(x=x, v0=v0, q=q, grad_x=buffers[0], grad_v0=buffers[1]),
        **_pointers(grad_q=grad_q, starts=starts),
        elements=v0.numel(),
        steps=x.shape[0],
        v0_each=len(_each(v0)),
        **launch.neuron(eq, known),
    )
    which = int(grad_spikes is not None) | int(grad_sequence is not None) << 1
    variant = launch.backward_variant(eq, known, x.dtype, plan.vec, plan.chunk, which)
    launches = [Launch("sj_backward", (plan.blocks, 1), geometry.BACKWARD_THREADS, arguments)]
    if eq.kind == PLIF:
        buffers.append(grad_w if grad_w.dtype == torch.float32 else grad_w.float())
        launches.append(_finish(grad_q, q, buffers[2]))
    _run(x.device, variant, *launches)
    copy_back(outputs[: len(buffers)], buffers)


def _finish(grad_q: Tensor, q: Tensor | None, grad_w: Tensor) -> Launch:
    arguments = launch.FinishArguments(
        **_pointers(grad_q=grad_q, q=q, grad_w=grad_w), blocks=grad_q.numel()
    )
    return Launch("sj_finish", (1, 1), geometry.BACKWARD_THREADS, arguments)
