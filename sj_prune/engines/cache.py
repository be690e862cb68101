"""Compiled libraries on the disk: found, checked before they run, written whole or not at all.

A library's code runs in this process, so it is loaded only if it belongs to this user or root, in a
folder that does, if nobody else can write either, and if the file is what its name says: the name
ends with a digest of the content. Beside libraries there are only the folders of running compilers,
which hold a lock; those that a killed process left are removed by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: left folders are known by their age alone
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("sj_prune")

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_OLD = 3600.0  # seconds after which a folder without a lock is nobody's
_DIGITS = 32  # of the digest in a name
_loads = itertools.count()


def cache_folder() -> Path:
    """Return where compiled engines are kept; ``SJ_PRUNE_CACHE`` moves it.

    Raises:
        RuntimeError: if there is no home folder.
    """
    if root := os.environ.get("SJ_PRUNE_CACHE"):
        return Path(root).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification: what is empty or relative counts as unset
        return Path(base) / "sj_prune"
    home = Path.home()
    if not home.is_absolute():
        raise RuntimeError(f"Expected an absolute HOME but got {str(home)!r}: set SJ_PRUNE_CACHE")
    return home / ".cache" / "sj_prune"


def _distrust(info: os.stat_result) -> str | None:
    """Return why what has this status could be another user's work, or None."""
    if os.name != "posix":
        return None
    if info.st_uid not in (os.getuid(), 0):
        return f"it belongs to user {info.st_uid}, not to this user or root"
    return "others can write it" if info.st_mode & _OTHERS else None


def _shelf(make: bool = False) -> Path:
    """Return the folder of the libraries: one of this user's own in a folder that others write to.

    Raises:
        OSError: if there is none, or it is another user's.
    """
    folder = cache_folder()
    if make:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    info = folder.stat()
    if info.st_mode & _OTHERS and os.name == "posix" and info.st_uid in (os.getuid(), 0):
        folder = folder / f"user-{os.getuid()}"
        if make:
            folder.mkdir(mode=0o755, exist_ok=True)
        info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if reason := _distrust(info):
        raise PermissionError(f"{folder}: {reason}")
    return folder


def _libraries(prefix: str) -> list[Path]:
    """Return the files whose names begin so, the newest first."""
    try:
        found = [path for path in _shelf().iterdir() if path.name.startswith(prefix)]
        times = {path: path.lstat().st_mtime for path in found if path.suffix == ".so"}
    except (OSError, RuntimeError):  # no folder, no home, or a file that is gone in the meantime
        return []
    return sorted(times, key=lambda path: times[path], reverse=True)


def has(prefix: str) -> bool:
    """Tell whether the cache has a library whose name begins so."""
    return bool(_libraries(prefix))


def open_library(prefix: str, symbol: str) -> ctypes.CDLL | None:
    """Return a library whose name begins so, or None; what cannot be trusted is removed.

    Args:
        prefix: of the file's name.
        symbol: a function that it must have.
    """
    opened = (_open_or_remove(path, symbol) for path in _libraries(prefix))
    return next((library for library in opened if library is not None), None)


def _open_or_remove(path: Path, symbol: str) -> ctypes.CDLL | None:
    try:
        return _open(path, symbol)
    except OSError as error:
        logger.warning("%s is removed, to be compiled anew: %s", path, error)
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def _open(path: Path, symbol: str) -> ctypes.CDLL:
    """Load a library after a look at it; what is truncated would kill the process."""
    # NOFOLLOW: the file itself is looked at. NONBLOCK: opening a pipe would wait.
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, os.O_RDONLY | flags), "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise OSError("it is not a file")
        if reason := _distrust(info):
            raise OSError(reason)
        content = file.read()
    if _digest(content) != path.stem.rpartition("-")[2]:
        raise OSError("its content is not what was compiled")
    library = _load(content, path)
    if not hasattr(library, symbol):
        raise OSError(f"it has no {symbol}")
    return library


def _load(content: bytes, path: Path) -> ctypes.CDLL:
    """Load `content`, that of `path`, from memory of its own where the system has such a thing.

    What was looked at is then what runs, and nothing that happens to the file can end this process.
    """
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create(path.name)
        try:
            with open(handle, "wb", closefd=False) as file:
                file.write(content)
            # A loader that meets a name again returns the library it knows by it.
            return ctypes.CDLL(f"/proc/self/fd/{'./' * next(_loads)}{handle}")
        except OSError:  # no /proc, or what is in memory must not run here
            pass
        finally:
            os.close(handle)
    return ctypes.CDLL(str(path))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def keep(built: Path, name: str) -> None:
    """Move a finished library of a `workspace` into the cache.

    Raises:
        OSError: if that fails.
    """
    built.chmod(0o755)  # whatever the umask says
    target = built.parent.parent / f"{name}-{_digest(built.read_bytes())}.so"
    with built.open("rb") as file:  # on the disk before it has its name, if the power fails
        os.fsync(file.fileno())
    os.replace(built, target)


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Give a folder in the cache to compile in; it is removed in the end.

    Raises:
        OSError: if the cache cannot be written, or belongs to another user.
        RuntimeError: if there is no home folder.
    """
    shelf = _shelf(make=True)
    _remove_left(shelf)
    folder = Path(tempfile.mkdtemp(prefix="build-", dir=shelf))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        file = stack.enter_context((folder / "locking").open("w"))
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        # Only now under the name that others look for: they never find it unlocked too early.
        os.replace(folder / "locking", folder / "lock")
        yield folder


def _remove_left(shelf: Path) -> None:
    """Remove the folders of processes that are gone."""
    for folder in shelf.glob("build-*"):
        with contextlib.suppress(OSError):
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    if time.time() - folder.stat().st_mtime > _OLD:
        return True
    if fcntl is None or not (folder / "lock").exists():
        return False
    with (folder / "lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
