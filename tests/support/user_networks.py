"""Networks as users write them, all of whose channels can be pruned, and how to build one."""

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

IN, SIZE, CLASSES = 3, 8, 5


def lif(**kwargs):
    return neuron.LIFNode(tau=1.5, surrogate_function=surrogate.ATan(), **kwargs)


def conv(a, b, kernel=3, **kwargs):
    return layer.Conv2d(a, b, kernel, padding=kernel // 2, bias=kwargs.pop("bias", False), **kwargs)


class Net(nn.Module):
    """Base class: a head over the mean of space, in multi-step mode."""

    width = 8
    #: layers whose output channels can be pruned
    free = ()
    #: layer -> a piece of the reason why it stays
    stays = {}

    def head(self, channels):
        self.fc = layer.Linear(channels, CLASSES)

    def finish(self, x):
        return self.fc(x.mean((-1, -2)))


class SharedNeuron(Net):
    free = ("a", "b")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a = conv(IN, 8), layer.BatchNorm2d(8)
        self.b, self.bn_b = conv(8, 8), layer.BatchNorm2d(8)
        self.node = neuron.IFNode()
        self.head(8)

    def forward(self, x):
        x = self.node(self.bn_a(self.a(x)))
        x = self.node(self.bn_b(self.b(x)))
        return self.finish(x)


class ConvTwice(Net):
    free = ("stem", "a")

    def __init__(self):
        super().__init__()
        self.stem, self.bn = conv(IN, 8), layer.BatchNorm2d(8)
        self.a, self.bn1, self.bn2 = conv(8, 8), layer.BatchNorm2d(8), layer.BatchNorm2d(8)
        self.n1, self.n2, self.n3 = lif(), lif(), lif()
        self.head(8)

    def forward(self, x):
        x = self.n1(self.bn(self.stem(x)))
        x = self.n2(self.bn1(self.a(x)))
        x = self.n3(self.bn2(self.a(x)))
        return self.finish(x)


class TwoHeads(Net):
    free = ("a", "b", "c")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.b, self.bn_b, self.n_b = conv(8, 6), layer.BatchNorm2d(6), lif()
        self.c, self.bn_c, self.n_c = conv(8, 7), layer.BatchNorm2d(7), lif()
        self.head_b = layer.Linear(6 * SIZE * SIZE, 4)
        self.head_c = layer.Linear(7, CLASSES)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        b = self.n_b(self.bn_b(self.b(x))).flatten(2)
        c = self.n_c(self.bn_c(self.c(x))).mean((-1, -2))
        return self.head_b(b), self.head_c(c).mean(0)


class Concatenation(Net):
    free = ("a", "b", "c", "d")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.b, self.bn_b, self.n_b = conv(8, 4), layer.BatchNorm2d(4), lif()
        self.c, self.n_c = conv(8, 6), lif()
        self.bn_cat = layer.BatchNorm2d(10)  # one norm over two layers
        self.d, self.bn_d, self.n_d = conv(10 + 8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        y = self.n_c(self.bn_cat(torch.cat((self.b(x), self.c(x)), 2)))
        return self.finish(self.n_d(self.bn_d(self.d(torch.cat((y, x), 2)))))


class InputAgain(Net):
    """Channels that no layer made, beside others."""

    free = ("a", "b")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.b, self.bn_b, self.n_b = conv(8 + IN, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        y = torch.cat((x, self.n_a(self.bn_a(self.a(x)))), 2)
        return self.finish(self.n_b(self.bn_b(self.b(y))))


class Depthwise(Net):
    free = ("a", "dw", "dw2", "pw")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.dw, self.bn_dw = conv(8, 8, groups=8), layer.BatchNorm2d(8)
        self.dw2, self.bn_dw2, self.n_dw = conv(8, 16, groups=8), layer.BatchNorm2d(16), lif()
        self.pw, self.bn_pw, self.n_pw = conv(16, 8, 1), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        x = self.bn_dw(self.dw(x))
        x = self.n_dw(self.bn_dw2(self.dw2(x)))
        return self.finish(self.n_pw(self.bn_pw(self.pw(x))))


class Separable(Net):
    """Depthwise and pointwise with no norm between: the depthwise filters are bare."""

    free = ("a", "dw", "pw")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.dw = conv(8, 8, groups=8, bias=True)
        self.pw, self.bn_pw, self.n_pw = conv(8, 8, 1), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        return self.finish(self.n_pw(self.bn_pw(self.pw(self.dw(x)))))


class Grouped(Net):
    free = ("a", "g", "b")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 12), layer.BatchNorm2d(12), lif()
        self.g, self.bn_g, self.n_g = conv(12, 8, groups=2), layer.BatchNorm2d(8), lif()
        self.b, self.bn_b, self.n_b = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n_g(self.bn_g(self.g(self.n_a(self.bn_a(self.a(x))))))
        return self.finish(self.n_b(self.bn_b(self.b(x))))


class MeanOverTime(Net):
    free = ("a", "b")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.b, self.bn_b = nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x_seq):
        x = self.n_a(self.bn_a(self.a(x_seq))).mean(0)
        return self.fc(F.relu(self.bn_b(self.b(x))).mean((-1, -2)))


class NormAfterAddition(Net):
    free = ("a", "b", "c")

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(IN, 8), conv(IN, 8, 1, bias=True)
        self.bn, self.n = layer.BatchNorm2d(8), lif()
        self.c, self.bn_c, self.n_c = conv(8, 8), layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.n(self.bn(self.a(x) + self.b(x)))
        return self.finish(self.n_c(self.bn_c(self.c(x))))


class PreActivation(Net):
    """Norm, neuron, convolution: what a convolution adds is read by two norms."""

    free = ("stem", "a", "b")

    def __init__(self):
        super().__init__()
        self.stem = conv(IN, 8, bias=True)
        self.bn1, self.n1, self.a = layer.BatchNorm2d(8), lif(), conv(8, 6)
        self.bn2, self.n2, self.b = layer.BatchNorm2d(6), lif(), conv(6, 8)
        self.bn3, self.n3 = layer.BatchNorm2d(8), lif()
        self.head(8)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.b(self.n2(self.bn2(self.a(self.n1(self.bn1(x))))))
        return self.finish(self.n3(self.bn3(x)))


class NoNorm(Net):
    free = ("a", "b", "hidden")

    def __init__(self):
        super().__init__()
        self.a, self.n_a = conv(IN, 8, bias=True), neuron.IFNode(v_reset=None)
        self.pool = layer.AvgPool2d(2)
        self.b, self.n_b = conv(8, 6, bias=True), lif(v_reset=None)
        self.hidden, self.n_h = layer.Linear(6 * SIZE * SIZE // 4, 10), lif()
        self.fc = layer.Linear(10, CLASSES)

    def forward(self, x):
        x = self.n_b(self.b(self.pool(self.n_a(self.a(x)))))
        return self.fc(self.n_h(self.hidden(x.flatten(2))))


class Plif(Net):
    free = ("a", "b")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a = conv(IN, 8), layer.BatchNorm2d(8)
        self.n_a = neuron.ParametricLIFNode(init_tau=1.7)
        self.b, self.bn_b = conv(8, 8), layer.BatchNorm2d(8)
        self.n_b = neuron.ParametricLIFNode(init_tau=1.3, v_reset=None, decay_input=False)
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        return self.finish(self.n_b(self.bn_b(self.b(x))))


class SoftReset(Net):
    free = ("a", "b")

    def __init__(self):
        super().__init__()
        self.a, self.bn_a, self.n_a = conv(IN, 8), layer.BatchNorm2d(8), lif(v_reset=None)
        self.b, self.bn_b = conv(8, 8), layer.BatchNorm2d(8)
        self.n_b = neuron.IFNode(v_reset=None, v_threshold=0.7)
        self.head(8)

    def forward(self, x):
        x = self.n_a(self.bn_a(self.a(x)))
        return self.finish(self.n_b(self.bn_b(self.b(x))))


FREE = [
    SharedNeuron,
    ConvTwice,
    TwoHeads,
    Concatenation,
    InputAgain,
    Depthwise,
    Separable,
    Grouped,
    MeanOverTime,
    NormAfterAddition,
    PreActivation,
    NoNorm,
    Plif,
    SoftReset,
]
