"""Downloads are whole and checked before they have their name; archives unpack to plain files."""

import hashlib
import io
import os
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from sj_prune.data import cifar10, host, images, tiny
from sj_prune.data.download import fetch, install, torchvision_module, unpack

CONTENT = os.urandom(100_000)
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def source(served):
    folder, url = served
    (folder / "a.bin").write_bytes(CONTENT)
    return f"{url}/a.bin"


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_fetched_once(source, tmp_path):
    folder = tmp_path / "to"
    assert fetch(source, folder, "a.bin", MD5).read_bytes() == CONTENT
    assert fetch("http://nowhere.invalid/", folder, "a.bin", MD5) == folder / "a.bin"
    assert left(folder) == ["a.bin"]


@pytest.mark.parametrize(
    "sums", [{"md5": "0" * 32}, {"md5": MD5, "sha256": "0" * 64}], ids=["MD5", "SHA-256"]
)
def test_another_content_never_gets_the_name(sums, source, tmp_path):
    folder = tmp_path / "to"
    with pytest.raises(RuntimeError, match="Expected to download a.bin .* is .* expected"):
        fetch(source, folder, "a.bin", **sums)
    assert left(folder) == []


def test_sha256_is_what_counts_where_it_is_known(source, tmp_path):
    assert fetch(source, tmp_path, "a.bin", "0" * 32, SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("partial", [b"", CONTENT[:50_000], CONTENT + b"x"])
def test_a_partial_file_of_another_program_is_fetched_anew(partial, source, tmp_path):
    (tmp_path / "a.bin").write_bytes(partial)
    assert fetch(source, tmp_path, "a.bin", MD5, SHA256).read_bytes() == CONTENT


class Breaking(BaseHTTPRequestHandler):
    """Promises more than it sends, or leads elsewhere."""

    def do_GET(self):
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "/short")
        else:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
        self.end_headers()
        if self.path != "/elsewhere":
            self.wfile.write(CONTENT[:1000])

    def log_message(self, *args):
        pass


@pytest.fixture
def breaking(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Breaking)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("page", ["short", "elsewhere"])
def test_a_broken_connection_leaves_nothing(page, breaking, tmp_path):
    folder = tmp_path / "to"
    folder.mkdir()
    with pytest.raises(RuntimeError, match="Expected to download a.bin .*without a network fetch"):
        fetch(f"{breaking}/{page}", folder, "a.bin", MD5)
    assert left(folder) == []


def test_sources_are_https():
    pytest.importorskip("torchvision")
    datasets = torchvision_module("datasets")
    urls = [tiny._URL, datasets.CIFAR10.url, datasets.CIFAR100.url]
    urls += [url for _, url, _ in host.archives()]
    assert [url for url in urls if not url.startswith("https://")] == []


def test_https_does_not_lead_to_http(monkeypatch, tmp_path):
    class Answer(io.BytesIO):
        url = "http://elsewhere.invalid/a.bin"

    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: Answer(CONTENT))
    with pytest.raises(RuntimeError, match="which is not https"):
        fetch("https://source.invalid/a.bin", tmp_path, "a.bin", MD5)
    assert left(tmp_path) == []


# ---- archives ------------------------------------------------------------------------------------


def tar_with(path, **fields):
    with tarfile.open(path, "w:gz") as file:
        for name, kind in (("set/good.txt", {}), (fields.pop("name", "set/bad"), fields)):
            member = tarfile.TarInfo(name)
            member.size = 4 if kind.get("type", tarfile.REGTYPE) == tarfile.REGTYPE else 0
            for key, value in kind.items():
                setattr(member, key, value)
            file.addfile(member, io.BytesIO(b"text"))


def zip_with(path, name="set/bad", mode=0o100644):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("set/good.txt", "text")
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        file.writestr(entry, "/etc/passwd")


HOSTILE = {
    "tar, upwards": lambda path: tar_with(path, name="../bad"),
    "tar, absolute": lambda path: tar_with(path, name="/tmp/sj_prune_bad"),
    "tar, symbolic link": lambda path: tar_with(path, type=tarfile.SYMTYPE, linkname="/etc"),
    "tar, hard link": lambda path: tar_with(path, type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "tar, device": lambda path: tar_with(path, type=tarfile.CHRTYPE),
    "tar, pipe": lambda path: tar_with(path, type=tarfile.FIFOTYPE),
    "zip, upwards": lambda path: zip_with(path, "set/../../bad"),
    "zip, backslashes": lambda path: zip_with(path, "..\\bad"),
    "zip, absolute": lambda path: zip_with(path, "/bad"),
    "zip, drive": lambda path: zip_with(path, "C:/bad"),
    "zip, symbolic link": lambda path: zip_with(path, mode=0o120777),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_members_are_named_and_nothing_is_unpacked(kind, tmp_path):
    archive, target = tmp_path / "a.archive", tmp_path / "in" / "to"
    HOSTILE[kind](archive)
    with pytest.raises(ValueError, match="Expected plain files in .*a.archive but got .*bad"):
        unpack([archive], target)
    assert left(tmp_path / "in") == []
    assert left(tmp_path) == ["a.archive", "in"]


@pytest.mark.parametrize("write", [tar_with, zip_with])
def test_plain_archives_are_unpacked(write, tmp_path):
    write(tmp_path / "a.archive")
    unpack([tmp_path / "a.archive"], tmp_path / "to")
    assert left(tmp_path / "to" / "set") == ["bad", "good.txt"]


def test_odd_permissions_are_taken_away(tmp_path):
    tar_with(tmp_path / "a.tar.gz", mode=0o4777)
    unpack([tmp_path / "a.tar.gz"], tmp_path / "to")
    assert (tmp_path / "to/set/bad").stat().st_mode & 0o7022 == 0


@pytest.mark.parametrize("content", [b"", b"neither", b"PK\x03\x04 cut", b"\x1f\x8b cut"])
def test_what_is_no_archive_is_named(content, tmp_path):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match="a.zip to be a tar or zip archive|whole and harmless"):
        unpack([tmp_path / "a.zip"], tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_damaged_member_is_named(tmp_path):
    zip_with(tmp_path / "a.zip")
    content = (tmp_path / "a.zip").read_bytes().replace(b"/etc/passwd", b"/etc/Passwd")
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match="whole and harmless archive but got .*CRC"):
        unpack([tmp_path / "a.zip"], tmp_path / "to")


def test_installed_in_place_of_a_damaged_folder(tmp_path):
    tar_with(tmp_path / "a.tar.gz")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "damaged").touch()
    install(tmp_path / "a.tar.gz", tmp_path / "set")
    assert left(tmp_path / "set") == ["bad", "good.txt"]
    assert left(tmp_path) == ["a.tar.gz", "set"]


def test_damaged_cifar_is_fetched_by_sha256(served, tmp_path, monkeypatch):
    kind = torchvision_module("datasets").CIFAR10
    archive, root = served[0] / "cifar.tar.gz", tmp_path / "root"
    with tarfile.open(archive, "w:gz") as file:
        member = tarfile.TarInfo(f"{kind.base_folder}/other")
        file.addfile(member, io.BytesIO())
    monkeypatch.setattr(kind, "url", f"{served[1]}/cifar.tar.gz")
    with pytest.raises(RuntimeError, match="Expected to download CIFAR10 .*SHA-256"):
        cifar10(root, download=True)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(images._SHA256, "CIFAR10", sha256)
    with pytest.raises(FileNotFoundError, match="with their checksums"):
        cifar10(root, download=True)
    assert left(root / kind.base_folder) == ["other"]
