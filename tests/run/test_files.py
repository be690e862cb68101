"""sj_prune.save: the file that is there stays until the new one is whole."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import sj_prune
from sj_prune import _files as files
from tests.run.slow_saver import linear

SAVER = Path(__file__).parent / "slow_saver.py"


def load(path):
    return torch.load(path, weights_only=True)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_saves_what_torch_does(tmp_path):
    state = {"a": torch.arange(6).view(2, 3), "b": [1, "two", None]}
    sj_prune.save(tmp_path / "a.pt", state)
    torch.save(state, tmp_path / "b.pt")
    mine, theirs = (load(tmp_path / name) for name in ("a.pt", "b.pt"))
    assert torch.equal(mine["a"], theirs["a"])
    assert mine["b"] == theirs["b"]
    assert left(tmp_path) == ["a.pt", "b.pt"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on the size of files stands for the disk."""
    path = tmp_path / "a.pt"
    sj_prune.save(path, {"x": torch.ones(10)})
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large.*a.pt"):
            sj_prune.save(path, {"x": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert torch.equal(load(path)["x"], torch.ones(10))
    assert left(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("error", [OSError(28, "No space"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_error_at_the_end_leaves_the_old_file(where, error, tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    sj_prune.save(path, 1)

    def fail(*args):
        raise error

    monkeypatch.setattr(files.os, where, fail)
    with pytest.raises(type(error)):
        sj_prune.save(path, 2)
    assert load(path) == 1
    assert left(tmp_path) == ["a.pt"]


def test_what_cannot_be_pickled_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pt"
    sj_prune.save(path, 1)
    with pytest.raises(Exception, match="pickle|lambda"):
        sj_prune.save(path, lambda: None)
    assert load(path) == 1
    assert left(tmp_path) == ["a.pt"]


def test_half_a_file_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    sj_prune.save(path, {"value": 1})

    def broken(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        sj_prune.save(path, {"value": 2})
    assert load(path) == {"value": 1}
    assert left(tmp_path) == ["a.pt"]


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        genuine = getattr(os, name)
        monkeypatch.setattr(
            files.os, name, lambda *a, n=name, g=genuine: (order.append(n), g(*a))[1]
        )
    sj_prune.save(tmp_path / "a.pt", 1)
    assert order == ["fsync", "replace", "fsync"], "file, name, folder"


def test_permissions_and_links_stay(tmp_path):
    (tmp_path / "runs").mkdir()
    path, link = tmp_path / "runs" / "step1.pt", tmp_path / "latest.pt"
    umask = os.umask(0o027)
    try:
        sj_prune.save(path, 1)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    link.symlink_to(path)
    sj_prune.save(link, 2)
    assert link.is_symlink()
    assert load(path) == 2
    assert path.stat().st_mode & 0o777 == 0o604


def test_swapped_arguments_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"a path but got dict: call save\(path, state\)"):
        sj_prune.save({"x": 1}, tmp_path / "a.pt")


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent/a\.pt'$"):  # not of a file of ours
        sj_prune.save(tmp_path / "absent" / "a.pt", 1)


def test_savers_at_once_do_not_meet(tmp_path):
    """As ranks that all save to one path: the file is one of theirs, whole."""
    path = tmp_path / "a.pt"

    def many(number):
        for _ in range(10):
            sj_prune.save(path, torch.full((1000,), float(number)))

    threads = [threading.Thread(target=many, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load(path).unique().numel() == 1
    assert left(tmp_path) == ["a.pt"]


def kill_inside(path, delay, kind="checkpoint"):
    """Start a saver, kill it inside of its second save after `delay`, return what it had saved."""
    process = subprocess.Popen(
        [sys.executable, SAVER, path, kind], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.split() == ["saving", "1"]:
            break
    time.sleep(delay)
    process.kill()
    said = process.stdout.read().split()
    process.wait()
    return max(
        [0, *(int(n) for word, n in zip(said[::2], said[1::2], strict=False) if word == "saved")]
    )


def number_in(path, kind):
    """Return the number that a file of the saver holds everywhere."""
    if kind == "deployed":
        return sj_prune.load_deployed(path)._difference
    if kind == "compact":
        weights = list(sj_prune.load_compact(path, linear()).parameters())
    else:
        weights = load(path)["weights"]
    numbers = torch.cat([w.detach().flatten() for w in weights]).unique()
    assert numbers.numel() == 1
    return int(numbers)


def assert_whole(path, saved, kind="checkpoint"):
    number = number_in(path, kind)
    assert number in (saved, saved + 1), "the last one, or that which was about to be said"


def test_a_kill_inside_of_a_save_loses_nothing(tmp_path):
    path = tmp_path / "a.pt"
    assert_whole(path, kill_inside(path, 0.02))
    assert len(left(tmp_path)) == 2, "it was killed inside: what it wrote lies beside"
    sj_prune.save(path, 1)
    assert left(tmp_path) == ["a.pt"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("checkpoint", 25), ("compact", 10), ("deployed", 10)])
def test_kills_inside_of_a_save_lose_nothing(kind, kills, tmp_path):
    """At random moments of a save that takes about 50 ms."""
    path, rng, inside = tmp_path / "a.pt", random.Random(0), 0
    for _ in range(kills):
        saved = kill_inside(path, rng.uniform(0.0, 0.06), kind)
        assert_whole(path, saved, kind)
        inside += len(left(tmp_path)) > 1
    assert inside >= 0.6 * kills, "most kills came inside of a save"
