import hashlib
import io
import math
import pickle
import shutil
import zipfile
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sj_prune.data import cifar10_dvs, event_augmentation, frames, host, split_per_class, stack
from sj_prune.data.event_transforms import Resize
from tests.support.data_cases import NAMES, PER_CLASS

T = 4
FRAMES = f"frames_number_{T}_split_by_number"


@pytest.fixture(scope="session")
def with_frames(tmp_path_factory, recordings):
    """A data set whose frames are made; to be copied."""
    root = tmp_path_factory.mktemp("frames") / "own"
    shutil.copytree(recordings, root)
    cifar10_dvs(root, T, train_ratio=0.8)
    return root


@pytest.fixture
def ready(tmp_path, with_frames):
    return shutil.copytree(with_frames, tmp_path / "ready")


@pytest.fixture
def direct(recordings, tmp_path):
    """SpikingJelly's data set without anything of ours between."""
    from spikingjelly.datasets.cifar10_dvs import CIFAR10DVS

    shutil.copytree(recordings / "events_np", tmp_path / "direct/events_np")
    with redirect_stdout(io.StringIO()):
        return CIFAR10DVS(
            str(tmp_path / "direct"), data_type="frame", frames_number=T, split_by="number"
        )


def test_from_recordings_to_batches(copy, direct):
    """Parser, conversion, frames and split; equal to SpikingJelly's own frames."""
    shutil.rmtree(copy / "events_np")
    train, test = cifar10_dvs(copy, T, size=48, train_ratio=0.8, augment=False)
    assert (len(train), len(test)) == (4 * len(NAMES), len(NAMES))
    assert train.classes == list(NAMES)
    resize = Resize(48)
    for part in (train, test):
        for position, index in enumerate(part.indices):
            x, y = part[position]
            expected, label = direct[index]
            assert (x.shape, x.dtype, y) == ((T, 2, 48, 48), torch.float32, label)
            assert part.targets[position] == label
            torch.testing.assert_close(x, resize(torch.from_numpy(expected)), rtol=0, atol=0)
    assert {path.name for path in copy.iterdir()} == {"extract", "events_np", FRAMES}


def test_training_samples_are_augmented_and_test_samples_not(ready):
    train, test = cifar10_dvs(ready, T, train_ratio=0.8)
    plain_train, plain_test = cifar10_dvs(ready, T, train_ratio=0.8, augment=False)
    assert torch.equal(test[0][0], plain_test[0][0])
    torch.manual_seed(5)
    x = train[0][0]
    assert not torch.equal(x, plain_train[0][0])
    torch.manual_seed(5)
    assert torch.equal(x, event_augmentation()(plain_train[0][0]))


def test_full_size_has_no_resizing(ready):
    _, test = cifar10_dvs(ready, T, size=128, train_ratio=0.8)
    x, _ = test[0]
    assert x.shape == (T, 2, 128, 128)
    with np.load(ready / "events_np/cat/cifar10_cat_4.npz") as events:
        assert x.sum() == events["t"].size


def test_split_equals_the_host_and_loads_nothing(direct, recordings):
    from spikingjelly.datasets import split_to_train_test_set

    for ratio in (0.5, 0.8, 0.61):
        theirs = split_to_train_test_set(ratio, direct, len(NAMES))
        ours = split_per_class(direct.targets, ratio)
        assert [list(part.indices) for part in theirs] == list(ours)


def test_opening_reads_no_frames(ready, monkeypatch):
    monkeypatch.setattr(np, "load", lambda *a, **k: pytest.fail("a sample was loaded"))
    train, test = cifar10_dvs(ready, T, train_ratio=0.8)
    assert len(train) + len(test) == len(NAMES) * PER_CLASS


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    ratio=st.floats(0.05, 0.95),
    seed=st.none() | st.integers(0, 5),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_split_counts_are_exact_and_disjoint(counts, ratio, seed, order):
    targets = [label for label, count in enumerate(counts) for _ in range(count)]
    order.shuffle(targets)
    if all(math.ceil(count * ratio) == count for count in counts):
        with pytest.raises(ValueError, match="samples to test with"):
            split_per_class(targets, ratio, seed)
        return
    train, test = split_per_class(targets, ratio, seed)
    assert sorted(train + test) == list(range(len(targets)))
    for label, count in enumerate(counts):
        assert sum(targets[i] == label for i in train) == math.ceil(count * ratio)
    assert split_per_class(targets, ratio, seed) == (train, test)


def test_seeds_draw_different_splits():
    targets = [0] * 50 + [1] * 50
    splits = {tuple(split_per_class(targets, 0.9, seed)[1]) for seed in (None, 0, 1, 2)}
    assert len(splits) == 4
    for ratio in (0, 1, 1.5):
        with pytest.raises(ValueError, match="train_ratio in"):
            split_per_class(targets, ratio)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_empty(path):
    path.write_bytes(b"")


