"""Kernels compiled and launched by CuPy, which only this module imports.

They run on torch's current stream and device and touch only torch's memory, so a call that was run
once before can be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

logger = logging.getLogger("sj_prune")

_EXTRAS = (12, 13)  # CUDA releases of the extras in setup.cfg
# No contraction into fused multiply-adds: spikes equal the reference.
OPTIONS = ("-std=c++17", "--fmad=false")


@functools.cache
def available() -> str | None:
    """Return None if CuPy runs here, else why not and what to install."""
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


class Launch(NamedTuple):
    """One kernel launch.

    Attributes:
        kernel: its name.
        blocks: the grid, (x, y).
        threads: of a block.
        arguments: the one argument, a `ctypes.Structure`, passed by value.
    """

    kernel: str
    blocks: tuple[int, int]
    threads: int
    arguments: Any


class Source(NamedTuple):
    """What is compiled: a file of this folder and, beside `OPTIONS`, compiler options."""

    file: str
    options: tuple[str, ...] = ()


@functools.cache
def code(file: str) -> str:
    """Return a source with what it includes in it, so that CuPy's disk cache sees every change."""

    def included(found: re.Match[str]) -> str:
        return "" if found[1] == "lanes.h" else code(found[1])  # which is for hosts

    text = (Path(__file__).parent / file).read_text().replace("#pragma once\n", "")
    return re.sub(r'#include "(.*)"\n', included, text)


@functools.cache
def _module(device: int, source: Source) -> Any:  # noqa: ANN401
    """Return the module of a source on the current device, which is number `device`."""
    import cupy

    logger.debug("compiling %s for CUDA device %d", source, device)
    return cupy.RawModule(code=code(source.file), options=(*OPTIONS, *source.options))


@functools.cache
def kernel(device: int, source: Source, name: str) -> Any:  # noqa: ANN401
    """Return a kernel on the current device, which is number `device`.

    Raises:
        RuntimeError: if it would have to be compiled inside the capture of a CUDA graph.
    """
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"Expected the kernel {name} to be compiled before a CUDA graph is captured but it has "
            "not run yet with these settings, types and shapes: run the same step once before the "
            "capture (warm-up), as torch asks for, too"
        )
    return _module(device, source).get_function(name)


class _Stream(NamedTuple):
    """A stream as a launch of CuPy reads it."""

    ptr: int


def _by_value(arguments: Any) -> np.ndarray:  # noqa: ANN401
    """Return an argument block as CuPy passes it: an array of one item of that many bytes."""
    return np.frombuffer(arguments, dtype=_bytes(ctypes.sizeof(arguments)), count=1)


@functools.cache
def _bytes(size: int) -> Any:  # noqa: ANN401
    return np.dtype((np.void, size))


def run(device: torch.device, source: Source, *launches: Launch) -> None:
    """Launch kernels of one source on torch's current stream of a device."""
    stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
    index = torch.cuda.current_device() if device.index is None else device.index
    elsewhere = index != torch.cuda.current_device()
    with torch.cuda.device(index) if elsewhere else contextlib.nullcontext():
        for one in launches:
            launch = kernel(index, source, one.kernel)
            launch(one.blocks, (one.threads,), (_by_value(one.arguments),), stream=stream)


@functools.cache
def processors(device: torch.device) -> int:
    """Return the number of multiprocessors."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
