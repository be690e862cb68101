"""`to_recording` and `to_stock`, and the constructors of the recording classes."""

import copy
import inspect
import logging

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import sj_prune._host as host
from sj_prune.neurons import (
    STATISTICS,
    RecordingIFNode,
    RecordingLIFNode,
    RecordingNode,
    recording_nodes,
    to_recording,
    to_stock,
)
from tests.support.neuron_cases import LEGACY, RECORDING, STOCK, current, pair


class Doubled(neuron.LIFNode):
    """A user's subclass: its equations are its own."""

    def neuronal_charge(self, x):
        super().neuronal_charge(2 * x)


def network():
    torch.manual_seed(3)
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        layer.BatchNorm2d(4),
        neuron.LIFNode(surrogate_function=surrogate.ATan(), tau=1.5),
        layer.Conv2d(4, 3, 3),
        nn.Sequential(neuron.IFNode(v_reset=None), neuron.ParametricLIFNode(store_v_seq=True)),
    )
    functional.set_step_mode(net, "m")
    return net


def test_round_trip_leaves_no_trace():
    net = network()
    x = current(3, 2, 2, 6, 6)
    expected = copy.deepcopy(net)(x)
    before = copy.deepcopy(net)
    assert to_recording(net) is net
    assert sorted(recording_nodes(net)) == ["2", "4.0", "4.1"]
    assert torch.equal(net(x), expected)
    functional.reset_net(net)
    assert to_stock(net) is net
    assert recording_nodes(net) == {}
    for (name, a), (other, b) in zip(net.named_modules(), before.named_modules(), strict=True):
        assert name == other
        assert type(a) is type(b)  # NIR export and precision tools match exact classes
        assert set(vars(a)) == set(vars(b))
    assert repr(net) == repr(before)
    for a, b in zip(net.named_parameters(), before.named_parameters(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
    net.load_state_dict(before.state_dict())
    assert torch.equal(net(x), before(x))


def test_names_parameters_hooks_and_settings_stay():
    net = network()
    keys, parameters = list(net.state_dict()), [id(p) for p in net.parameters()]
    nodes = [net[2], net[4][0], net[4][1]]
    calls = []
    handle = net[2].register_forward_hook(lambda *args: calls.append("forward"))
    net[4][1].register_forward_pre_hook(lambda *args: calls.append("before"))
    settings = [(node.v_threshold, node.v_reset, node.store_v_seq) for node in nodes]
    to_recording(net)
    assert list(net.state_dict()) == keys
    assert [id(p) for p in net.parameters()] == parameters
    assert [net[2], net[4][0], net[4][1]] == nodes  # the same objects
    assert [(n.v_threshold, n.v_reset, n.store_v_seq) for n in nodes] == settings
    assert net[2].tau == 1.5
    net(current(3, 2, 2, 6, 6))
    assert calls == ["forward", "before"]
    handle.remove()
    to_stock(net)
    functional.reset_net(net)
    net(current(3, 2, 2, 6, 6))
    assert calls == ["forward", "before", "before"]


def test_the_state_survives_both_swaps():
    stock, other = pair("LIF", surrogate_function=surrogate.ATan(), store_v_seq=True)
    node = copy.deepcopy(stock)
    for swap, seed in ((to_recording, 0), (to_stock, 1), (to_recording, 2)):
        swap(node)
        x = current(4, 3, 2, seed=seed)
        assert torch.equal(node(x), stock(x))
        assert torch.equal(node.v, stock.v)
        assert torch.equal(node.v_seq, stock.v_seq)
    assert node.activity.count == 3  # it began anew with the last swap


def test_a_node_of_its_own():
    for kind, cls in STOCK.items():
        node = cls(step_mode="m")
        assert to_recording(node) is node
        assert type(node) is RECORDING[kind]
        node(current(4, 3, 2))
        assert node.activity.count == 3
        assert to_stock(node) is node
        assert type(node) is cls


def test_twice_is_once():
    net = network()
    to_recording(net)
    net(current(3, 2, 2, 6, 6))
    activity = net[2].activity
    to_recording(net)
    assert net[2].activity is activity
    assert activity.count == 2
    to_stock(to_stock(net))


def test_one_node_used_twice_is_swapped_and_named_once():
    node = neuron.IFNode(step_mode="m")
    net = nn.ModuleDict({"first": node, "second": node})
    to_recording(net)
    assert recording_nodes(net) == {"first": node}


def test_a_subclass_is_left_alone_and_named(caplog):
    net = nn.Sequential(neuron.LIFNode(), Doubled())
    with caplog.at_level(logging.WARNING, logger="sj_prune"):
        to_recording(net)
    assert type(net[0]) is RecordingLIFNode
    assert type(net[1]) is Doubled
    assert "1 (Doubled)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="sj_prune"):
        to_recording(Doubled())
        to_recording(network())
    assert "net (Doubled)" in caplog.text
    assert len(caplog.records) == 1  # nothing to say about a network of stock nodes


@pytest.mark.skipif(LEGACY, reason="0.0.0.0.14 has no precision tools")
def test_a_node_with_an_explicit_precision_is_left_alone(caplog):
    node = neuron.LIFNode(step_mode="m")
    node._neuron_precision = (torch.float16, "fp32", "fp32")
    with caplog.at_level(logging.WARNING, logger="sj_prune"):
        to_recording(node)
    assert type(node) is neuron.LIFNode
    assert "LIFNode" in caplog.text


@pytest.mark.skipif(not LEGACY, reason="2.0.0 has no clock_driven package")
@pytest.mark.parametrize("swap", [to_recording, to_stock])
def test_clock_driven_nodes_are_refused(swap):
    from spikingjelly.clock_driven import neuron as legacy

    net = nn.Sequential(neuron.LIFNode(), nn.Sequential(legacy.LIFNode()))
    with pytest.raises(ValueError, match=r"'1\.0' comes from spikingjelly\.clock_driven"):
        swap(net)
    assert type(net[0]) is neuron.LIFNode  # nothing was swapped halfway
    with pytest.raises(ValueError, match="activation_based.neuron.IFNode, LIFNode"):
        swap(legacy.LIFNode())


@pytest.mark.parametrize("swap", [to_recording, to_stock])
@pytest.mark.parametrize("thing", [None, 3, [neuron.LIFNode()], neuron.LIFNode])
def test_only_modules(swap, thing):
    with pytest.raises(TypeError, match="Expected net to be a torch.nn.Module but got"):
        swap(thing)


@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_the_constructor_is_the_parents(kind):
    ours, parent = RECORDING[kind], STOCK[kind]
    assert inspect.signature(ours) == inspect.signature(parent)
    assert issubclass(ours, parent)
    assert ours.__mro__[:3] == (ours, RecordingNode, parent)
    names = list(inspect.signature(parent).parameters)
    node = ours(v_threshold=0.5, v_reset=None, detach_reset=True, step_mode="m")
    assert (node.v_threshold, node.v_reset, node.detach_reset) == (0.5, None, True)
    with pytest.raises(TypeError):
        ours(no_such_argument=1)
    positional = [2.5, False][: names.index("v_threshold")] + [0.7]
    assert ours(*positional).v_threshold == 0.7
    assert node.recording
    assert not node.record_in_eval
    assert node.statistics == STATISTICS


def test_a_subclass_of_a_recording_node_shows_its_own_constructor():
    class Wide(RecordingLIFNode):
        def __init__(self, width, tau=3.0):
            super().__init__(tau=tau, step_mode="m")
            self.width = width

    class Bare(RecordingIFNode):
        pass

    assert list(inspect.signature(Wide).parameters) == ["width", "tau"]
    assert inspect.signature(Bare) == inspect.signature(neuron.IFNode)
    node = Wide(7)
    node(current(4, 3, 2))
    assert node.activity.count == 3


def test_repr_shows_what_was_swapped():
    node = to_recording(neuron.LIFNode(tau=3.0))
    assert "tau=3.0, recording=True" in repr(node)
    assert repr(node).startswith("RecordingLIFNode(")
    node.recording = False
    assert "recording=False" in repr(node)
    assert "recording" not in repr(to_stock(node))


def test_the_host_module_tells_neurons_from_other_layers():
    assert host.is_neuron(neuron.LIFNode())
    assert host.is_neuron(RecordingIFNode())
    assert host.is_neuron(Doubled())
    assert not host.is_neuron(layer.BatchNorm2d(2))
    assert not host.is_neuron(nn.ReLU())


def test_preserved_state_puts_everything_back():
    net = to_recording(network())
    net[4].eval()
    x = current(3, 2, 2, 6, 6)
    net(x)
    nodes = [net[2], net[4][0], net[4][1]]
    before = [node.v for node in nodes], net[4][1].v_seq, net[1].running_mean.clone()
    random = torch.get_rng_state()
    with host.preserved_state(net):
        net.train()
        functional.reset_net(net)
        net(torch.rand(2, 5, 2, 8, 8))
    assert [node.v is v for node, v in zip(nodes, before[0], strict=True)] == [True] * 3
    assert net[4][1].v_seq is before[1]
    assert torch.equal(net[1].running_mean, before[2])
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training
    assert not net[4][0].training
