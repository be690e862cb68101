"""Narrow versions of every network, as the tests use them."""

import torch

from sj_prune import models

# name -> (narrow network for an input size, sizes, input channels)
NETWORKS = {
    "VGG16": (lambda size, **k: models.VGG16(widths=(16,) * 13, **k), (32, 64), 3),
    "VGG16SCA": (
        lambda size, **k: models.VGG16SCA(widths=(16,) * 13, hidden=24, size=size, **k),
        (32, 64),
        3,
    ),
    "SixConvTwoFC": (
        lambda size, **k: models.SixConvTwoFC(widths=(16,) * 6, hidden=48, size=size, **k),
        (32, 64),
        3,
    ),
    "VGGSNN": (lambda size, **k: models.VGGSNN(widths=(16,) * 8, size=size, **k), (48, 64), 2),
    "DVSNet": (
        lambda size, **k: models.DVSNet(widths=(16,) * 5, size=size, **k),
        (48, 64, 128),
        2,
    ),
    "ResNet19": (lambda size, **k: models.ResNet19(widths=(8, 16, 24), **k), (32, 64), 3),
}
CASES = [(name, size) for name, (_, sizes, _) in NETWORKS.items() for size in sizes]


def build(name, size=None, seed=0, **kwargs):
    """Return a narrow network for frames of `size` (its first by default)."""
    torch.manual_seed(seed)
    make, sizes, _ = NETWORKS[name]
    return make(sizes[0] if size is None else size, **kwargs)


def sequence(name, steps=3, samples=4, size=None, seed=0):
    """Return an input ``[T, N, C, H, W]``, the same at all steps for image networks."""
    _, sizes, channels = NETWORKS[name]
    size = sizes[0] if size is None else size
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, channels, size, size, generator=generator)
    return x.expand(steps, *x.shape)
