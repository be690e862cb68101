"""Small networks for exports: pruned, and firing on their input."""

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from benchmarks.deploy_networks import prune, set_rate


class Residual(nn.Module):
    """Average pooling, an addition of spikes, adaptive pooling, voting, a mean over time."""

    def __init__(self, node=neuron.LIFNode, mean=True, **settings):
        super().__init__()
        self.mean = mean
        self.stem = nn.Sequential(
            layer.Conv2d(2, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6), node(**settings)
        )
        self.pool = layer.AvgPool2d(2)
        self.block = nn.Sequential(
            layer.Conv2d(6, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6), node(**settings)
        )
        self.head = nn.Sequential(
            layer.AdaptiveAvgPool2d((2, 2)),
            layer.Flatten(),
            layer.Linear(24, 20),
            layer.SeqToANNContainer(nn.BatchNorm1d(20)),  # 0.0.0.0.14 has none for [T, N, C]
        )
        self.last = node(**settings)
        self.vote = layer.VotingLayer(5)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.pool(self.stem(x))
        x = self.vote(self.last(self.head(x + self.block(x))))
        return x.mean(0) if self.mean else x


def plain(*parts):
    """Return a convolution, a norm, and what follows."""
    net = nn.Sequential(layer.Conv2d(2, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6), *parts)
    functional.set_step_mode(net, "m")
    return net


def pruned(net, x_seq, sparsity=0.7, rate=0.15):
    """Prune at random and let every neuron layer fire; return the network."""
    torch.manual_seed(0)
    prune(net, sparsity, "uniform")
    rates = set_rate(net, x_seq, rate)
    assert min(rates) > 0.05
    return net
