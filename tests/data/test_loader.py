import json
import pickle

import pytest
import torch
from torch.nn import functional as F

from sj_prune.data import CropFlip, Normalize, ResidentLoader, event_augmentation

MEAN, STD = (0.49, 0.48, 0.44), (0.25, 0.24, 0.26)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 256, (53, 3, 12, 10), dtype=torch.uint8, generator=generator)
    return x, torch.arange(53)


def loader(images, **options):
    defaults = {
        "augment": CropFlip(),
        "normalize": Normalize(MEAN, STD),
        "shuffle": True,
        "seed": 7,
    }
    return ResidentLoader(*images, 8, **{**defaults, **options})


def equal(a, b):
    assert len(a) == len(b)
    return all(torch.equal(x, z) and torch.equal(y, w) for (x, y), (z, w) in zip(a, b, strict=True))


def all_crops(image, padding):
    """Every crop of a padded image, plain and mirrored, one by one."""
    _, height, width = image.shape
    padded = F.pad(image, (padding,) * 4)
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            yield (top, left, False), crop
            yield (top, left, True), crop.flip(-1)


def test_crop_and_flip_equal_a_loop_over_images(images):
    """Each output is exactly one of the possible crops; over images, places and sides vary."""
    x = images[0]
    out = CropFlip(2)(x, torch.Generator().manual_seed(0))
    assert out.dtype == torch.uint8
    found = []
    for image, result in zip(x, out, strict=True):
        kinds = [kind for kind, crop in all_crops(image, 2) if torch.equal(crop, result)]
        assert len(kinds) == 1
        found += kinds
    for axis in range(2):
        assert {kind[axis] for kind in found} == set(range(5))
    assert 10 < sum(kind[2] for kind in found) < 43


def test_crop_without_padding_or_flip_changes_nothing(images):
    assert torch.equal(CropFlip(0, 0.0)(images[0]), images[0])
    assert torch.equal(CropFlip(0, 1.0)(images[0]), images[0].flip(-1))


@pytest.mark.parametrize("arguments", [(-1, 0.5), (1.5, 0.5), (4, 1.5)])
def test_crop_out_of_range(arguments):
    with pytest.raises(ValueError, match="Expected"):
        CropFlip(*arguments)


def test_normalize_equals_torchvision(images):
    from torchvision.transforms.functional import normalize

    expected = normalize(images[0].float() / 255, MEAN, STD)
    torch.testing.assert_close(Normalize(MEAN, STD)(images[0]), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="positive std"):
        Normalize((0.5,), (0.0,))
    assert Normalize.imagenet().mean[0] == 0.485


