"""All networks of users, and how to build one."""

import torch
from spikingjelly.activation_based import functional

from tests.support.user_networks import FREE, IN, SIZE
from tests.support.user_networks_other import OTHER, Inputs, SingleStep
from tests.support.user_networks_staying import STAYING

NETWORKS = [*FREE, *OTHER, *STAYING]


def build(kind, seed=0):
    """Return a network and an input of it."""
    torch.manual_seed(seed)
    net = kind()
    if kind is not SingleStep:
        functional.set_step_mode(net, "m")
    x = torch.rand(2, 2, IN, SIZE, SIZE)
    return net, ((x, torch.tensor([1, 3])) if kind is Inputs else x)
