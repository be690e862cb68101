import logging
import shutil

import numpy as np
import pytest
import torch

from sj_prune.data import (
    CIFAR10_CLASSES,
    Sensor,
    convert_recordings,
    generate,
    generate_dvs,
    read_aedat,
    to_spikingjelly,
    write_aedat,
)
from sj_prune.data import recordings as conversion
from tests.support.data_cases import NAMES, PER_CLASS


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_stand_as_dvs_cifar10_unpacks(recordings):
    expected = {f"{name}/cifar10_{name}_{k}" for name in NAMES for k in range(PER_CLASS)}
    assert set(contents(recordings / "extract")) == {f"{name}.aedat" for name in expected}
    assert set(contents(recordings / "events_np")) == {f"{name}.npz" for name in expected}
    # SpikingJelly takes every entry of this folder for a class.
    assert sorted(path.name for path in (recordings / "extract").iterdir()) == list(NAMES)


def test_labels_become_folders(recordings, pictures, short):
    images, labels = pictures
    gray = generate.as_gray(images)
    third = (labels == 1).nonzero()[3].item()
    events = generate.simulate(gray[third], None, short, seed=0, index=third)
    stored = read_aedat(recordings / "extract/dog/cifar10_dog_3.aedat")
    for key, values in stored.items():
        np.testing.assert_array_equal(values, events[key])


def test_conversion_equals_the_host(recordings, tmp_path):
    """SpikingJelly's own converter, parser included, on our recordings."""
    from spikingjelly.datasets.cifar10_dvs import CIFAR10DVS

    (tmp_path / "events_np").mkdir()
    convert = getattr(CIFAR10DVS, "create_raw_from_extracted", None)
    if convert is not None:
        convert(recordings / "extract", tmp_path / "events_np")
    else:
        CIFAR10DVS.create_events_np_files(str(recordings / "extract"), str(tmp_path / "events_np"))
    made = sorted((tmp_path / "events_np").rglob("*.npz"))
    if convert is None and not made:
        pytest.skip("0.0.0.0.14's parser needs an older NumPy, and hides that it failed")
    assert len(made) == len(NAMES) * PER_CLASS
    for path in made:
        ours = np.load(recordings / "events_np" / path.parent.name / path.name)
        theirs = np.load(path)
        assert set(ours.files) == set(theirs.files)
        for key in ours.files:
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_frames_show_the_image_upright(tmp_path, short):
    """A bright spot at the top right is there in SpikingJelly's x (right) and y (down)."""
    image = torch.zeros(1, 32, 32, dtype=torch.uint8)
    image[0, 4:8, 22:28] = 255
    root = generate_dvs(tmp_path, image, [0], motion=short, sensor=Sensor(noise=0))
    with np.load(root / "events_np/airplane/cifar10_airplane_0.npz") as events:
        assert abs(events["x"].mean() - 25 * 4) < 6
        assert abs(events["y"].mean() - 6 * 4) < 6


def test_same_arguments_give_the_same_bytes(recordings, pictures, short, tmp_path):
    images, labels = pictures
    options = {"class_names": NAMES, "motion": short, "convert": False}
    again = generate_dvs(tmp_path / "a", images, labels, **options)
    assert contents(again / "extract") == contents(recordings / "extract")
    assert not (again / "events_np").exists()
    other = generate_dvs(tmp_path / "b", images, labels, seed=1, **options)
    first, second = contents(again / "extract"), contents(other / "extract")
    assert all(first[name] != second[name] for name in first)


def test_what_is_there_is_kept_and_other_recordings_are_not_mixed(tmp_path, pictures, short):
    images, labels = pictures
    root = generate_dvs(tmp_path, images, labels, motion=short)
    file = next((root / "extract").rglob("*.aedat"))
    stamp = file.stat().st_mtime_ns
    generate_dvs(root, images, labels, motion=short)
    assert file.stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="other settings: choose another folder"):
        generate_dvs(root, images, labels, motion=short, seed=1)
    (root / generate.GENERATED).unlink()
    with pytest.raises(FileExistsError, match="perhaps genuine recordings"):
        generate_dvs(root, images, labels, motion=short)


