"""Compile a variant of the CPU engine with the machine's C++ compiler, once.

The cache is keyed by source, flags, compiler and CPU; a library appears in it by an atomic rename,
so several processes may start at once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

__all__ = ["cache_folder", "compiler", "load", "problem"]

logger = logging.getLogger("sj_prune")

_SOURCES = ("lif.cpp", "lif_forward.h", "lif_backward.h", "lif_block.h", "lanes.h", "step.h")
# No contraction and no reassociation outside of explicit reductions: spikes equal the reference.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-fopenmp",
)


def cache_folder() -> Path:
    """Return where compiled engines are kept; ``SJ_PRUNE_CACHE`` moves it."""
    root = os.environ.get("SJ_PRUNE_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sj_prune"


@functools.cache
def compiler() -> str | None:
    """Return the C++ compiler, ``CXX`` first, or None."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (path := shutil.which(name)):
            return path
    return None


@functools.cache
def problem() -> str | None:
    """Return None if a C++ compiler works here and its results can be kept, else why not."""
    path = compiler()
    if path is None:
        return "no C++ compiler (CXX, g++, clang++) was found"
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
            source = Path(temporary) / "probe.cpp"
            source.write_text("#include <cmath>\n#include <vector>\n")
            _run([path, *_FLAGS, "-c", str(source), "-o", str(source.with_suffix(".o"))])
            _environment(path)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"{path} does not work here: {error}"
    return None


@functools.cache
def _environment(path: str) -> str:
    """Return what a binary depends on beside source and flags: compiler and processor."""
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        cpu = platform.processor()
    return f"{version}\n{platform.machine()}\n{cpu}"


@functools.cache
def _openmp() -> tuple[str, ...]:
    """Link torch's own OpenMP library where it ships one: two thread pools would fight."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    found += sorted((Path(torch.__file__).parent.parent / "torch.libs").glob("libgomp*.so*"))
    return (str(found[0]),) if found else ("-fopenmp",)


def load(defines: Mapping[str, object]) -> ctypes.CDLL:
    """Return the library of one variant, compiled now unless the cache has it.

    Args:
        defines: preprocessor definitions of the variant.

    Raises:
        RuntimeError: if there is no compiler or it fails; the message has its output.
    """
    path = compiler()
    if path is None:
        raise RuntimeError("Expected a C++ compiler (CXX, g++, clang++) but found none")
    folder = Path(__file__).parent
    macros = [f"-D{name}={value}" for name, value in sorted(defines.items())]
    sources = "\n".join((folder / name).read_text() for name in _SOURCES)
    parts = (sources, *_FLAGS, *macros, *_openmp(), _environment(path))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    library = cache_folder() / f"lif-{key}.so"
    if not library.exists():
        _compile(path, folder, macros, library)
    return ctypes.CDLL(str(library))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"Expected {command[0]} to compile but it ended with {done.returncode}: "
            f"{done.stderr[-2000:]}"
        )


def _compile(path: str, folder: Path, macros: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as temporary:
        built = Path(temporary) / "lif.so"
        made = Path(temporary) / "lif.o"
        steps = (
            [path, *_FLAGS, *macros, "-c", str(folder / _SOURCES[0]), "-o", str(made)],
            [path, "-shared", str(made), "-o", str(built), *_openmp()],
        )
        for step in steps:
            _run(step)
        os.replace(built, library)
    logger.debug("compiled %s with %s", library.name, " ".join(macros))
