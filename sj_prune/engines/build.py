"""Compile a variant of the CPU engine with the machine's C++ compiler, once.

A library's name in the cache is made of sources, flags and processor, of the variant and of the
compiler. One that another compiler made serves where there is none or where it fails.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from sj_prune.engines import cache
from sj_prune.engines.cache import cache_folder
from sj_prune.engines.command import CommandError, HangingError, run

logger = logging.getLogger("sj_prune")

_SOURCES = ("lif.cpp", "lif_forward.h", "lif_backward.h", "lif_block.h", "lanes.h", "step.h")
# No contraction and no reassociation outside of explicit reductions: spikes equal the reference.
# The sources are written in vectors: looking for more takes a fifth of the time and gains none.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
)
# The same constructs as in the engine, and a value that only a working library returns.
_PROBE = """
#include <cstddef>
#include <cstdint>
#include <cstring>
extern "C" int probe() {
  int sum = 0;
#pragma omp parallel for reduction(+ : sum)
  for (int i = 0; i < 64; ++i) sum += i;
  return sum;
}
"""
_NO_COMPILER = "no C++ compiler (CXX, g++, clang++) was found"
# Compilers that did not end in time, and what to say: none is waited for twice.
_hanging: dict[str, str] = {}


class BuildError(RuntimeError):
    """A variant is not in the cache and cannot be compiled."""


@functools.cache
def compiler() -> str | None:
    """Return the C++ compiler, ``CXX`` first, or None."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (path := shutil.which(name)):
            return path
    return None


@functools.cache
def problem() -> str | None:
    """Return None if libraries for this machine are in the cache or can be made, else why not."""
    if cache.has(f"lif-{_machine()}-"):
        return None
    path = compiler()
    if path is None:
        return _NO_COMPILER
    reason = _cannot_keep()
    if reason is None:
        try:
            _flags(path)
        except (OSError, RuntimeError) as error:
            reason = f"{path} does not work here: {error}"
    if reason is not None:  # a compiler is there, so this is no choice of the user's
        logger.warning("no library of the CPU engine can be compiled: %s", reason)
    return reason


def _cannot_keep() -> str | None:
    """Return None if the cache folder can be written, else why not and what to do."""
    folder: Path | str = "the home folder's cache"
    try:
        folder = cache_folder()
        with cache.workspace():
            return None
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        return (
            f"compiled engines cannot be kept in {folder} ({error}): set SJ_PRUNE_CACHE to a "
            "folder that can be written"
        )


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _machine(*names: str) -> str:
    """Return a hash of what a library depends on whatever compiles it."""
    folder = Path(__file__).parent
    sources = "\n".join((folder / name).read_text() for name in names or _SOURCES)
    return _hash(sources, *_FLAGS, _processor())


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        cpu = platform.processor()
    return f"{platform.machine()}\n{cpu}"


def _tool(path: str) -> str:
    """Return a hash of the compiler's file and of what it links; the compiler is not run."""
    info = os.stat(path)
    identity = f"{os.path.realpath(path)} {info.st_size} {info.st_mtime_ns}"
    return _hash(path, identity, *_torch_openmp())


@functools.cache
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
            except HangingError:
                raise  # it would hang again
            except (OSError, RuntimeError) as error:
                first = first or error
                continue
            if not omp:
                logger.warning("%s has no OpenMP here: the CPU engine runs on one thread", path)
            return chosen
    assert first is not None  # noqa: S101 (the last choice was tried)
    raise first


def _probe(path: str, flags: _Flags) -> None:
    with cache.workspace() as folder:
        source = folder / "probe.cpp"
        source.write_text(_PROBE)
        built = _link(path, source, flags, (), folder)
        if (value := ctypes.CDLL(str(built)).probe()) != 2016:
            raise RuntimeError(f"Expected the library of a trial to return 2016 but got {value}")


def _link(
    path: str,
    source: Path,
    flags: _Flags,
    macros: Sequence[str],
    folder: Path,
    patience: float = 1.0,
) -> Path:
    """Compile and link `source` in `folder`; return the library."""
    if path in _hanging:
        raise CommandError(_hanging[path])
    made, built = folder / "made.o", folder / "made.so"
    try:
        options = [*_FLAGS, *flags.compile, *macros]
        run([path, *options, "-c", str(source), "-o", str(made)], patience)
        run([path, "-shared", str(made), "-o", str(built), *flags.link])
    except HangingError as error:
        _hanging[path] = str(error)
        raise
    return built


def load(
    defines: Mapping[str, object],
    title: str = "a variant",
    names: Sequence[str] = _SOURCES,
    symbol: str | None = None,
    options: Sequence[str] = (),
    patience: float = 1.0,
) -> ctypes.CDLL:
    """Return the library of one variant, compiled now unless the cache has it.

    Args:
        defines: preprocessor definitions of the variant.
        title: what to call it in messages.
        names: the source to compile, beside this file, and after it those that it includes.
        symbol: a function that the library has.
        options: of the compiler, after its usual ones.
        patience: how many times the usual bound a compiler may take.

    Raises:
        BuildError: if it cannot be had; the message has the compiler's output.
    """
    macros = [*(f"-D{name}={value}" for name, value in sorted(defines.items())), *options]
    if symbol is None:
        symbol = "sj_backward" if defines.get("SJ_BACKWARD") else "sj_forward"
    prefix = f"{Path(names[0]).stem}-{_machine(*names)}-{_hash(*macros)}-"
    path = compiler()
    try:
        if path is None:
            raise CommandError(f"Expected a C++ compiler but {_NO_COMPILER}")
        name, source = prefix + _tool(path), Path(__file__).parent / names[0]
        known = cache.open_library(f"{name}-", symbol)
        return known or _compile(path, source, macros, name, symbol, title, patience)
    except (OSError, RuntimeError) as error:
        if (other := cache.open_library(prefix, symbol)) is not None:
            logger.info("%s serves from the cache: %s", title, error)
            return other
        raise BuildError(str(error)) from error


def _compile(
    path: str,
    source: Path,
    macros: Sequence[str],
    name: str,
    symbol: str,
    title: str,
    patience: float,
) -> ctypes.CDLL:
    flags = _flags(path)
    with cache.workspace() as folder:
        logger.info("%s: compiling once with %s, into %s", title, path, folder.parent)
        cache.keep(_link(path, source, flags, macros, folder, patience), name)
    logger.debug("compiled %s with %s", name, " ".join(macros))
    library = cache.open_library(f"{name}-", symbol)
    if library is None:
        raise CommandError(f"Expected the library that {path} compiled to load but it does not")
    return library