@pytest.mark.parametrize(
    ("module", "function"), [(generate, "write_aedat"), (conversion, "save_npz")]
)
def test_an_interruption_leaves_nothing_half_done(
    tmp_path, pictures, short, monkeypatch, module, function, recordings
):
    images, labels = pictures
    genuine, calls = getattr(module, function), []

    def fail_at_third(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        genuine(*args, **kwargs)

    options = {"class_names": NAMES, "motion": short}
    with monkeypatch.context() as patch:
        patch.setattr(module, function, fail_at_third)
        with pytest.raises(KeyboardInterrupt):
            generate_dvs(tmp_path, images, labels, **options)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {generate.GENERATED} | ({"extract"} if module is not generate else set())
    generate_dvs(tmp_path, images, labels, **options)
    assert contents(tmp_path / "extract") == contents(recordings / "extract")
    assert len(contents(tmp_path / "events_np")) == len(labels)


def test_what_a_killed_process_left_is_named_and_not_used(tmp_path, copy, caplog):
    shutil.rmtree(copy / "events_np")
    (copy / ".events_np.building-abc").mkdir()
    with caplog.at_level(logging.WARNING, "sj_prune"):
        convert_recordings(copy)
    assert ".events_np.building-abc: left by another process" in caplog.text
    assert len(contents(copy / "events_np")) == len(NAMES) * PER_CLASS


def test_a_damaged_recording_is_named(copy):
    shutil.rmtree(copy / "events_np")
    file = copy / "extract/dog/cifar10_dog_2.aedat"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="cifar10_dog_2.aedat: Expected a multiple of 8"):
        convert_recordings(copy)
    assert {path.name for path in copy.iterdir()} == {"extract"}


def test_an_interrupted_conversion_of_the_host_is_named(copy):
    (copy / "events_np.building").touch()
    with pytest.raises(RuntimeError, match="delete it and"):
        convert_recordings(copy)


def test_nothing_to_convert(tmp_path):
    with pytest.raises(FileNotFoundError, match="found none"):
        convert_recordings(tmp_path)


IMAGES = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1], None, "one label >= 0 for each of 3 images"),
        ([0, 1, -1], None, "one label >= 0"),
        ([0, 1, 2], ("a", "b"), "names of 3 classes but got 2"),
        ([0, 1, 10], None, "names of 11 classes but got 10"),
        ([0, 1, 1], ("b", "a"), "alphabetical order"),
        ([0, 1, 1], ("a", "a"), "alphabetical order"),
        ([0, 1, 1], ("../a", "b"), "folder names"),
        ([0, 2, 2], None, r"none of \[1\]"),
    ],
)
def test_classes_that_do_not_fit(tmp_path, labels, names, message):
    with pytest.raises(ValueError, match=message):
        generate_dvs(tmp_path / "x", IMAGES, labels, class_names=names)
    assert not (tmp_path / "x").exists()


def test_names_of_cifar10_are_the_default(tmp_path, short):
    root = generate_dvs(tmp_path, IMAGES, [0, 1, 2], motion=short, convert=False)
    assert sorted(p.name for p in (root / "extract").iterdir()) == list(CIFAR10_CLASSES[:3])


def test_turning_is_a_bijection(tmp_path):
    events = {"t": [0, 1], "x": [0, 127], "y": [3, 120], "p": [0, 1]}
    write_aedat(tmp_path / "a.aedat", events)
    turned = to_spikingjelly(read_aedat(tmp_path / "a.aedat"))
    assert {key: values.tolist() for key, values in turned.items()} == {
        "t": [0, 1],
        "x": [124, 7],
        "y": [0, 127],
        "p": [1, 0],
    }
