"""``torch.compile(fullgraph=True)`` of a small network with a recording neuron."""

import pytest
import torch
import torch._dynamo.testing
from spikingjelly.activation_based import functional, layer, surrogate
from torch import nn

from sj_prune.neurons import (
    STATISTICS,
    RecordingIFNode,
    RecordingLIFNode,
    RecordingNode,
    RecordingParametricLIFNode,
)
from tests.support.neuron_cases import LEGACY, current


class PerStep(nn.Module):
    """A stateless layer over ``[T, N, *]``, as SpikingJelly's own multi-step layers."""

    def __init__(self, wrapped):
        super().__init__()
        self.wrapped = wrapped

    def forward(self, x_seq):
        y = self.wrapped(x_seq.flatten(0, 1))
        return y.view(*x_seq.shape[:2], *y.shape[1:])


def network(node_class=RecordingLIFNode, channels_last=False):
    """Return the same weights and inputs on every call."""
    torch.manual_seed(1)
    net = nn.Sequential(
        PerStep(nn.Conv2d(2, 4, 3, padding=1)),
        PerStep(nn.BatchNorm2d(4)),
        node_class(step_mode="m", surrogate_function=surrogate.ATan()),
        PerStep(nn.Conv2d(4, 3, 3)),
        PerStep(nn.BatchNorm2d(3)),
        node_class(step_mode="m", v_reset=None, detach_reset=True),
    )
    for norm in (net[1].wrapped, net[4].wrapped):
        nn.init.constant_(norm.weight, 2.0)  # enough current to fire
    return net.to(memory_format=torch.channels_last) if channels_last else net


def train(net, run, batches):
    """Return outputs, gradients and statistics of a few steps with a reset before each."""
    outputs = []
    for x in batches:
        functional.reset_net(net)
        y = run(x)
        y.square().mean().backward()
        outputs.append(y.detach())
    gradients = [p.grad for p in net.parameters()]
    nodes = [m for m in net if isinstance(m, RecordingNode)]
    counts = [node.activity.count for node in nodes]
    means = [node.activity.mean(name) for node in nodes for name in STATISTICS]
    return outputs, gradients, means, counts


def compare(backend, node_class=RecordingLIFNode, channels_last=False):
    # In float64: a compiler may sum in another order, which in float32 can flip a spike.
    torch._dynamo.reset()
    batches = [current(3, 2, 2, 6, 6, seed=seed, dtype=torch.float64) for seed in range(3)]
    eager, net = (network(node_class, channels_last).double() for _ in range(2))
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    expected, found = train(eager, eager, batches), train(net, compiled, batches)
    assert found[3] == expected[3] == [6, 6]
    for a, b in zip(found[0], expected[0], strict=True):
        assert torch.equal(a, b)
        assert 0 < b.sum() < b.numel()
    for kind in (1, 2):
        for a, b in zip(found[kind], expected[kind], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "node_class", [RecordingIFNode, RecordingLIFNode, RecordingParametricLIFNode]
)
def test_one_graph(node_class):
    compare("aot_eager", node_class)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
def test_inductor(channels_last):
    compare("inductor", channels_last=channels_last)


def test_counting_does_not_recompile():
    """A Python counter would be a new guard on every step, until the compiler gives up."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    net = network()
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    frames = []
    for seed in range(12):
        functional.reset_net(net)
        compiled(current(3, 2, 2, 6, 6, seed=seed))
        frames.append(counter.frame_count)
    assert frames[2] == frames[-1]
    assert net[2].activity.count == 24


def test_state_is_carried_over_and_eval_does_not_record():
    torch._dynamo.reset()
    eager, net = network(), network()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        x = current(3, 2, 2, 6, 6, seed=seed)
        assert torch.equal(compiled(x), eager(x))
        assert torch.equal(net[2].v, eager[2].v)
    eager.eval(), net.eval()
    x = current(3, 2, 2, 6, 6, seed=5)
    with torch.no_grad():
        assert torch.equal(compiled(x), eager(x))
    assert net[2].activity.count == eager[2].activity.count == 6


@pytest.mark.skipif(LEGACY, reason="dynamo cannot trace the scripted surrogates of 0.0.0.0.14")
def test_a_surrogate_without_closed_form_compiles_when_no_derivative_is_kept():
    torch._dynamo.reset()
    node = RecordingLIFNode(step_mode="m", surrogate_function=surrogate.S2NN())
    node.statistics = ("firing_rate", "abs_potential")
    x = current(4, 3, 2)
    compiled = torch.compile(node, fullgraph=True, backend="aot_eager")
    spikes = compiled(x)
    rate = node.activity.mean("firing_rate")
    functional.reset_net(node)
    assert torch.equal(spikes, node(x))
    torch.testing.assert_close(rate, spikes.mean((0, 1)).double())


def test_the_layers_of_the_host_compile_with_it():
    torch._dynamo.reset()
    torch.manual_seed(2)
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, step_mode="m"),
        layer.BatchNorm2d(4, step_mode="m"),
        RecordingLIFNode(step_mode="m", surrogate_function=surrogate.ATan()),
    )
    x = current(3, 2, 2, 6, 6)
    spikes = net(x)
    rate = net[2].activity.mean("firing_rate")
    functional.reset_net(net)
    net[2].activity.clear()
    compiled = torch.compile(net, backend="aot_eager")
    assert torch.equal(compiled(x), spikes)
    torch.testing.assert_close(net[2].activity.mean("firing_rate"), rate)
