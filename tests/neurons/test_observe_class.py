"""Subclasses of IF, LIF and PLIF: which record as they are, and that they stay what they are."""

import copy
import pickle

import pytest
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from sj_prune.neurons import (
    RecordingLIFNode,
    RecordingNode,
    recording_nodes,
    sense,
    sensors,
    to_stock,
)
from tests.support.neuron_cases import LEGACY, current
from tests.support.observe_cases import assert_statistics, lif, statistics

X = current(4, 3, 2, dtype=torch.float64)


class Named(neuron.LIFNode):
    """A subclass with an initializer and a method of its own."""

    def __init__(self, width=7, **kwargs):
        super().__init__(surrogate_function=surrogate.ATan(), step_mode="m", **kwargs)
        self.width = width
        self.resets = 0

    def twice(self):
        return 2 * self.width

    def reset(self):
        self.resets += 1
        super().reset()


class NamedIF(neuron.IFNode):
    pass


class NamedPLIF(neuron.ParametricLIFNode):
    def extra_repr(self):
        return "named"


class Mixed:
    def neuronal_reset(self, spike):
        self.v = 0.0 * self.v


class ByMixIn(Mixed, neuron.LIFNode):
    pass


def overriding(method):
    def own(self, *args, **kwargs):
        return getattr(super(cls, self), method)(*args, **kwargs)

    cls = type("Own", (neuron.LIFNode,), {method: own})
    return cls


def test_a_subclass_without_dynamics_is_fused():
    node = Named(tau=1.7).double()
    sensor = sense(node)[""]
    assert sensor is node
    assert (node.how, node.why) == ("fused", "")
    assert type(node).__name__ == "Named"
    assert isinstance(node, Named)
    assert isinstance(node, RecordingLIFNode)
    assert repr(node).startswith("Named(")
    assert (node.width, node.twice()) == (7, 14)
    node(X)
    functional.reset_net(node)
    assert node.resets == 1
    assert_statistics(node, statistics([lif(node, X)]))


@pytest.mark.parametrize("cls", [Named, NamedIF, NamedPLIF])
def test_it_computes_what_it_did(cls):
    node = cls()
    node.step_mode = "m"
    plain = copy.deepcopy(node)
    sense(node)
    x = X.float().requires_grad_()
    y = X.float().requires_grad_()
    out, expected = node(x), plain(y)
    assert torch.equal(out, expected)
    assert out.any()
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_it_is_copied_and_comes_back_as_the_users_class(copied):
    net = nn.Sequential(Named(width=9), neuron.LIFNode(step_mode="m")).double()
    sense(net)
    net(X)
    functional.reset_net(net)
    other = copied(net)
    assert type(other[0]) is type(net[0])
    assert other[0].width == 9
    assert other[0].activity.count == 3
    assert other[0].activity is not net[0].activity
    other(X)
    assert other[0].activity.count == 6
    for each in (net, other):
        functional.reset_net(each)
        to_stock(each)
        assert type(each[0]) is Named
        assert type(each[1]) is neuron.LIFNode
        assert recording_nodes(each) == {}
    assert set(vars(net[0])) >= set(vars(Named()))
    copied(other)  # the user's own class again


@pytest.mark.parametrize(
    "method",
    [
        "neuronal_charge",
        "neuronal_fire",
        "neuronal_reset",
        "single_step_forward",
        "multi_step_forward",
        "single_step_functional_forward",
        "multi_step_functional_forward",
        "materialize_states",
        "forward",
    ],
)
def test_dynamics_of_its_own_are_observed(method):
    node = overriding(method)(step_mode="m")
    sensor = sense(node)[""]
    assert sensor is not node
    assert sensor.how == "observed"
    assert not isinstance(node, RecordingNode)


def test_dynamics_of_a_mix_in_are_observed():
    assert sense(ByMixIn())[""].how == "observed"


@pytest.mark.parametrize("name", ["v_threshold", "v_reset", "tau"])
def test_a_setting_that_is_no_number_is_observed(name):
    node = neuron.LIFNode(step_mode="m", v_reset=-0.1, surrogate_function=surrogate.ATan()).double()
    plain = copy.deepcopy(node)
    value = torch.tensor(getattr(node, name), dtype=torch.float64)
    setattr(node, name, nn.Parameter(value) if name == "v_threshold" and not LEGACY else value)
    sensor = sense(node)[""]
    assert sensor is not node
    if LEGACY:
        return  # its scripts take numbers only, so such a node does not run
    assert torch.equal(node(X), plain(X))
    if name != "v_reset":
        plain.v_threshold = float(plain.v_threshold)
        assert_statistics(sensor, statistics([lif(plain, X)]))


def test_sense_lists_every_neuron_in_the_order_of_the_network():
    net = nn.Sequential(neuron.KLIFNode(), Named(), neuron.IFNode(), overriding("neuronal_fire")())
    assert {name: sensor.how for name, sensor in sense(net).items()} == {
        "0": "observed",
        "1": "fused",
        "2": "observed",  # in single-step mode
        "3": "observed",
    }
    assert list(recording_nodes(net)) == ["1", "2"]
    assert list(sense(net)) == list(sensors(net)) == ["0", "1", "2", "3"]
    to_stock(net)
    assert sensors(net) == {}
    assert [type(node).__name__ for node in net] == ["KLIFNode", "Named", "IFNode", "Own"]


def test_what_was_observed_may_come_to_record():
    from sj_prune.neurons import observe, observers

    node = neuron.LIFNode(step_mode="m").double()
    observe(node)
    assert sense(node)[""] is node
    assert observers(node) == {}
    node(X)
    assert node.activity.count == 3
