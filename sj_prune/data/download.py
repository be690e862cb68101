"""Downloads, with checksums and messages that say what to do offline."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from sj_prune._files import replace_file
from sj_prune.data.files import build_folder

_CHUNK = 1 << 20
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)
_TIMEOUT = 60.0  # seconds without an answer


def torchvision_module(name: str) -> Any:  # noqa: ANN401 - a module
    """Import ``torchvision.<name>``.

    Raises:
        ImportError: torchvision is missing or does not match torch; says what to install.
    """
    try:
        return import_module(f"torchvision.{name}")
    # A torchvision of another build fails with RuntimeError (no operator torchvision::nms).
    except Exception as error:
        raise ImportError(
            f"Expected torchvision.{name} to import but got {error!r}: install the torchvision of "
            "the installed torch release (pip install 'torch<2.15' torchvision)"
        ) from error


@contextmanager
def explain_offline(what: str, source: str, folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors of a download into one that says what to put where.

    Raises:
        RuntimeError: the download failed or its checksum differs.
    """
    try:
        yield
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise RuntimeError(
            f"Expected to download {what} but got {error!r}: without a network fetch {source} "
            f"elsewhere and put it in {folder}"
        ) from error


def fetch(
    url: str, folder: Path, name: str, md5: str, sha256: str | None = None, what: str = ""
) -> Path:
    """Download a file unless it is there with the right checksum.

    It is checked before it gets its name: what stands under it is whole.

    Args:
        url: where from. An https address may not lead to one of another kind.
        folder: where to; made if needed.
        name: name of the file there.
        md5: checksum of the file, as its source states it.
        sha256: a safer one, where it is known; then `md5` is not looked at.
        what: how to call it in messages, by default its name.

    Returns:
        The file.

    Raises:
        RuntimeError: offline, or the checksum differs; says which file to put where.
    """
    kind, expected = ("SHA-256", sha256) if sha256 else ("MD5", md5)
    target = folder / name
    if target.exists() and _checksum(target, kind) == expected:
        return target
    sums = f"MD5 {md5}" + (f", SHA-256 {sha256}" if sha256 else "")
    with explain_offline(what or name, f"{url} ({sums})", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with replace_file(target) as temporary:
            _download(url, temporary)
            if (found := _checksum(temporary, kind)) != expected:
                raise RuntimeError(f"its {kind} is {found} where {expected} is expected")
    return target


def _download(url: str, path: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "sj_prune"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, path.open("wb") as file:  # noqa: S310
        if url.startswith("https:") and not answer.url.startswith("https:"):
            raise OSError(f"it leads to {answer.url}, which is not https")
        shutil.copyfileobj(answer, file, _CHUNK)


def _checksum(path: Path, kind: str) -> str:
    found = hashlib.sha256() if kind == "SHA-256" else hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def unpack(archives: Sequence[Path], target: Path) -> None:
    """Unpack all archives, tar or zip, to one folder that appears when the last one is done.

    Raises:
        ValueError: an archive is none, is damaged, or holds what would lie outside of the folder
            or is no plain file; names it.
    """
    with build_folder(target) as folder:
        for archive in archives:
            _extract_checked(archive, folder)


def _extract_checked(archive: Path, folder: Path) -> None:
    try:
        _extract(archive, folder)
    except _DAMAGE as error:
        raise ValueError(
            f"Expected {archive} to be a whole and harmless archive but got {error!r}: "
            "delete it and fetch it again"
        ) from error


def install(archive: Path, folder: Path) -> None:
    """Unpack an archive that holds `folder`, in place of one that is there."""
    aside = folder.with_name(f"{folder.name}.unpacked")
    if not (aside / folder.name).is_dir():  # else a process ended before the two lines below
        shutil.rmtree(aside, ignore_errors=True)
        unpack([archive], aside)
    shutil.rmtree(folder, ignore_errors=True)
    (aside / folder.name).rename(folder)
    shutil.rmtree(aside)


def _extract(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                _check_member(archive, entry.filename, _is_plain(entry))
            file.extractall(folder)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            for member in file:
                _check_member(archive, member.name, member.isfile() or member.isdir())
            # It also takes away owners and odd permissions; the first releases of 3.10 lack it.
            file.extraction_filter = getattr(tarfile, "data_filter", None)
            file.extractall(folder)
    else:
        raise ValueError(f"Expected {archive} to be a tar or zip archive but it is neither")


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    return kind in (0, stat.S_IFREG, stat.S_IFDIR)


def _check_member(archive: Path, name: str, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts or bool(PureWindowsPath(name).drive)
    if outside or not plain:
        what = "a path outside of the folder" if outside else "a link or device"
        raise ValueError(f"Expected plain files in {archive} but got {what}: {name!r}")
