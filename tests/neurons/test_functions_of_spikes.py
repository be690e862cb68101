"""A function of spikes is a statistic: of fused, observed and single-step neurons, in a plan."""

import pickle

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_prune import PruningWrapper
from sj_prune._checks import function_name
from sj_prune.masks import Cubic
from sj_prune.methods import Plan, reads
from sj_prune.neurons.activity import Activity
from tests.support.foreign_neurons import Bare
from tests.support.pruning_cases import (
    build,
    lif,
    loss_of,
    resumed,
    same,
    snapshot,
    train,
    wrapped,
)


def first_spike(spikes):
    """Return how early the first neuron of each channel spikes, ``[N, C]``."""
    steps = torch.arange(len(spikes), 0, -1).view(-1, *[1] * (spikes.ndim - 1))
    return (spikes * steps).amax(0).reshape(*spikes.shape[1:3], -1).amax(-1)


def nothing(spikes):
    """Return what is no statistic."""
    return spikes.mean()


@reads(first_spike, "firing_rate", batches=1)
def early(layer):
    """Return the size of weights whose neurons spike early."""
    size = layer.weight.abs()
    if layer.activity is None:
        return size
    early = layer.activity.mean(first_spike) + layer.activity.mean("firing_rate")
    return size * early.view(-1, *[1] * (size.ndim - 1))


def plan(score=early):
    return Plan(schedule=Cubic(final=0.7, interval=2, begin=0, end=6), drop=score)


def test_a_plan_reads_it_and_resumes():
    model, other = resumed(plan)
    assert same(snapshot(model.net), snapshot(other.net))
    assert model.sparsity()["total"] == pytest.approx(0.7)
    assert pickle.loads(pickle.dumps(model)).sparsity() == model.sparsity()


class OverTime(nn.Module):
    """The loop over time is in the network; every step is ``[N, *]``."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x_seq):
        return torch.stack([self.net(x) for x in x_seq])


def small(node):
    torch.manual_seed(0)
    return nn.Sequential(layer.Conv2d(2, 5, 3), node, layer.Flatten(), layer.Linear(80, 4))


@pytest.mark.parametrize("make", [lif, lambda: neuron.KLIFNode()])
@pytest.mark.parametrize("mode", ["m", "s"])
def test_what_the_function_is_given(make, mode):
    net = small(make())
    functional.set_step_mode(net, mode)
    net = net if mode == "m" else OverTime(net)
    model = PruningWrapper(net, plan())
    seen = []
    node = next(m for m in net.modules() if isinstance(m, neuron.BaseNode))
    node.register_forward_hook(lambda _, inputs, out: seen.append(out.detach()))
    expected, count = 0.0, 0
    for k in range(2):
        functional.reset_net(model)
        x = 3 * torch.rand(4, 3, 2, 6, 6, generator=torch.Generator().manual_seed(k))
        model(x)
        if k == 0:
            for sensor in model.nodes.values():
                sensor.activity.clear()
            continue
        spikes = seen[-1] if mode == "m" else torch.stack(seen[-4:])
        assert spikes.any()
        expected, count = expected + first_spike(spikes).sum(0), count + 3
    (sensor,) = [s for n, s in model.nodes.items()]
    got = sensor.activity.mean(function_name(first_spike))
    torch.testing.assert_close(got, (expected / count).double())


def test_a_function_needs_no_potential():
    @reads(first_spike)
    def score(layer):
        early = 1.0 if layer.activity is None else layer.activity.mean(first_spike)
        return layer.weight.abs() * layer.per_weight(torch.as_tensor(early).expand(layer.channels))

    net = build(0)
    net[2] = Bare()
    model, optimizer = wrapped(plan(score), net=net)
    train(model, optimizer, 4)
    assert model.history


def test_a_function_of_the_wrong_shape_is_named():
    model, _ = wrapped(plan(reads(nothing)(lambda layer: layer.weight)))
    with pytest.raises(ValueError, match=r"Expected .*:nothing to return a tensor of shape"):
        loss_of(model, 1)


def test_what_no_name_finds_is_refused():
    def local(spikes):
        return spikes

    for function in (local, lambda spikes: spikes):
        with pytest.raises(TypeError, match="under its name, so that copies find it"):
            reads(function)
    with pytest.raises(TypeError, match=r"write @reads\(...\)"):

        @reads
        def score(layer):
            return layer.weight


def test_a_checkpoint_does_not_say_what_is_called():
    activity = Activity(["firing_rate"])
    state = {"names": ["os:getcwd"], "sums": None, "samples": None}
    with pytest.raises(ValueError, match=r"Expected statistics \('firing_rate',\) but got"):
        activity.load_state_dict(state)
    assert activity.names == ("firing_rate",)
