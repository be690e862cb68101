"""SpikingJelly's own networks that take `spiking_neuron=`, as small as their builders permit."""

from unittest import mock

import torch
from spikingjelly.activation_based import functional, layer, model, neuron, surrogate
from spikingjelly.activation_based.model import (
    parametric_lif_net,
    sew_resnet,
    spiking_resnet,
    spiking_vgg,
)
from torch import nn

T, N = 2, 2
#: 0.0.0.0.14 has no transformers and no membrane shortcuts
MODERN = hasattr(model, "Spikformer")


def node(kind=neuron.IFNode, **kwargs):
    return {"spiking_neuron": kind, "surrogate_function": surrogate.ATan(), **kwargs}


def narrow_head(net):
    """Replace the classifier of a VGG, 120 million weights of which nothing is learned here."""
    nodes = [m for m in net.classifier if isinstance(m, neuron.BaseNode)]
    net.classifier = nn.Sequential(
        layer.Linear(512 * 7 * 7, 12), nodes[0], layer.Dropout(), layer.Linear(12, 10)
    )
    return net


def vgg(name):
    def make():
        # Nor are they drawn, by torch or by the host.
        untouched = mock.patch.object(nn.Linear, "reset_parameters")
        with untouched, mock.patch.object(nn.init, "normal_"):
            net = getattr(spiking_vgg, f"spiking_{name}")(num_classes=10, **node())
        return narrow_head(net)

    return make


def resnet(depth):
    build = getattr(spiking_resnet, f"spiking_resnet{depth}")
    return lambda: build(num_classes=10, **node())


def sew(depth, cnf):
    build = getattr(sew_resnet, f"sew_resnet{depth}")
    return lambda: build(num_classes=10, cnf=cnf, **node())


# Of the blocks of ResNet18: every kind of shortcut, and two blocks in a row.
BLOCKS = (2, 1, 1, 1)


def resnet12():
    kind, block = spiking_resnet.SpikingResNet, spiking_resnet.BasicBlock
    return kind(block, BLOCKS, num_classes=10, **node())


def sew12(cnf):
    kind, block = sew_resnet.SEWResNet, sew_resnet.BasicBlock
    return lambda: kind(block, BLOCKS, num_classes=10, cnf=cnf, **node())


def dvs(name, channels=8):
    kind = getattr(parametric_lif_net, name)
    return lambda: kind(channels=channels, **node(neuron.LIFNode, tau=1.4))


def modern(name, **kwargs):
    defaults = {"T": T, "num_classes": 10, **node()}
    return lambda: getattr(model, name)(**{**defaults, **kwargs})


IMAGE = (3, 32, 32)
#: name -> (builder, shape of an image)
ZOO = {
    **{
        f"vgg{depth}{bn}": (vgg(f"vgg{depth}{bn}"), IMAGE)
        for depth in (11, 13, 16, 19)
        for bn in ("", "_bn")
    },
    **{f"spiking_resnet{depth}": (resnet(depth), IMAGE) for depth in (18, 34, 50)},
    **{
        f"sew_resnet{depth}_{cnf}": (sew(depth, cnf), IMAGE)
        for depth in (18, 34, 50)
        for cnf in ("ADD", "AND", "IAND")
    },
    "spiking_resnet12": (resnet12, IMAGE),
    **{f"sew_resnet12_{cnf}": (sew12(cnf), IMAGE) for cnf in ("ADD", "AND", "IAND")},
    "spiking_resnext50": (
        lambda: spiking_resnet.spiking_resnext50_32x4d(num_classes=10, **node()),
        IMAGE,
    ),
    "MNISTNet": (dvs("MNISTNet"), (1, 28, 28)),
    "FashionMNISTNet": (dvs("FashionMNISTNet"), (1, 28, 28)),
    "NMNISTNet": (dvs("NMNISTNet"), (2, 34, 34)),
    "CIFAR10Net": (dvs("CIFAR10Net"), IMAGE),
    "CIFAR10DVSNet": (dvs("CIFAR10DVSNet"), (2, 128, 128)),
    "DVSGestureNet": (dvs("DVSGestureNet"), (2, 128, 128)),
}
if MODERN:
    ZOO |= {
        "ms_resnet18": (modern("ms_resnet18"), IMAGE),
        "ms_resnet34": (modern("ms_resnet34"), IMAGE),
        "MSResNet": (modern("MSResNet", base_channels=8, layers=(1, 1, 1)), IMAGE),
        "max_resnet18": (modern("max_resnet18"), (3, 8, 8)),
        "MaxResNet": (modern("MaxResNet", base_channels=8, layers=(1, 1, 1)), (3, 16, 16)),
        "Spikformer": (
            modern(
                "Spikformer",
                img_size_h=32,
                img_size_w=32,
                patch_size=4,
                embed_dims=32,
                num_heads=4,
                depths=2,
            ),
            IMAGE,
        ),
        "QKFormer": (
            modern("QKFormer", embed_dims=32, num_heads=(1, 1, 1), depths=(1, 1, 1)),
            IMAGE,
        ),
        "SpikeDrivenTransformer": (
            modern("SpikeDrivenTransformer", embed_dims=32, num_heads=4, depths=2),
            IMAGE,
        ),
        "MaxFormer": (modern("MaxFormer", embed_dims=32, depths=(1, 1, 1)), IMAGE),
        "MaxFormer_cifar": (
            modern("MaxFormer", embed_dims=32, depths=(1, 1, 1), cifar=True),
            (3, 16, 16),
        ),
        "MASNN": (
            modern(
                "MASNN",
                v_threshold=0.05,
                channels=(8, 16, 16),
                fc_hidden=16,
                reduction_t=2,
                reduction_c=4,
            ),
            (2, 32, 32),
        ),
        "AttMSResNet": (
            modern("AttMSResNet", base_channels=8, layers=(1, 1, 1), reduction_c=4),
            IMAGE,
        ),
    }
#: one of every family, small, for every run
QUICK = [
    name
    for name in (
        "vgg11",
        "vgg11_bn",
        "spiking_resnet12",
        "sew_resnet12_ADD",
        "sew_resnet12_AND",
        "sew_resnet12_IAND",
        "CIFAR10DVSNet",
        "MNISTNet",
        "MSResNet",
        "MaxResNet",
        "Spikformer",
        "QKFormer",
        "SpikeDrivenTransformer",
        "MaxFormer",
        "MaxFormer_cifar",
        "MASNN",
        "AttMSResNet",
    )
    if name in ZOO
]


def build(name, seed=0):
    """Return a network in multi-step mode and an input ``[T, N, C, H, W]`` of it."""
    torch.manual_seed(seed)
    builder, shape = ZOO[name]
    net = builder()
    functional.set_step_mode(net, "m")
    return net, torch.rand(T, N, *shape) * 2
