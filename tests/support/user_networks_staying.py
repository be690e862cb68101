"""Networks as users write them, some of whose channels have to stay, and why."""

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron
from torch import nn

from tests.support.user_networks import CLASSES, IN, SIZE, Net, conv, lif


class ChannelShuffle(Net):
    """The reshape divides the channels: left dense, or proved; never wrong."""

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.g, self.bn_g, self.n_g = conv(8, 8, groups=2), layer.BatchNorm2d(8), lif()
        self.b, self.bn_b, self.n_b = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    free = ("b",)
    stays = {"a": "reshape"}

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        t, n, c, h, w = x.shape
        x = x.view(t, n, 2, c // 2, h, w).transpose(2, 3).reshape(t, n, c, h, w)
        x = self.n_g(self.bn_g(self.g(x)))
        return self.finish(self.n_b(self.bn_b(self.b(x))))


class ChannelScale(Net):
    free = ("b",)
    stays = {"a": "value for every channel"}

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.b, self.bn_b, self.n_b = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)) * self.scale)
        return self.finish(self.n_b(self.bn_b(self.b(x))))


class OtherNorms(Net):
    free = ("c",)
    stays = {"a": "group_norm", "b": "layer_norm"}

    def __init__(self):
        super().__init__()
        self.a, self.gn, self.n_a = conv(IN, 8), layer.GroupNorm(2, 8), lif()
        self.b, self.ln, self.n_b = conv(8, 8), nn.LayerNorm([8, SIZE, SIZE]), lif()
        self.c, self.bn_c, self.n_c = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.gn(self.a(x)) + 0.3)
        x = self.n_b(self.ln(self.b(x)) + 0.3)
        return self.finish(self.n_c(self.bn_c(self.c(x))))


class FunctionalConv(Net):
    free = ("b",)
    stays = {"a": "outside of it"}

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.n = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.a, self.n_a = conv(8, 8), lif()
        self.b, self.bn_b, self.n_b = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n(self.bn(self.stem(x)))
        x = self.n_a(self.a(x) + F.conv2d(x.flatten(0, 1), self.a.weight).mean())
        return self.finish(self.n_b(self.bn_b(self.b(x))))


class TiedWeights(Net):
    free = ("c",)
    stays = {"a": "shares a parameter", "b": "shares a parameter"}

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.n = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.a, self.bn_a, self.n_a = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.b, self.bn_b, self.n_b = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.b.weight = self.a.weight
        self.c, self.bn_c, self.n_c = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n(self.bn(self.stem(x)))
        x = self.n_a(self.bn_a(self.a(x)))
        x = self.n_b(self.bn_b(self.b(x)))
        return self.finish(self.n_c(self.bn_c(self.c(x))))


class NoAffine(Net):
    free = ("b",)
    stays = {"a": "no weight and bias"}

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8, affine=False), lif()
        self.b, self.bn_b, self.n_b = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        return self.finish(self.n_b(self.bn_b(self.b(x))))


class FiresAtRest(Net):
    free = ("b",)
    stays = {"a": "resting potential"}

    def __init__(self):
        super().__init__()
        self.a, self.bn_a = conv(IN, 8), layer.BatchNorm2d(8)
        self.n_a = neuron.IFNode(v_threshold=0.5, v_reset=0.7)
        self.b, self.bn_b, self.n_b = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        return self.finish(self.n_b(self.bn_b(self.b(x))))


class MyNode(neuron.LIFNode):
    """A user's neuron: what it does on zeros is its own affair."""


class UserNeuron(Net):
    free = ("b",)
    stays = {"a": "not a stock neuron"}

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), MyNode(tau=1.5)
        self.b, self.bn_b, self.n_b = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        return self.finish(self.n_b(self.bn_b(self.b(x))))


class HardCodedWidth(Net):
    """Couples well, but its forward has the width written down, or reads it: only a trial tells."""

    free = ("b",)
    stays = {"a": "written into the forward", "c": "changes the output"}

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.b, self.bn_b, self.n_b = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.c, self.bn_c, self.n_c = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        x = x.reshape(x.shape[0], x.shape[1], 8, SIZE, SIZE)
        x = self.n_b(self.bn_b(self.b(x)))
        x = self.n_c(self.bn_c(self.c(x)))
        return self.finish(x) * (8 / x.shape[2])


class WrittenInPlace(Net):
    """Results written into a part of another tensor lose their way."""

    free = ("b",)
    stays = {"a": "copy_", "d": ""}

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = nn.Conv2d(IN, 8, 3, padding=1), layer.BatchNorm2d(8), lif()
        self.d = nn.Conv2d(IN, 8, 1)
        self.b, self.bn_b, self.n_b = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        y = x.new_zeros(x.shape[0], x.shape[1], 8, SIZE, SIZE)
        for t in range(x.shape[0]):
            y[t] = self.a(x[t])
            y[t] += self.d(x[t])
        x = self.n_a(self.bn_a(y))
        return self.finish(self.n_b(self.bn_b(self.b(x))))


class PotentialReadout(Net):
    """The output is a potential, read past the module's return value."""

    free = ("a",)
    stays = {"fc": "no layer reads"}

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.fc, self.out = layer.Linear(8, CLASSES), lif(store_v_seq=True)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        self.out(self.finish(x))
        return self.out.v_seq.mean(0)


STAYING = [
    ChannelShuffle,
    ChannelScale,
    OtherNorms,
    FunctionalConv,
    TiedWeights,
    NoAffine,
    FiresAtRest,
    UserNeuron,
    HardCodedWidth,
    WrittenInPlace,
    PotentialReadout,
]
