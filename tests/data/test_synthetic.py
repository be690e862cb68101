import pytest
import torch

from sj_prune.data import SYNTHETIC_CLASSES, synthetic_images


def test_shapes_balance_and_seed():
    x, y = synthetic_images(7, classes=4, size=24, seed=5)
    assert (x.shape, x.dtype, y.dtype) == ((28, 3, 24, 24), torch.uint8, torch.int64)
    assert y.bincount().tolist() == [7] * 4
    again = synthetic_images(7, classes=4, size=24, seed=5)
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    assert not torch.equal(x, synthetic_images(7, classes=4, size=24, seed=6)[0])
    assert list(SYNTHETIC_CLASSES) == sorted(SYNTHETIC_CLASSES)


def test_classes_are_neither_given_by_brightness_nor_by_single_pixels():
    """Nearest class mean is well above chance (10 %) at best and far from solving the task."""
    x, y = synthetic_images(60, seed=0)
    test_x, test_y = synthetic_images(30, seed=1)
    flat, test_flat = x.flatten(1).float(), test_x.flatten(1).float()
    means = torch.stack([flat[y == label].mean(0) for label in range(10)])
    accuracy = (torch.cdist(test_flat, means).argmin(1) == test_y).float().mean()
    assert accuracy < 0.45
    bright = torch.stack([flat[y == label].mean() for label in range(10)])
    assert bright.std() < 10


@pytest.mark.slow
def test_a_small_network_learns_the_classes():
    x, y = synthetic_images(200, seed=0)
    test_x, test_y = synthetic_images(50, seed=1)
    x, test_x = x.float() / 128 - 1, test_x.float() / 128 - 1
    net = torch.nn.Sequential(
        *(
            layer
            for a, b in ((3, 16), (16, 32), (32, 64))
            for layer in (
                torch.nn.Conv2d(a, b, 3, padding=1),
                torch.nn.BatchNorm2d(b),
                torch.nn.ReLU(),
                torch.nn.MaxPool2d(2),
            )
        ),
        torch.nn.Flatten(),
        torch.nn.Linear(64 * 16, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(8):
        for chosen in torch.randperm(len(x)).split(100):
            loss = torch.nn.functional.cross_entropy(net(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        assert (net.eval()(test_x).argmax(1) == test_y).float().mean() > 0.9


@pytest.mark.parametrize(
    "change", [{"n_per_class": 0}, {"classes": 11}, {"classes": 0}, {"size": 4}, {"clutter": -1}]
)
def test_out_of_range(change):
    with pytest.raises(ValueError, match="Expected"):
        synthetic_images(**{"n_per_class": 1, **change})
