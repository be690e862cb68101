"""A network of five channels that looks trained, in every form that analyses take."""

import copy
import random

import numpy as np
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer
from torch import nn

import sj_prune
from sj_prune import methods
from tests.support.trained_cases import CLASSES, batches, lif, trained_like

#: the norms, whose channels are players, and the classifier
NORMS, CLASSIFIER = ("1", "4"), "7"


def network(seed=0):
    """Return a network of 3 and 2 channels in eval mode; all of them fire."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        layer.Conv2d(2, 3, 3, padding=1, bias=False),
        layer.BatchNorm2d(3),
        lif(),
        layer.Conv2d(3, 2, 3, padding=1, bias=False),
        layer.BatchNorm2d(2),
        lif(),
        layer.Flatten(),
        layer.Linear(72, CLASSES),
    )
    functional.set_step_mode(net, "m")
    return trained_like(net, seed=seed)


def step_by_step(net, x_seq):
    return functional.multi_step_forward(x_seq, net)


class Looping(nn.Module):
    """A loop over time around a network, as a module."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x_seq):
        return torch.stack([self.net(x) for x in x_seq])


class Repeating(nn.Module):
    """Shows an image several times."""

    def __init__(self, net, steps):
        super().__init__()
        self.net, self.steps = net, steps

    def forward(self, x):
        return self.net(x.repeat(self.steps, *[1] * x.ndim))


def in_container(net):
    """Return the network with a classifier for which time and samples are one dimension."""
    plain = nn.Linear(72, CLASSES)
    plain.load_state_dict(net[7].state_dict())
    return nn.Sequential(*net[:7], layer.SeqToANNContainer(plain)).eval()


def single_step(net):
    functional.set_step_mode(net, "s")
    return net


def wrapped(net, **kwargs):
    method = methods.SCA(sparsity=0.4, interval=1, end=1)
    return sj_prune.PruningWrapper(net, method, **kwargs)


def in_training(net):
    """Return the network as a training loop leaves it: its memories are part of a graph."""
    net.train()
    x_seq, y = batches(1)[0]
    F.cross_entropy(net(x_seq).mean(0), y).backward()
    return net


FORMS = {
    "recording": lambda net: (sj_prune.to_recording(net), None),
    "wrapped": lambda net: (wrapped(net), None),
    "wrapped and run": lambda net: (wrapped(net, example_input=batches(1)[0][0]), None),
    "single-step": lambda net: (single_step(net), step_by_step),
    "wrapped single-step": lambda net: (wrapped(single_step(net)), step_by_step),
    "loop as a module": lambda net: (Looping(single_step(net)), None),
    "time in the samples": lambda net: (in_container(net), None),
    "compiled": lambda net: (torch.compile(net, backend="eager"), None),
}


def generators():
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()


def silenced(net, present):
    """Return a copy in which only some of the five channels are present."""
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for norm, kept in zip((twin[1], twin[4]), (present[:3], present[3:]), strict=True):
            for parameter in (norm.weight, norm.bias):
                parameter.mul_(torch.tensor(kept))
    return twin


@torch.no_grad()
def outputs(net, loader):
    """Return output and labels of every batch, from reset neurons, in eval mode."""
    twin = copy.deepcopy(net).eval()
    found = []
    for x_seq, y in loader:
        functional.reset_net(twin)
        found.append((twin(x_seq), y))
    return found


def accuracy_by_hand(net, loader):
    answers = [(output.mean(0).argmax(1), y) for output, y in outputs(net, loader)]
    right = sum(int(a == b) for pair in answers for a, b in zip(*pair, strict=True))
    return right / sum(len(y) for _, y in answers)
