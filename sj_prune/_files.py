"""Files that are whole or not there: written beside, flushed to the disk, then renamed.

And what is read is whole, or the error says what is there instead.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

try:
    import fcntl
except ImportError:  # not a POSIX system: what a killed process left is known by its age alone
    fcntl = None  # type: ignore[assignment]

_OLD = 24 * 3600.0  # seconds after which a temporary file without a lock is nobody's


def save(path: str | os.PathLike[str], state: Any) -> None:  # noqa: ANN401 - what torch.save takes
    """Save as ``torch.save(state, path)`` does, but never at the cost of the file that is there.

    The new file is written beside the old one, flushed to the disk, and only then takes its name.
    Whatever happens before that, a full disk, an exception, a killed process or no power, the old
    file stays; what a killed process left beside it is removed by the next save.

    Args:
        path: of the file. A link is followed; the permissions of an existing file are kept.
        state: a checkpoint, or whatever ``torch.save`` takes.

    Raises:
        TypeError: if `path` is none.
        OSError: if the file cannot be written, for example for lack of space.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"Expected path to be a path but got {type(path).__name__}: call save(path, state)"
        )
    with replace_file(path) as temporary, temporary.open("wb") as file:
        _dump(state, file, path)


def _dump(state: Any, file: BinaryIO, path: str | os.PathLike[str]) -> None:  # noqa: ANN401
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # Torch ends its archive after a write that failed, and complains of that instead.
        cause = error.__context__
        if isinstance(cause, OSError):
            raise type(cause)(cause.errno, cause.strerror, os.fspath(path)) from error
        raise


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`, and move it there if the block ends well.

    Args:
        path: the file to write or to replace; its folder must exist.
        durable: flush to the disk first; without, a power failure may leave an empty file.

    Yields:
        The path to write to. After an exception it is deleted and `path` is what it was.
    """
    target = Path(os.path.realpath(path))
    # Read by `_remove_left` of other processes: locked before it has the name they look for.
    prefix = f".{target.stem}.tmp-"
    _remove_left(target.parent, prefix, target.suffix)
    # The suffix stays last: numpy appends one of its own to a name that lacks it.
    try:
        handle, name = tempfile.mkstemp(target.suffix, f".{target.stem}.new-", target.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error
    temporary = Path(name)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        temporary = temporary.rename(_named(temporary, prefix))
        yield temporary
        _publish(temporary, target, durable)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _named(temporary: Path, prefix: str) -> Path:
    return temporary.with_name(prefix + temporary.name.rpartition(".new-")[2])


def _publish(temporary: Path, target: Path, durable: bool) -> None:
    # mkstemp makes files private; a checkpoint is shared like any other file.
    mode = target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~current_umask()
    temporary.chmod(mode)
    if durable:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(temporary, target)
    if durable and os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some file systems flush no folders
                os.fsync(folder)
        finally:
            os.close(folder)


def _remove_left(folder: Path, prefix: str, suffix: str) -> None:
    """Remove the temporary files of processes that are gone."""
    with contextlib.suppress(OSError):
        names = [e.name for e in os.scandir(folder) if e.name.startswith(prefix)]
        for name in names:
            if name.endswith(suffix) and _is_left(folder / name):
                (folder / name).unlink(missing_ok=True)


def _is_left(path: Path) -> bool:
    if fcntl is None:
        return time.time() - path.stat().st_mtime > _OLD
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def current_umask() -> int:
    """Return the permissions that new files lack."""
    # The only way to read the mask is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(path: str | os.PathLike[str], writer: str) -> Any:  # noqa: ANN401 - what was saved
    """Return tensors and plain values from a file, on the CPU.

    Args:
        path: of the file.
        writer: what it has to be a file of, for messages.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is damaged, or another one; the message says what it is.
    """
    with open(path, "rb") as file:  # what raises here is about the path, all else about the content
        try:
            if _differs(file):
                raise zipfile.BadZipFile("a checksum differs")  # torch looks at none
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        # What torch raises depends on where it stumbles: EOFError, RuntimeError, KeyError, OSError.
        except Exception as error:
            raise ValueError(
                f"Expected a file of {writer} but {os.fspath(path)!r} {_unreadable(path)}: "
                f"save the network with {writer}"
            ) from error


def _differs(file: str | os.PathLike[str] | IO[bytes]) -> bool:
    """Tell whether what lies in a file, if that is an archive, is not what was written."""
    if not getattr(torch.serialization, "get_crc32_options", lambda: True)():
        return False  # no checksums were asked for
    try:
        if not zipfile.is_zipfile(file):
            return False
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is not None
    except Exception:  # BadZipFile, zlib.error, NotImplementedError: a header is damaged
        return True


def _unreadable(path: str | os.PathLike[str]) -> str:
    """Say what a file is that torch does not read."""
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        return "is empty"
    if _differs(path):
        return "is damaged: a checksum in it differs"
    if zipfile.is_zipfile(path):
        return "is an archive of something else, or holds pickled classes, as torch.save(net) does"
    if head.startswith(b"PK"):
        return f"is cut short: an archive without an end, {os.path.getsize(path)} bytes"
    return f"begins with {head!r}"


def described(content: Any) -> str:  # noqa: ANN401
    """Return what was read in place of what was expected."""
    if isinstance(content, Mapping):
        keys = [repr(key) for key in content]
        return f"the keys {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
    return f"a {type(content).__name__}"