def damage_middle(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = b"x" * 40
    path.write_bytes(content)


def damage_shape(path):
    np.savez(path, frames=np.zeros((T + 1, 2, 128, 128)))


def damage_name(path):
    np.savez(path, other=np.zeros(3))


def damage_absent(path):
    path.unlink()


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_empty, damage_middle, damage_shape, damage_name, damage_absent],
)
def test_damaged_frames_are_made_anew(ready, damage, caplog):
    train, _ = cifar10_dvs(ready, T, train_ratio=0.8, augment=False)
    path = ready / FRAMES / "dog/cifar10_dog_1.npz"
    index = [file for file, _ in train.base.samples].index(str(path))
    good = train.base[index][0]
    damage(path)
    if damage is damage_absent:
        train, _ = cifar10_dvs(ready, T, train_ratio=0.8, augment=False)
    np.testing.assert_array_equal(train.base[index][0], good)
    assert "cifar10_dog_1.npz" in caplog.text
    with np.load(path) as stored:
        np.testing.assert_array_equal(stored["frames"], good)


def test_damaged_events_are_named(ready):
    for folder in (FRAMES, "events_np"):
        damage_truncate(ready / folder / "cat/cifar10_cat_0.npz")
    train, _ = cifar10_dvs(ready, T, train_ratio=0.8)
    with pytest.raises(RuntimeError, match="events_np/cat/cifar10_cat_0.npz: Expected readable"):
        train[0]
    with pytest.raises(RuntimeError, match="events_np/cat/cifar10_cat_0.npz: Expected readable"):
        cifar10_dvs(ready, T + 1, train_ratio=0.8)
    assert not (ready / "frames_number_5_split_by_number").exists()


def test_interrupted_frames_leave_nothing(copy, monkeypatch):
    genuine = host.open_frames

    def stop(root, number):
        genuine(root, number)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(frames.host, "open_frames", stop)
        with pytest.raises(KeyboardInterrupt):
            cifar10_dvs(copy, T)
    assert {path.name for path in copy.iterdir()} == {"extract", "events_np"}
    assert len(list((copy / "events_np").rglob("*.npz"))) == len(NAMES) * PER_CLASS
    train, _ = cifar10_dvs(copy, T, train_ratio=0.8)
    assert train[0][0].shape == (T, 2, 48, 48)


def test_survives_pickling_for_workers(ready):
    train, _ = cifar10_dvs(ready, T, train_ratio=0.8, augment=False)
    assert torch.equal(pickle.loads(pickle.dumps(train))[3][0], train[3][0])


def test_stack(ready):
    _, test = cifar10_dvs(ready, T, size=16, train_ratio=0.8)
    x, y = stack(test)
    assert (x.shape, x.dtype) == ((3, T, 2, 16, 16), torch.float16)
    assert y.tolist() == [0, 1, 2]
    torch.testing.assert_close(x[1].float(), test[1][0], rtol=1e-3, atol=1e-3)


def test_nothing_there_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="(?s)download=True.*airplane.zip.*generate_dvs"):
        cifar10_dvs(tmp_path)


@pytest.mark.parametrize("bad", [0, 2.5, -1])
def test_number_of_frames(tmp_path, bad):
    with pytest.raises(ValueError, match="Expected frames"):
        cifar10_dvs(tmp_path, bad)


def archives_of(recordings, folder, url):
    """The recordings packed as DVS-CIFAR10 is, an archive a class."""
    found = []
    for name in NAMES:
        path = folder / f"{name}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((recordings / "extract" / name).iterdir()):
                archive.write(file, f"{name}/{file.name}")
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        found.append((path.name, f"{url}/{path.name}", md5))
    return found


def test_download_unpacks_and_converts(recordings, served, tmp_path, monkeypatch):
    archives = archives_of(recordings, *served)
    monkeypatch.setattr(host, "archives", lambda: archives)
    root = tmp_path / "root"
    train, _ = cifar10_dvs(root, T, train_ratio=0.8, download=True)
    assert len(train) == 4 * len(NAMES)
    assert {path.name for path in root.iterdir()} == {"download", "extract", "events_np", FRAMES}


def test_download_checks_sums_and_explains(recordings, served, tmp_path, monkeypatch):
    (name, url, _), *others = archives_of(recordings, *served)
    for wrong in (url, url + ".absent"):
        monkeypatch.setattr(host, "archives", lambda w=wrong: [(name, w, "0" * 32), *others])
        with pytest.raises(RuntimeError, match=f"Expected to download {name} .* without a network"):
            cifar10_dvs(tmp_path / "root", T, download=True)
        assert not (tmp_path / "root/extract").exists()


def test_a_host_that_does_not_import_is_explained(monkeypatch):
    def broken(name):
        raise AttributeError("module 'numpy' has no attribute 'int'")

    monkeypatch.setattr(host, "import_module", broken)
    with pytest.raises(ImportError, match="Expected spikingjelly.datasets .* numpy<1.24"):
        host.CIFAR10DVS()
