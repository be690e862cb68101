import pytest
import torch

from sj_prune.data import Compose, Cutout, RandomFlip, RandomRoll, Resize, event_augmentation

SEEDS = range(6)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch():
    return torch.rand(16, 3, 2, 12, 10, generator=seeded(0)) + 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_roll_is_a_roll_of_each_sample(batch, seed):
    """Every sample is its own roll by at most `pixels`, and the same at all time steps."""
    rolled = RandomRoll(3)(batch, seeded(seed))
    found = set()
    for x, y in zip(batch, rolled, strict=True):
        shifts = [
            (down, right)
            for down in range(-3, 4)
            for right in range(-3, 4)
            if torch.equal(torch.roll(x, (down, right), (-2, -1)), y)
        ]
        assert len(shifts) == 1
        found.update(shifts)
    assert len(found) > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_flip_mirrors_whole_samples(batch, seed):
    flipped = RandomFlip(0.5)(batch, seeded(seed))
    kinds = [
        "same" if torch.equal(x, y) else "mirror" if torch.equal(x.flip(-1), y) else "wrong"
        for x, y in zip(batch, flipped, strict=True)
    ]
    assert set(kinds) == {"same", "mirror"}
    assert torch.equal(RandomFlip(0.0)(batch), batch)
    assert torch.equal(RandomFlip(1.0)(batch), batch.flip(-1))


@pytest.mark.parametrize("seed", SEEDS)
def test_cutout_zeroes_one_square(batch, seed):
    cut = Cutout(6, p=0.7)(batch, seeded(seed))
    areas = []
    for x, y in zip(batch, cut, strict=True):
        hole = y == 0
        assert torch.equal(y[~hole], x[~hole])
        assert (hole == hole[0, 0]).all()
        area = hole[0, 0]
        rows, columns = area.any(1).sum(), area.any(0).sum()
        assert area.sum() == rows * columns
        assert max(rows, columns) <= 6
        areas.append(int(area.sum()))
    assert 0 in areas
    assert max(areas) > 0
    assert torch.equal(Cutout(6, p=0.0)(batch), batch)


def test_cutout_draws_every_edge_and_place():
    """Over many samples each pixel is hit; away from the borders a hole is a full square."""
    x = torch.ones(4000, 1, 1, 12, 12)
    hole = Cutout(4, p=1.0)(x, seeded(0))[:, 0, 0] == 0
    assert hole.any(0).all()
    inner = ~(hole[:, 0].any(1) | hole[:, -1].any(1) | hole[:, :, 0].any(1) | hole[:, :, -1].any(1))
    assert set(hole[inner].flatten(1).sum(1).tolist()) == {1, 4, 9, 16}


def test_one_sample_is_a_batch_of_one(batch):
    for transform in (RandomRoll(3), RandomFlip(), Cutout(), Resize(6), event_augmentation()):
        one = transform(batch[0], seeded(3))
        assert one.shape[:2] == (3, 2)
        assert torch.equal(one, transform(batch[:1], seeded(3))[0])


def test_resize_equals_torchvision(batch):
    from torchvision.transforms.functional import resize

    for size in (4, 6, 20):
        expected = resize(batch.flatten(0, 1), [size, size], antialias=True)
        torch.testing.assert_close(Resize(size)(batch).flatten(0, 1), expected)


def test_resize_keeps_the_mean_and_an_equal_size():
    x = torch.randint(0, 9, (2, 4, 2, 128, 128)).float()
    torch.testing.assert_close(Resize(48)(x).mean(), x.mean(), rtol=5e-3, atol=0)
    assert Resize(128)(x) is x


def test_seeds_and_the_global_generator(batch):
    augment = event_augmentation()
    assert torch.equal(augment(batch, seeded(1)), augment(batch, seeded(1)))
    assert not torch.equal(augment(batch, seeded(1)), augment(batch, seeded(2)))
    torch.manual_seed(4)
    first = augment(batch)
    torch.manual_seed(4)
    assert torch.equal(first, augment(batch))


def test_compose_goes_in_order(batch):
    both = Compose((Resize(6), RandomFlip(1.0)))(batch)
    assert torch.equal(both, Resize(6)(batch).flip(-1))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Resize, (0,)),
        (Resize, (2.5,)),
        (RandomFlip, (1.5,)),
        (RandomRoll, (-1,)),
        (Cutout, (0,)),
        (Cutout, (4, -0.1)),
    ],
)
def test_out_of_range(kind, arguments):
    with pytest.raises(ValueError, match="Expected"):
        kind(*arguments)


def test_wrong_dimensions():
    with pytest.raises(ValueError, match=r"\[T, 2, H, W\]"):
        RandomFlip()(torch.zeros(2, 4, 4))


@pytest.mark.gpu
def test_equal_on_the_device(batch):
    transform = event_augmentation()
    assert torch.equal(transform(batch.cuda(), seeded(1)).cpu(), transform(batch, seeded(1)))
