"""Compile CUDA source to machine code with NVRTC, from the wheel that torch depends on; no GPU."""

import ctypes
import functools
from pathlib import Path

import pytest
import torch

# What CuPy adds to a RawModule's options.
OF_CUPY = ("--device-as-default-execution-space", "-ftz=true")


@functools.cache
def library():
    """Return NVRTC; skip the test where there is none."""
    packages = Path(torch.__file__).parent.parent
    found = sorted((packages / "nvidia").rglob("libnvrtc.so.*")) if torch.version.cuda else []
    if not found:
        pytest.skip("needs NVRTC, which a CPU build of torch does not bring")
    return ctypes.CDLL(str(found[0]))


def compile_(source, arch, options):
    """Return NVRTC's log, with the assembler's report of registers and spills, and the code."""
    nvrtc = library()
    program = ctypes.c_void_p()
    done = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"lif.cu", 0, None, None
    )
    assert done == 0
    every = [*options, *OF_CUPY, f"-arch=sm_{arch}", "--ptxas-options=-v"]
    array = (ctypes.c_char_p * len(every))(*(option.encode() for option in every))
    done = nvrtc.nvrtcCompileProgram(program, len(every), array)
    log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    code = _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program) if done == 0 else b""
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    assert done == 0, log.decode()
    return log.decode(), code


def _read(size_of, read, program):
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert read(program, buffer) == 0
    return buffer.raw