def test_an_epoch_has_every_sample_once_in_a_new_order(images):
    data = loader(images)
    assert len(data) == 7
    orders = [torch.cat([y for _, y in data]).tolist() for _ in range(3)]
    assert all(sorted(order) == list(range(53)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert (data.epoch, data.position) == (3, 0)


def test_plain_loader_gives_the_data_in_order(images):
    data = ResidentLoader(*images, 10)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    assert torch.equal(y, images[1])
    torch.testing.assert_close(x, images[0].float() / 255)
    halves = ResidentLoader(torch.full((4, 2), 3.0, dtype=torch.float16), torch.zeros(4), 4)
    (x, _), *_ = halves
    assert x.dtype == torch.float32
    assert (x == 3).all()


def test_drop_last(images):
    data = loader(images, drop_last=True)
    assert [len(y) for _, y in data] == [8] * 6
    assert len(data) == 6


def test_same_seed_same_batches(images):
    assert equal(list(loader(images)), list(loader(images)))
    assert not equal(list(loader(images)), list(loader(images, seed=8)))


@pytest.mark.parametrize("stop", range(1, 8))
def test_resume_in_an_epoch_is_bit_identical(images, stop):
    """Stopped in the second epoch after any batch, the rest and the third epoch are the same."""
    whole = loader(images)
    list(whole)
    expected = [*whole, *whole]
    first = loader(images)
    list(first)
    for number, _ in enumerate(first, 1):
        if number == stop:
            state = json.loads(json.dumps(first.state_dict()))
            break
    assert (state["epoch"], state["position"]) == (1, stop)
    torch.rand(10)
    second = loader(images)
    second.load_state_dict(state)
    assert equal([*second, *second], expected[stop:])
    assert second.epoch == 3


def test_an_iteration_broken_off_starts_again(images):
    data = loader(images)
    first = next(iter(data))
    assert equal([first], [next(iter(data))])
    assert equal(list(data), list(loader(images)))


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_share_every_batch(images, world_size):
    """Put together, their slices are the batches of one process, augmented alike."""
    ranks = [list(loader(images, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {7}
    whole = list(loader(images))
    for index, (x, y) in enumerate(whole):
        slices = [batches[index] for batches in ranks]
        assert torch.equal(torch.cat([part for part, _ in slices]), x)
        assert torch.equal(torch.cat([part for _, part in slices]), y)
        sizes = [len(part) for _, part in slices]
        assert max(sizes) - min(sizes) <= 1


def test_samples_are_those_of_all_ranks(images):
    data = loader(images).split(1, 3)
    assert [(data.samples, len(y)) for _, y in data] == [(8, 3)] * 6 + [(5, 2)]
    with pytest.raises(ValueError, match="to give each of them one at least but got 8"):
        data.split(0, 9)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": 8}, "seed"), ({"drop_last": True}, "drop_last"), ({"shuffle": False}, "shuffle")],
)
def test_a_state_of_other_settings_is_refused(images, change, name):
    data = loader(images, **change)
    iterator = iter(data)
    next(iterator)
    with pytest.raises(ValueError, match=f"{name}=.*make the loader as it was"):
        loader(images).load_state_dict(data.state_dict())


def test_number_of_processes_may_change(images):
    """In the middle of an epoch too: what is left of it is shared anew."""
    data = loader(images)
    iterator = iter(data)
    next(iterator), next(iterator)
    state = data.state_dict()
    rest = list(iterator)
    ranks = [loader(images, rank=rank, world_size=2) for rank in range(2)]
    for other in ranks:
        other.load_state_dict(state)
    first, second = map(list, ranks)
    assert len(first) == len(rest) == 5
    for (x, _), (a, _), (b, _) in zip(rest, first, second, strict=True):
        assert torch.equal(torch.cat([a, b]), x)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"rank": 1},
        {"seed": -1},
        {"y": torch.arange(4)},
        {"batch_size": 6, "drop_last": True},
    ],
)
def test_arguments_that_do_not_fit(change):
    arguments = {"x": torch.zeros(5, 3, 4, 4), "y": torch.arange(5), "batch_size": 2, **change}
    with pytest.raises(ValueError, match="Expected"):
        ResidentLoader(**arguments)


def test_event_frames(images):
    x = torch.rand(6, 4, 2, 16, 16).half()
    data = ResidentLoader(x, torch.arange(6), 4, augment=event_augmentation(), seed=1)
    batches = list(data)
    assert [tuple(x.shape) for x, _ in batches] == [(4, 4, 2, 16, 16), (2, 4, 2, 16, 16)]
    again = ResidentLoader(x, torch.arange(6), 4, augment=event_augmentation(), seed=1)
    assert equal(batches, list(again))


def test_loader_can_be_pickled(images):
    data = loader(images)
    list(data)
    assert equal(list(pickle.loads(pickle.dumps(data))), list(data))


@pytest.mark.gpu
def test_batches_are_the_same_on_the_device(images):
    ours = [(x.cpu(), y.cpu()) for x, y in loader(images, device="cuda")]
    for (x, y), (z, w) in zip(ours, loader(images), strict=True):
        torch.testing.assert_close(x, z)
        assert torch.equal(y, w)
