"""A narrow SEW-ResNet for small images, of SpikingJelly's own residual blocks."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model.sew_resnet import BasicBlock
from torch import nn


def make_neuron(**_):
    """Return a neuron as SEW-ResNet has them (Fang et al., NeurIPS 2021)."""
    return neuron.IFNode(surrogate_function=surrogate.ATan(), detach_reset=True)


class SEWResNet(nn.Module):
    """The host's `SEWResNet` is 64 to 512 channels wide and made for ImageNet; this one is not.

    Args:
        classes: number of classes.
        channels: of the images.
        widths: channels of each stage; every stage but the first halves height and width.
        blocks: of each stage, two convolutions in each.
        connect: "ADD", "AND" or "IAND": how a block adds to what it got.
        reduce: 1, 2 or 4: by how much the stem reduces height and width.
    """

    def __init__(self, classes, channels, widths, blocks, connect="ADD", reduce=1):
        super().__init__()
        stride = min(reduce, 2)
        self.conv1 = layer.Conv2d(channels, widths[0], 3, stride, padding=1, bias=False)
        self.bn1 = layer.BatchNorm2d(widths[0])
        self.sn1 = make_neuron()
        self.pool = layer.MaxPool2d(2) if reduce == 4 else nn.Identity()
        before, stages = widths[0], []
        for i, width in enumerate(widths):
            stages.append(_stage(before, width, blocks, 1 if i == 0 else 2, connect))
            before = width
        self.stages = nn.Sequential(*stages)
        self.average = layer.AdaptiveAvgPool2d(1)
        self.fc = layer.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, layer.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        functional.set_step_mode(self, "m")

    def forward(self, x_seq):
        """Return ``[T, N, classes]`` of ``x_seq [T, N, C, H, W]``."""
        x_seq = self.pool(self.sn1(self.bn1(self.conv1(x_seq))))
        return self.fc(torch.flatten(self.average(self.stages(x_seq)), 2))


def _stage(before, width, blocks, stride, connect):
    """Return blocks of one width; the first changes the width and the size."""
    shortcut = None
    if stride != 1 or before != width:
        shortcut = nn.Sequential(
            layer.Conv2d(before, width, 1, stride, bias=False), layer.BatchNorm2d(width)
        )
    first = BasicBlock(before, width, stride, shortcut, cnf=connect, spiking_neuron=make_neuron)
    rest = [
        BasicBlock(width, width, cnf=connect, spiking_neuron=make_neuron) for _ in range(blocks - 1)
    ]
    return nn.Sequential(first, *rest)
