"""The papers' networks that SpikingJelly lacks: any neuron, widths as arguments.

Not imported by ``import sj_prune``: ``from sj_prune import models``.
"""

from sj_prune.models.blocks import SpikingNetwork
from sj_prune.models.event_networks import VGGSNN, DVSNet
from sj_prune.models.resnet import ResNet19, sew_resnet18
from sj_prune.models.vgg import VGG16, VGG16SCA, SixConvTwoFC

__all__ = [
    "VGG16",
    "VGG16SCA",
    "DVSNet",
    "ResNet19",
    "SixConvTwoFC",
    "SpikingNetwork",
    "VGGSNN",
    "sew_resnet18",
]
