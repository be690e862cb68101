"""Neurons that are no class of SpikingJelly and call one of its surrogate functions."""

import torch
from spikingjelly.activation_based import surrogate
from torch import nn


class Mixing(nn.Module):
    """A neuron of no host's class that reads the weight of a linear layer of its own."""

    def __init__(self):
        super().__init__()
        self.fc, self.spike = nn.Linear(3, 3), surrogate.ATan()

    def forward(self, x):
        h = torch.addmm(self.fc.bias[:, None], self.fc.weight, x.flatten(1))
        return self.spike(h).view_as(x)


class Bare(nn.Module):
    """A neuron of no host's class that shows no potential."""

    def __init__(self):
        super().__init__()
        self.spike, self.step_mode = surrogate.ATan(), "m"

    def forward(self, x):
        return self.spike(x - 0.3)
