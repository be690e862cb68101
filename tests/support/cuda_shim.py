"""Run the CUDA engine on the host: its sources compiled by g++, launched as `cupy_engine` would."""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from sj_prune.engines import build, collect, cupy_device, cupy_engine

HERE = Path(__file__).parent
ERRORS = ("", "deadlock", "out of bounds", "misaligned", "unknown kernel", "number of threads")
FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-ffp-contract=off",
    "-Wno-unknown-pragmas",
    "-U_FORTIFY_SOURCE",  # its longjmp refuses to change stacks
)
CHECKED = ("-fsanitize=alignment,bounds",)  # handlers in cuda_shim.cpp


@functools.cache
def library(source):
    """Compile what CuPy would, once a machine."""
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    shim, code, options = HERE / "cuda_shim.cpp", cupy_device.code(source.file), source.options
    parts = [shim.read_text(), code, *FLAGS, *CHECKED, *options]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    built = build.cache_folder() / "shim" / f"{key}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            made, linked = f"{folder}/shim.o", f"{folder}/shim.so"
            Path(folder, "source.cu").write_text(code)
            compile_ = [*FLAGS, *CHECKED, *options, f"-I{folder}", "-c", shim]
            # Linked without the sanitizer, whose handlers the shim has.
            for step in ([*compile_, "-o", made], ["-shared", made, "-o", linked]):
                done = subprocess.run([compiler, *step], capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
            os.replace(linked, built)
    found = ctypes.CDLL(str(built))
    found.shim_choose.restype = ctypes.c_size_t
    return found


def run(source, launches, descending=False):
    """Run the launches of one call on tensors of the CPU."""
    found = library(source)
    for one in launches:
        name, block = one.kernel.encode(), one.arguments
        assert found.shim_choose(name) == ctypes.sizeof(block), f"arguments of {one.kernel}"
        blocks = map(ctypes.c_uint, (*one.blocks, one.threads))
        code = found.shim_launch(name, *blocks, ctypes.byref(block), int(descending))
        assert code == 0, f"{one.kernel}: {ERRORS[code]}"


@pytest.fixture
def host(monkeypatch):
    """Make `cupy_engine` run on the host; its attributes steer how."""

    class Host:
        processors = 4
        descending = False
        launches = ()

    def on_host(device, source, *launches):
        Host.launches = launches
        run(source, launches, Host.descending)

    monkeypatch.setattr(cupy_engine, "run", on_host)
    monkeypatch.setattr(collect, "run", on_host)
    monkeypatch.setattr(cupy_engine, "processors", lambda device: Host.processors)
    # Plans are a function of the number of multiprocessors, which no process changes.
    monkeypatch.setattr(cupy_engine, "_plans", {})
    # The tensors are small: several threads only wait for each other on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Host
    torch.set_num_threads(threads)
