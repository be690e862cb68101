"""Channel methods under several optimizers: the same training as under one."""

import pytest
import torch
from torch import nn

from sj_prune import PruningWrapper, methods
from tests.support.channel_cases import channel_net, greg, sca
from tests.support.pruning_cases import loss_of, same, snapshot, train

LR = 0.1
L1 = 0.02  # large, so that a step without it is seen


def sgd(parameters):
    return torch.optim.SGD(list(parameters), lr=LR, momentum=0.9)


def parts(net):
    """Return the parameters of norms, and all others."""
    norms = [p for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    mine = {id(p) for p in norms}
    return {"norms": norms, "weights": [p for p in net.parameters() if id(p) not in mine]}


def trained(method, order, steps=6):
    """Return the network after some steps; `order`: what each optimizer moves, as they step."""
    net = channel_net()
    model = PruningWrapper(net, method)
    found = {**parts(net), "all": list(net.parameters())}
    optimizers = [sgd(found[name]) for name in order]
    for optimizer in optimizers:
        model.attach(optimizer)
    train(model, optimizers, steps)
    return snapshot(net), model.masks.masks


METHODS = {
    "slimming": lambda: methods.NetworkSlimming(sparsity=0.4, begin=1, end=4, l1=L1),
    "criticality": lambda: methods.CriticalityChannels(sparsity=0.4, regrow=0.2, end=4, l1=L1),
    "greg": lambda: greg(sparsity=0.4, end=5),
    "sca": lambda: sca(l1=L1, interval=2, end=4),
}


@pytest.mark.parametrize("order", [("weights", "norms"), ("norms", "weights")])
@pytest.mark.parametrize("name", METHODS)
def test_split_over_two_optimizers_training_is_that_of_one(name, order):
    """A penalty goes to the optimizer that moves what it is a penalty on, in the same steps."""
    weights, masks = trained(METHODS[name](), order)
    expected, expected_masks = trained(METHODS[name](), ("all",))
    assert not all(mask.all() for mask in masks.values())
    assert same(masks, expected_masks)
    assert same(weights, expected)


@pytest.mark.parametrize("order", [("weights", "norms"), ("norms", "weights")])
def test_gamma_gets_its_penalty_once_a_step_of_its_own_optimizer(order):
    """The optimizer of the norms steps every second time only."""
    net = channel_net()
    model = PruningWrapper(net, methods.NetworkSlimming(sparsity=0.4, end=9, l1=L1))
    optimizers = {name: torch.optim.SGD(parts(net)[name], lr=LR) for name in order}
    for optimizer in optimizers.values():
        model.attach(optimizer)
    gamma = net.get_submodule("1").weight
    for k in range(1, 5):
        before = gamma.detach().clone()
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss_of(model, k).backward()
        pure = gamma.grad.clone()
        for name, optimizer in optimizers.items():
            if name == "weights" or k % 2 == 0:
                optimizer.step()
        moved = LR * (pure + L1 * before.sign()) if k % 2 == 0 else torch.zeros_like(before)
        torch.testing.assert_close(gamma.detach(), before - moved)
