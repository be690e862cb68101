"""Tensors of the CPU that count as those of a device, whose masks `fill.cu` writes on the host."""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from sj_prune.engines import build, fill

HERE = Path(__file__).parent
ENGINES = Path(fill.__file__).parent
FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas")
CHECKED = ("-fsanitize=alignment,bounds", "-fno-sanitize-recover=all", "-static-libubsan")


@functools.cache
def library():
    """Compile once a machine."""
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    parts = [(HERE / "fill_shim.cpp").read_text(), (ENGINES / "fill.cu").read_text(), *FLAGS]
    key = hashlib.sha256("\0".join([*parts, *CHECKED]).encode()).hexdigest()[:24]
    built = build.cache_folder() / "shim" / f"{key}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            command = [compiler, *FLAGS, *CHECKED, f"-I{ENGINES}", HERE / "fill_shim.cpp"]
            done = subprocess.run(
                [*command, "-o", f"{folder}/fill.so"], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            os.replace(f"{folder}/fill.so", built)
    return ctypes.CDLL(str(built))


class Launches(list):
    """The launches so far: name and number of tensors of each."""

    def run(self, device, source, *launches):
        for one in launches:
            blocks, block = one.blocks[0], one.arguments
            size = library().shim_fill(
                one.kernel.encode(), blocks, one.threads, ctypes.byref(block)
            )
            assert size == ctypes.sizeof(block)
            assert one.blocks[1] == 1
            self.append((one.kernel, block.tensors))


@pytest.fixture
def on_host(monkeypatch):
    """Let tensors of the CPU count as those of a device; return what is launched."""
    launches = Launches()
    library()
    monkeypatch.setattr(fill, "on_device", lambda tensor: tensor.device.type == "cpu")
    monkeypatch.setattr(fill, "_able", lambda: True)
    monkeypatch.setattr(fill, "run", launches.run)
    return launches
