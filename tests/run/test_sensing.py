"""What a run reads of neurons that are observed, in single steps, or not at all."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from sj_prune import PruningWrapper, methods, prune
from sj_prune.methods import Growth, reads
from tests.support.own_plan import own_plan
from tests.support.pruning_cases import batch, build, criticality, same, snapshot, train, wrapped


class Stepping(nn.Module):
    """The same network, one step after the other, the loop over time inside."""

    def __init__(self, net):
        super().__init__()
        functional.set_step_mode(net, "s")
        self.net = net

    def forward(self, x_seq):
        return torch.stack([self.net(x) for x in x_seq])


def renamed(masks):
    return {name.removeprefix("net."): mask for name, mask in masks.items()}


def in_single_steps(method, steps, *, outside):
    """Train with the loop over time in the network, or in the script."""
    net = without_norms() if outside else Stepping(without_norms())
    functional.set_step_mode(net, "s")
    model = PruningWrapper(net, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    model.attach(optimizer)
    for k in range(1, steps + 1):
        x_seq, y = batch(k)
        functional.reset_net(model)
        out = torch.stack([model(x) for x in x_seq]) if outside else model(x_seq)
        optimizer.zero_grad()
        F.cross_entropy(out.mean(0), y).backward()
        optimizer.step()
    return model


def without_norms():
    """Batch norms see a step alone in one mode, and a sequence in the other."""
    net = build()
    for name in ("1", "4"):
        setattr(net, name, nn.Identity())
    return net


@pytest.mark.parametrize("outside", [False, True])
def test_masks_are_those_of_multi_step_mode(outside):
    make = lambda: criticality(sparsity=0.7, interval=2, end=6)  # noqa: E731
    multi, optimizer = wrapped(make(), net=without_norms())
    train(multi, optimizer, 7)
    model = in_single_steps(make(), 7, outside=outside)
    assert len(model.history) == 3
    assert sum(model.history[-1].grown.values()) > 0
    assert same(multi.masks.masks, renamed(model.masks.masks))
    assert [row.how for row in model.explain().neurons] == ["observed"] * 3
    assert "set_step_mode" not in str(model.explain())


class Squared(neuron.LIFNode):
    """A user's neuron with dynamics of its own."""

    def neuronal_charge(self, x):
        self.v = self.v + (x - self.v * self.v.abs()) / self.tau

    def multi_step_forward(self, x_seq):
        return torch.stack([self.single_step_forward(x) for x in x_seq])


def own(**kwargs):
    return Squared(tau=2.0, v_threshold=0.5, **kwargs)


def klif():
    return neuron.KLIFNode(tau=2.0, v_threshold=0.5)


@pytest.mark.parametrize(
    ("node", "method"),
    [
        (own, criticality()),
        (klif, criticality()),
        (klif, methods.SCA(sparsity=0.4, interval=2, end=6)),
    ],
)
def test_methods_read_other_neurons(node, method):
    model, optimizer = wrapped(method, net=build(node=node))
    kinds = [type(model.net[i]) for i in (2, 5, 9)]
    train(model, optimizer, 7)
    assert sum(model.history[-1].grown.values()) > 0
    net = model.finalize()
    assert [type(net[i]) for i in (2, 5, 9)] == kinds
    assert not any(k.startswith("_sj") for i in (2, 5, 9) for k in vars(net[i]))


def test_resumes_and_copies_with_observed_neurons():
    model, optimizer = wrapped(criticality(), net=build(node=own))
    train(model, optimizer, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other, again = wrapped(criticality(), net=build(3, node=own))
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    functional.reset_net(model)  # a potential on a graph cannot be copied
    twin = copy.deepcopy(model)
    for each, stepper in ((model, optimizer), (other, again)):
        train(each, stepper, 5, start=4)
    assert same(snapshot(model.net), snapshot(other.net))
    third = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    twin.attach(third)
    train(twin, third, 5, start=4)
    assert len(twin.history) == len(model.history)


def test_a_trained_network_is_calibrated_through_observers():
    found = prune(build(node=klif), [batch(k) for k in range(3)], methods.APoZ(sparsity=0.4))
    assert found.report.totals["channels_kept"] < found.report.totals["channels"]
    assert type(found.net[2]) is neuron.KLIFNode


@pytest.mark.parametrize("method", [criticality(), methods.SCA(sparsity=0.4, interval=2, end=6)])
def test_neurons_that_tell_nothing_are_said_at_the_first_forward(method):
    net = build(spiking=False)
    before = snapshot(net)
    model, _ = wrapped(method, net=net)
    with pytest.raises((RuntimeError, ValueError), match="(neurons with|channels to prune)"):
        model(batch(1)[0])
    assert all(torch.equal(v, before[k]) for k, v in snapshot(net).items())


@reads("abs_charge")
def charged(layer):
    return None if layer.activity is None else layer.activity.mean("abs_charge")


class Unknown(nn.Module):
    """No SpikingJelly neuron, without a threshold that could be asked for."""

    def __init__(self):
        super().__init__()
        self.spikes = surrogate.ATan()

    def forward(self, x_seq):
        return self.spikes(x_seq.cumsum(0) - 0.5)


def test_a_missing_statistic_is_named_at_the_first_forward():
    model, _ = wrapped(own_plan(grow=Growth(charged, 0.2)), net=build(node=Unknown))
    with pytest.raises(RuntimeError, match="no abs_charge: it has no attribute v_threshold"):
        model(batch(1)[0])
    model, optimizer = wrapped(own_plan(), net=build(node=Unknown))  # reads the firing rate
    train(model, optimizer, 3)
    assert sum(model.history[-1].grown.values()) > 0


def test_discarded_wrapper_leaves_no_observer():
    net = build(node=own)
    PruningWrapper(net, criticality()).discard()
    assert not any("_sj_prune_observed" in vars(m) for m in net.modules())


@pytest.mark.parametrize("n", [3, 4, 6])
@pytest.mark.parametrize("steps", [False, True])
def test_channels_of_a_foreign_neuron_are_no_samples(n, steps):
    """Sequences and steps look alike where samples and channels are as many."""

    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.spikes = surrogate.ATan()
            self.v_threshold = 0.5

        def forward(self, x):
            return self.spikes(x - self.v_threshold)

    net = build(node=Foreign)
    net = Stepping(net) if steps else net
    model = PruningWrapper(net, own_plan())
    with model.recording():
        for k in range(2):
            model(batch(k, n=n)[0])
    for name, sensor in model.nodes.items():
        stock = build()  # the currents of that layer, by hand
        layers = list(stock)[: int(name.removeprefix("net."))]
        rates = []
        with torch.no_grad():
            for k in range(2):
                x = batch(k, n=n)[0]
                for module in layers:
                    if isinstance(module, neuron.LIFNode):
                        x = (x >= 0.5).to(x)
                    elif steps and isinstance(module, nn.BatchNorm2d):
                        functional.set_step_mode(module, "s")
                        x = torch.stack([module(step) for step in x])
                    else:
                        x = module(x)
                rates.append((x >= 0.5).double().transpose(0, 2).flatten(1).mean(1))
        expected = torch.stack(rates).mean(0)
        torch.testing.assert_close(sensor.activity.mean("firing_rate"), expected, rtol=0, atol=2e-3)
