"""load_compact of what is none of its files says what it got; save_compact keeps the old file."""

import contextlib
import random
import re
import zipfile

import pytest
import torch
from torch import nn

import sj_prune
from sj_prune.compaction import architecture, load_compact, save_compact


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")


def cut(path):
    save_compact(path, net())
    path.write_bytes(path.read_bytes()[:700])


def flipped(path):
    """One bit of a weight is another one: torch would load it."""
    save_compact(path, net())
    content, weight = path.read_bytes(), net()[0].weight.detach().numpy().tobytes()
    at = content.index(weight)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


GARBAGE = {
    "is damaged: a checksum in it differs": flipped,
    "is empty": lambda path: path.write_bytes(b""),
    "begins with b'hello'": lambda path: path.write_bytes(b"hello"),
    "begins with b'\\x00": lambda path: path.write_bytes(bytes(5000)),
    "is cut short: an archive without an end, 700 bytes": cut,
    "is an archive of something else": archive,
    "or holds pickled classes, as torch.save(net) does": lambda path: torch.save(net(), path),
    "format None and holds the keys '0.weight', '0.bias'": lambda path: torch.save(
        net().state_dict(), path
    ),
    "format None and holds a Tensor": lambda path: torch.save(torch.ones(3), path),
    "format None and holds a list": lambda path: torch.save([1, 2], path),
    "format True": lambda path: torch.save({"format": True}, path),
    "format 99": lambda path: torch.save({"format": 99}, path),
    "'architecture' in the file of save_compact": lambda path: torch.save({"format": 1}, path),
    "'state_dict' in the file of save_compact": lambda path: torch.save(
        {"format": 1, "architecture": architecture(net()), "state_dict": 5}, path
    ),
}


@pytest.mark.parametrize("message", GARBAGE)
def test_garbage_is_named(message, tmp_path):
    path = tmp_path / "small.pt"
    GARBAGE[message](path)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_compact(path, net())
    assert str(path) in str(caught.value)


def test_a_missing_file_is_said_as_such(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_compact(tmp_path / "absent.pt", net())


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_refused_or_is_the_same_network(seed, tmp_path):
    """Bytes changed or cut off; errors are of the kinds that are documented."""
    path, small, rng = tmp_path / "small.pt", net(), random.Random(seed)
    save_compact(path, small)
    content = bytearray(path.read_bytes())
    if seed % 2:
        content = content[: rng.randrange(len(content))]
    else:
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(bytes(content))
    dense = net(1)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    loaded = None
    with contextlib.suppress(ValueError, RuntimeError):
        loaded = load_compact(path, dense)
    if loaded is not None:
        assert all(map(torch.equal, loaded.state_dict().values(), small.state_dict().values()))
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path, old = tmp_path / "small.pt", net(0)
    save_compact(path, old)

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sj_prune._files.os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            save_compact(path, net(1))
    found = load_compact(path, net(2))
    assert torch.equal(found[0].weight, old[0].weight)
    assert [p.name for p in tmp_path.iterdir()] == ["small.pt"]
