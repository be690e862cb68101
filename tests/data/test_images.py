import hashlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from sj_prune.data import cifar10, cifar100, download, image_folder, tiny, tiny_imagenet


def fake_cifar(kind, root):
    """Small batches in the official form, which torchvision would refuse for their checksums."""
    rng = np.random.default_rng(0)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    pixels, labels = [], []
    for name, _ in [*kind.train_list, *kind.test_list]:
        data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        label = rng.integers(0, 10, 4).tolist()
        key = "fine_labels" if kind.__name__ == "CIFAR100" else "labels"
        with open(folder / name, "wb") as file:
            pickle.dump({"data": data, key: label}, file)
        pixels.append(data.reshape(4, 3, 32, 32))
        labels += label
    with open(folder / kind.meta["filename"], "wb") as file:
        pickle.dump({kind.meta["key"]: [f"class{i}" for i in range(10)]}, file)
    return np.concatenate(pixels), labels


@pytest.mark.parametrize(("load", "name"), [(cifar10, "CIFAR10"), (cifar100, "CIFAR100")])
def test_cifar_is_the_official_pixels_as_uint8(load, name, tmp_path, monkeypatch):
    kind = getattr(download.torchvision_module("datasets"), name)
    pixels, labels = fake_cifar(kind, tmp_path)
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    cifar = download.torchvision_module("datasets.cifar")
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    train, test = load(tmp_path)
    assert (train.x.dtype, train.y.dtype, train.classes[0]) == (torch.uint8, torch.int64, "class0")
    assert train.x.is_contiguous()
    np.testing.assert_array_equal(torch.cat([train.x, test.x]).numpy(), pixels)
    assert torch.cat([train.y, test.y]).tolist() == labels
    assert len(test) == 4
    assert len(train.mean) == len(train.std) == 3


@pytest.mark.parametrize("load", [cifar10, cifar100])
def test_missing_cifar_says_how_to_get_it(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="download=True, or fetch https://.*and unpack it"):
        load(tmp_path)


def test_damaged_cifar_is_refused_by_torchvisions_checksums(tmp_path):
    fake_cifar(download.torchvision_module("datasets").CIFAR10, tmp_path)
    with pytest.raises(FileNotFoundError, match="with their checksums"):
        cifar10(tmp_path)


def test_offline_download_says_what_to_put_where(served, tmp_path, monkeypatch):
    kind = download.torchvision_module("datasets").CIFAR10
    monkeypatch.setattr(kind, "url", f"{served[1]}/absent.tar.gz")
    with pytest.raises(RuntimeError, match="Expected to download CIFAR10 .*MD5 .*put it in"):
        cifar10(tmp_path / "root", download=True)


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for part, names in (("train", "ab"), ("val", "ab")):
        for name in names:
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for k in range(2):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return tmp_path


def test_image_folder_gives_uint8(folders):
    train, test = image_folder(folders, 24)
    assert (len(train), len(test), train.classes) == (4, 4, ["a", "b"])
    for part in (train, test):
        x, y = part[3]
        assert (x.shape, x.dtype, y) == ((3, 24, 24), torch.uint8, 1)
    assert torch.equal(test[0][0], test[0][0])
    torch.manual_seed(0)
    assert not torch.equal(train[0][0], train[0][0])
    plain, _ = image_folder(folders, 24, augment=False)
    assert torch.equal(plain[0][0], plain[0][0])


def test_image_folder_explains(folders):
    (folders / "val/b").rename(folders / "val/c")
    with pytest.raises(FileNotFoundError, match="same classes in train and val"):
        image_folder(folders)
    shutil.rmtree(folders / "val")
    with pytest.raises(FileNotFoundError, match="val: Expected folders <class>"):
        image_folder(folders)


@pytest.fixture
def tiny_archive(served, tmp_path, monkeypatch):
    """Two classes in the official layout, as an archive to download."""
    source = tmp_path / "source" / "tiny-imagenet-200"
    rng = np.random.default_rng(0)
    pixels = {}

    def save(path, mode):
        shape = (64, 64, 3) if mode == "RGB" else (64, 64)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        image.save(path, "PNG")
        pixels[path.name] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)

    names = ["n02", "n01"]
    for name in names:
        for k, mode in enumerate(("RGB", "L")):
            save(source / "train" / name / "images" / f"{name}_{k}.JPEG", mode)
    lines = []
    for k in range(3):
        save(source / "val" / "images" / f"val_{k}.JPEG", "RGB")
        lines.append(f"val_{k}.JPEG\t{names[k % 2]}\t0\t0\t62\t62\n")
    (source / "val" / "val_annotations.txt").write_text("".join(lines))
    (source / "wnids.txt").write_text("\n".join(names) + "\n")
    archive = served[0] / "tiny.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(source.rglob("*")):
            file.write(path, path.relative_to(source.parent))
    monkeypatch.setattr(tiny, "_URL", f"{served[1]}/tiny.zip")
    monkeypatch.setattr(tiny, "_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    return pixels


def test_tiny_imagenet(tiny_archive, tmp_path, monkeypatch):
    root = tmp_path / "root"
    train, test = tiny_imagenet(root, download=True)
    assert train.classes == ("n01", "n02")
    assert train.y.tolist() == [0, 0, 1, 1]
    assert test.y.tolist() == [1, 0, 1]
    assert (train.x.shape, train.x.dtype) == ((4, 3, 64, 64), torch.uint8)
    np.testing.assert_array_equal(train.x[2].numpy(), tiny_archive["n02_0.JPEG"])
    np.testing.assert_array_equal(train.x[1].numpy(), tiny_archive["n01_1.JPEG"])
    np.testing.assert_array_equal(test.x[2].numpy(), tiny_archive["val_2.JPEG"])
    # The second time from the cache, and from the images where the cache is damaged.
    decoded = []
    genuine = tiny._decode_all
    monkeypatch.setattr(tiny, "_decode_all", lambda files: decoded.append(0) or genuine(files))
    again, _ = tiny_imagenet(root)
    assert torch.equal(again.x, train.x)
    assert decoded == []
    cache = root / "tiny-imagenet-200/train.npz"
    cache.write_bytes(cache.read_bytes()[:500])
    again, _ = tiny_imagenet(root)
    assert torch.equal(again.x, train.x)
    assert decoded == [0]


def test_tiny_imagenet_missing_or_wrong(tiny_archive, tmp_path, monkeypatch):
    root = tmp_path / "root"
    with pytest.raises(FileNotFoundError, match="download=True, or fetch .*and unpack it in"):
        tiny_imagenet(root)
    monkeypatch.setattr(tiny, "_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="Expected to download tiny-imagenet-200.zip"):
        tiny_imagenet(root, download=True)
    assert not (root / "tiny-imagenet-200").exists()


def test_a_torchvision_that_does_not_import_is_explained(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(download, "import_module", broken)
    with pytest.raises(ImportError, match="Expected torchvision.datasets to import but got .*nms"):
        cifar10("anywhere")


def test_import_is_light(loaded):
    assert "sj_prune.data" in loaded["sj_prune.data"]
    unwanted = {"torchvision", "spikingjelly.datasets", "PIL"}
    assert unwanted & set(loaded["sj_prune.data"]) == set()
