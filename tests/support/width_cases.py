"""Modules that keep a width as a plain int and reshape with it, as spiking transformers do."""

import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

DIM, HIDDEN, TOKENS = 8, 24, 6


def lif():
    return neuron.LIFNode(tau=1.5, step_mode="m", surrogate_function=surrogate.ATan())


class Spikformer(nn.Module):
    """Pointwise convolutions over tokens, ``[T, B, C, N]``."""

    kept = {"c_hidden": HIDDEN}

    def __init__(self, dim=DIM, hidden=HIDDEN):
        super().__init__()
        self.fc1, self.bn1, self.lif1 = nn.Conv1d(dim, hidden, 1), nn.BatchNorm1d(hidden), lif()
        self.fc2, self.bn2, self.lif2 = nn.Conv1d(hidden, dim, 1), nn.BatchNorm1d(dim), lif()
        self.remember(dim, hidden)

    def remember(self, dim, hidden):
        self.c_hidden, self.c_output = hidden, dim

    def forward(self, x):
        t, b, c, n = x.shape
        y = self.lif1(self.bn1(self.fc1(x.flatten(0, 1))).reshape(t, b, self.c_hidden, n))
        return self.lif2(self.bn2(self.fc2(y.flatten(0, 1))).reshape(t, b, c, n))


class InTuple(Spikformer):
    kept = {"sizes.1": HIDDEN}

    def remember(self, dim, hidden):
        self.sizes = (dim, hidden)

    @property
    def c_hidden(self):
        return self.sizes[1]


class InDict(InTuple):
    kept = {"sizes.hidden": HIDDEN}

    def remember(self, dim, hidden):
        self.sizes = {"dim": dim, "hidden": hidden}

    @property
    def c_hidden(self):
        return self.sizes["hidden"]


class Several(Spikformer):
    """Two names for one width, both of them used; one int that is equal to it by accident."""

    kept = {"c_hidden": HIDDEN, "again": HIDDEN}

    def remember(self, dim, hidden):
        self.chance, self.c_hidden, self.again = hidden, hidden, hidden

    def forward(self, x):
        t, b, c, n = x.shape
        y = self.lif1(self.bn1(self.fc1(x.flatten(0, 1))).reshape(t, b, self.c_hidden, n))
        y = y.repeat(1, 1, 1, self.chance)[..., :n]
        return self.lif2(self.bn2(self.fc2(y.view(t * b, self.again, n))).reshape(t, b, c, n))


class QKFormer(Spikformer):
    """Pointwise convolutions over a map, ``[T, B, C, H, W]``."""

    def __init__(self, dim=DIM, hidden=HIDDEN):
        super().__init__(dim, hidden)
        self.fc1, self.bn1 = nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden)
        self.fc2, self.bn2 = nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim)

    def forward(self, x):
        t, b, c, n = x.shape
        h, w = 2, n // 2
        x = x.reshape(t * b, c, h, w)
        y = self.lif1(self.bn1(self.fc1(x)).reshape(t, b, self.c_hidden, h, w)).flatten(0, 1)
        return self.lif2(self.bn2(self.fc2(y)).reshape(t, b, c, h, w).contiguous()).flatten(3)


class SeqSNN(Spikformer):
    """Linear layers over the last dimension, norms over a transposed one."""

    def __init__(self, dim=DIM, hidden=HIDDEN):
        super().__init__(dim, hidden)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        t, b, c, n = x.shape
        x = self.fc1(x.flatten(0, 1).transpose(-1, -2)).transpose(-1, -2)
        x = self.lif1(self.bn1(x).reshape(t, b, self.c_hidden, n).transpose(-1, -2).contiguous())
        x = self.bn2(self.fc2(x.flatten(0, 1)).transpose(-1, -2)).reshape(t, b, c, n)
        return self.lif2(x.contiguous())


class Reshape(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return x.reshape(-1, 2, *self.shape)


class Nested(nn.Module):
    """The int is kept by a module beside the layers."""

    kept = {}

    def __init__(self, dim=DIM, hidden=HIDDEN):
        super().__init__()
        self.up = nn.Sequential(
            nn.Conv1d(dim, hidden, 1), nn.BatchNorm1d(hidden), Reshape(hidden, TOKENS), lif()
        )
        self.down = nn.Sequential(nn.Conv1d(hidden, dim, 1), nn.BatchNorm1d(dim))

    @property
    def fc1(self):
        return self.up[0]

    @property
    def c_hidden(self):
        return self.up[2].shape[0]

    def forward(self, x):
        y = self.up(x.flatten(0, 1))
        return self.down(y.flatten(0, 1)).reshape(x.shape)


MLPS = [Spikformer, QKFormer, SeqSNN, InTuple, InDict, Several, Nested]


class Transformer(nn.Module):
    """A stem, MLPs with residual additions, a head."""

    def __init__(self, mlps):
        super().__init__()
        self.stem, self.bn, self.lif = nn.Conv1d(3, DIM, 1), nn.BatchNorm1d(DIM), lif()
        self.blocks = nn.ModuleList(mlps)
        self.head = nn.Linear(DIM, 5)

    def forward(self, x):
        t, b, _, n = x.shape
        x = self.lif(self.bn(self.stem(x.flatten(0, 1))).reshape(t, b, -1, n))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(-1)).mean(0)


def build(*mlps):
    """Return a network and an input ``[T, B, C, N]`` of it."""
    torch.manual_seed(0)
    return Transformer(mlps), torch.randn(3, 2, 3, TOKENS) * 2
