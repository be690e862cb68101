"""More networks as users write them: other layers and calls, all channels prunable."""

import torch
from spikingjelly.activation_based import layer
from torch import nn

from tests.support.user_networks import CLASSES, IN, Net, conv, lif


class Repeat(Net):
    """Every channel twice."""

    free = ("a", "b")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.bn_r = layer.BatchNorm2d(16)
        self.b, self.bn_b, self.n_b = conv(16, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.bn_r(self.n_a(self.bn_a(self.a(x))).repeat(1, 1, 2, 1, 1))
        return self.finish(self.n_b(self.bn_b(self.b(x.repeat_interleave(1, 2)))))


class SqueezeAndExcite(Net):
    free = ("a", "down", "up")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.b, self.n_b = conv(8, 8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((-1, -2))))))
        return self.finish(self.n_b(self.b(x * gate[..., None, None])))


class OtherBatchNorms(Net):
    """SpikingJelly's own, and torch's instance norm."""

    free = ("a", "b", "c")

    def __init__(self):
        super().__init__()
        self.a, self.n_a = conv(IN, 8), lif()
        self.bn_a = layer.ThresholdDependentBatchNorm2d(1.0, 1.0, 8)
        self.b, self.n_b = conv(8, 8), lif()
        self.bn_b = layer.TemporalEffectiveBatchNorm2d(2, 8)
        self.c, self.n_c = conv(8, 8), lif()
        self.bn_c = layer.SeqToANNContainer(nn.InstanceNorm2d(8, affine=True))
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        x = self.n_b(self.bn_b(self.b(x)))
        return self.finish(self.n_c(self.bn_c(self.c(x))))


class OtherDimensions(Net):
    """Convolutions over time and space, and over one dimension."""

    free = ("a", "b", "c")

    def __init__(self):
        super().__init__()
        self.a, self.bn, self.n_a = nn.Conv3d(IN, 8, 3, padding=1), nn.BatchNorm3d(8), lif()
        self.b, self.n_b = nn.Conv3d(8, 6, 3, padding=1), lif()
        self.c, self.bn_c, self.n_c = layer.Conv1d(6, 6, 3), layer.BatchNorm1d(6), lif()
        self.fc = layer.Linear(6, CLASSES)

    def forward(self, x):
        x = self.n_a(self.bn(self.a(x.permute(1, 2, 0, 3, 4))).permute(2, 0, 1, 3, 4))
        x = self.n_b(self.b(x.permute(1, 2, 0, 3, 4)).permute(2, 0, 1, 3, 4))
        return self.fc(self.n_c(self.bn_c(self.c(x.flatten(3)))).mean(-1))


class Tokens(Net):
    """Linear layers over tokens, as in transformers: channels come last."""

    free = ("a", "up", "down")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.up, self.bn_up, self.n_up = nn.Linear(8, 12), layer.BatchNorm1d(12), lif()
        self.down = nn.Linear(12, 8)
        self.fc = layer.Linear(8, CLASSES)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x))).flatten(3).transpose(2, 3)
        y = self.n_up(self.bn_up(self.up(x).transpose(2, 3)).transpose(2, 3))
        return self.fc((x + self.down(y)).mean(2))


class Recurrent(Net):
    free = ("a",)

    def __init__(self):
        super().__init__()
        self.a = layer.Linear(IN, 8)
        self.node = layer.ElementWiseRecurrentContainer(lif(), lambda x, y: x + y)
        self.fc = layer.Linear(8, CLASSES)

    def forward(self, x):
        return self.fc(self.node(self.a(x.mean((-1, -2)))))


class SingleStep(Net):
    """A loop over time steps in single-step mode, as older code has it."""

    free = ("a", "b")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = nn.Conv2d(IN, 8, 3, padding=1), nn.BatchNorm2d(8), lif()
        self.b, self.bn_b, self.n_b = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), lif()
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x_seq):
        out = 0
        for x in x_seq:
            x = self.n_b(self.bn_b(self.b(self.n_a(self.bn_a(self.a(x))))))
            out = out + self.fc(x.mean((-1, -2)))
        return out / len(x_seq)


class Inputs(Net):
    """Two positional inputs; one is an index."""

    free = ("a", "b")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.b, self.bn_b, self.n_b = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.embedding = nn.Embedding(4, CLASSES)
        self.head(8)

    def forward(self, x, index):
        x = self.n_a(self.bn_a(self.a(x)))
        x = self.n_b(self.bn_b(self.b(x)))
        return self.finish(x) + self.embedding(index)


class Keywords(Net):
    """Modules called by keyword."""

    free = ("a", "b")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = nn.Conv2d(IN, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.b, self.bn_b, self.n_b = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), lif()
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = x.flatten(0, 1)
        x = self.n_a(input=self.bn_a(input=self.a(input=x)))
        x = self.bn_b(input=self.b(input=x)).unflatten(0, (2, -1))
        return self.fc(input=self.n_b(x).mean((-1, -2)))


OTHER = [
    Repeat,
    SqueezeAndExcite,
    OtherDimensions,
    Tokens,
    Recurrent,
    SingleStep,
    Inputs,
    Keywords,
]
if hasattr(layer, "TemporalEffectiveBatchNorm2d"):  # 0.0.0.0.14 lacks one, its other one is broken
    OTHER.append(OtherBatchNorms)
