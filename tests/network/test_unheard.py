"""Looking changes nothing: nobody hears a forward of ours, and nothing stays of it."""

import random

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, layer, monitor, neuron
from torch import nn

import sj_prune
from sj_prune import methods

X = torch.rand(3, 2, 2, 6, 6)


class Noting(nn.Module):
    """Counts, collects and draws in its forward, and reassigns a buffer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            layer.Conv2d(2, 4, 3, padding=1),
            layer.BatchNorm2d(4),
            neuron.LIFNode(),
            layer.Conv2d(4, 4, 3, padding=1),
            layer.BatchNorm2d(4),
            neuron.LIFNode(),
            layer.Conv2d(4, 2, 1),
        )
        functional.set_step_mode(self, "m")
        self.calls, self.seen, self.by_name = 0, [], {"n": 0}
        self.total = torch.zeros(1)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.seen.append(self.calls)
        self.by_name["n"] += 1
        self.total += 1
        self.steps = self.steps + 1
        return self.body(x + np.random.rand() + random.random())


def facts(net, watch, heard):
    return (
        *(net.calls, list(net.seen), dict(net.by_name), net.total.item(), net.steps.item()),
        *(len(watch.records), len(heard), np.random.get_state()[1].tolist(), random.getstate()),
    )


def noting():
    torch.manual_seed(0)
    net, heard = Noting(), []
    watch = monitor.OutputMonitor(net, neuron.LIFNode)

    def hear(module, inputs, output):
        heard.append(output.mean().item())

    net.body[2].register_forward_hook(hear)
    return net, watch, heard


@pytest.mark.parametrize(
    "method",
    [
        methods.Magnitude(sparsity=0.5, interval=1, end=1),
        methods.Criticality(sparsity=0.5, interval=1, end=1),
        methods.FilterNorm(sparsity=0.5, interval=1, end=1),
    ],
    ids=lambda m: type(m).__name__,
)
def test_learning_and_looking_are_not_heard(method):
    net, watch, heard = noting()
    before, buffer, hooks = facts(net, watch, heard), net.steps, list(net.body[2]._forward_hooks)
    model = sj_prune.PruningWrapper(net, method, example_input=X)
    model.explain()
    model.report(X)
    assert facts(net, watch, heard) == before
    assert net.steps is buffer
    assert [key for key in net.body[2]._forward_hooks if key in hooks] == hooks
    model(X)
    assert (net.calls, len(heard), len(watch.records)) == (1, 1, 2)


def test_compact_is_not_heard():
    net, watch, heard = noting()
    net, _ = sj_prune.prune(net, [X], methods.FilterNorm(sparsity=0.5))
    before = facts(net, watch, heard)
    small = sj_prune.compact(net, X)
    assert facts(net, watch, heard) == before
    assert small.body[0].out_channels == 2


def test_a_hook_that_replaces_an_output_counts():
    """What the network computes is measured, whoever computes it."""
    net, _, _ = noting()
    net.body[2].register_forward_hook(lambda module, inputs, output: torch.ones_like(output))
    found = sj_prune.cost.measure(net, X)["body.3"]
    assert found.synops == pytest.approx(found.synops_dense)
    assert found.synops == 3 * 4 * 4 * (6 * 6 * 9 - 4 * 6 * 3 + 4)


def test_a_weight_that_a_hook_of_torch_makes_is_made():
    conv = layer.Conv2d(2, 4, 3, padding=1)
    net = nn.Sequential(nn.utils.weight_norm(conv), neuron.LIFNode(), layer.Conv2d(4, 2, 1))
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        conv.weight_g.mul_(2)
    model = sj_prune.PruningWrapper(
        net, methods.Magnitude(sparsity=0.5, interval=1, end=1), example_input=X
    )
    model(X).sum().backward()
    assert conv.weight_g.grad is not None
