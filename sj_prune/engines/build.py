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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["cache_folder", "compiler", "load", "problem"]

logger = logging.getLogger("sj_prune")

_SOURCES = ("lif.cpp", "lif_forward.h", "lif_backward.h", "lif_block.h", "lanes.h", "step.h")
# No contraction and no reassociation outside of explicit reductions: spikes equal the reference.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
)
# The same constructs as in the engine, and a value that only a working library returns.
_PROBE = """
#include <cmath>
#include <cstring>
#include <vector>
extern "C" int probe() {
  int sum = 0;
#pragma omp parallel for reduction(+ : sum)
  for (int i = 0; i < 64; ++i) sum += i;
  return sum;
}
"""


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
    if unkept := _cannot_keep():
        return unkept
    try:
        _flags(path)
        _environment(path)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"{path} does not work here: {error}"
    return None


def _cannot_keep() -> str | None:
    """Return None if the cache folder can be written, else why not and what to do."""
    folder: Path | str = "the home folder's cache"
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            return None
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        return (
            f"compiled engines cannot be kept in {folder} ({error}): set SJ_PRUNE_CACHE to a "
            "folder that can be written"
        )


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


def _torch_openmp() -> list[str]:
    """Return torch's own OpenMP library where it ships one: two thread pools would fight."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    found += sorted((Path(torch.__file__).parent.parent / "torch.libs").glob("libgomp*.so*"))
    return [str(found[0])] if found else []


class _Flags(NamedTuple):
    """What follows the fixed flags when compiling, and when linking."""

    compile: tuple[str, ...]
    link: tuple[str, ...]


@functools.cache
def _flags(path: str) -> _Flags:
    """Return the best flags with which the compiler makes a library that loads and runs.

    Compilers differ: clang's OpenMP calls are not in torch's libgomp, and not every one knows
    ``-march=native`` on ARM.

    Raises:
        RuntimeError: if none do; the message has the output for the first.
        OSError: if a library cannot be kept or loaded.
    """
    threads = [("-fopenmp", library) for library in (*_torch_openmp(), "-fopenmp")]
    first: Exception | None = None
    for native in ("-march=native", "-mcpu=native", ""):
        for omp, library in (*threads, ("", "")):
            chosen = _Flags(tuple(f for f in (native, omp) if f), tuple(f for f in (library,) if f))
            try:
                _probe(path, chosen)
            except (OSError, RuntimeError) as error:
                first = first or error
                continue
            if not omp:
                logger.warning("%s has no OpenMP here: the CPU engine runs on one thread", path)
            return chosen
    assert first is not None  # noqa: S101 (the last choice was tried)
    raise first


def _probe(path: str, flags: _Flags) -> None:
    with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
        source = Path(temporary) / "probe.cpp"
        source.write_text(_PROBE)
        built = _link(path, source, flags, (), Path(temporary))
        if (value := ctypes.CDLL(str(built)).probe()) != 2016:
            raise RuntimeError(f"Expected the library of a trial to return 2016 but got {value}")


def _link(path: str, source: Path, flags: _Flags, macros: Sequence[str], folder: Path) -> Path:
    """Compile and link `source` in `folder`; return the library."""
    made, built = folder / "made.o", folder / "made.so"
    _run([path, *_FLAGS, *flags.compile, *macros, "-c", str(source), "-o", str(made)])
    _run([path, "-shared", str(made), "-o", str(built), *flags.link])
    return built


def load(defines: Mapping[str, object], names: Sequence[str] = _SOURCES) -> ctypes.CDLL:
    """Return the library of one variant, compiled now unless the cache has it.

    Args:
        defines: preprocessor definitions of the variant.
        names: the source to compile, beside this file, and after it those that it includes.

    Raises:
        RuntimeError: if there is no compiler or it fails; the message has its output.
    """
    path = compiler()
    if path is None:
        raise RuntimeError("Expected a C++ compiler (CXX, g++, clang++) but found none")
    folder = Path(__file__).parent
    macros = [f"-D{name}={value}" for name, value in sorted(defines.items())]
    sources = "\n".join((folder / name).read_text() for name in names)
    library_folder = cache_folder()
    library_folder.mkdir(parents=True, exist_ok=True)
    flags = _flags(path)
    parts = (sources, *_FLAGS, *flags.compile, *flags.link, *macros, _environment(path))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    library = library_folder / f"{Path(names[0]).stem}-{key}.so"
    if library.exists():
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            logger.warning("%s is broken (%s) and is compiled anew", library, error)
    with tempfile.TemporaryDirectory(dir=library_folder) as temporary:
        built = _link(path, folder / names[0], flags, macros, Path(temporary))
        with built.open("rb") as file:  # on the disk before it has its name, if the power fails
            os.fsync(file.fileno())
        os.replace(built, library)
    logger.debug("compiled %s with %s", library.name, " ".join(macros))
    return ctypes.CDLL(str(library))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"Expected {command[0]} to compile but it ended with {done.returncode}: "
            f"{done.stderr[-2000:]}"
        )
