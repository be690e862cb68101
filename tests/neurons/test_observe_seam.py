"""What observing leaves as it is: keys, classes, outputs, gradients, random numbers, copies."""

import copy
import io
import pickle

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from sj_prune.neurons import Tanh, observe, observers, sense, to_stock, unobserve
from tests.support.neuron_cases import LEGACY, current
from tests.support.observe_cases import OwnReset, Plain, klif, statistics

X = current(4, 3, 2, dtype=torch.float64)


class Steep(surrogate.Sigmoid):
    """A user's surrogate with a parameter."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return surrogate.sigmoid.apply(x * self.slope, 1.0)


def network():
    torch.manual_seed(3)
    net = nn.Sequential(
        layer.Linear(2, 4),
        neuron.KLIFNode(),  # nodes of one class share its default function
        layer.Linear(4, 4),
        neuron.KLIFNode(),
        OwnReset(v_threshold=0.4),
        layer.Linear(4, 3),
        neuron.KLIFNode(surrogate_function=Steep(), store_v_seq=True),
    ).double()
    for i in (0, 2, 5):
        nn.init.uniform_(net[i].weight, 0.8, 2.0)  # so that every layer fires
    functional.set_step_mode(net, "m")
    return net


def test_observing_leaves_no_trace():
    net, before = network(), network()
    functions = [net[i].surrogate_function for i in (1, 3, 4, 6)]
    assert functions[0] is functions[1]
    observe(net)
    net(X)
    functional.reset_net(net)
    assert unobserve(net) is net
    assert observers(net) == {}
    assert [net[i].surrogate_function for i in (1, 3, 4, 6)] == functions
    assert repr(net) == repr(before)
    assert torch.equal(net(X), before(X))  # a first call makes some attributes: compare after it
    for a, b in zip(net.modules(), before.modules(), strict=True):
        assert type(a) is type(b)
        assert set(vars(a)) == set(vars(b))
        assert not a._forward_hooks
        assert not a._forward_pre_hooks


def test_to_stock_takes_observers_out():
    net, before = network(), network()
    sense(net)
    to_stock(net)
    assert observers(net) == {}
    for a, b in zip(net.modules(), before.modules(), strict=True):
        assert type(a) is type(b)
        assert set(vars(a)) == set(vars(b))


def test_keys_classes_and_names_stay():
    net, before = network(), network()
    observe(net)
    assert list(net.state_dict()) == list(before.state_dict())
    assert "6.surrogate_function.slope" in net.state_dict()
    named = {name for name, _ in net.named_parameters()}
    assert named == {name for name, _ in before.named_parameters()}
    assert repr(net) == repr(before)
    function = net[1].surrogate_function
    assert isinstance(function, surrogate.Sigmoid)
    assert isinstance(function, surrogate.SurrogateFunctionBase)
    assert function.alpha == 4.0
    net.load_state_dict(before.state_dict())


def test_attributes_are_the_functions_own():
    function = surrogate.ATan()
    node = neuron.KLIFNode(surrogate_function=function, step_mode="m").double()
    (observer,) = observe(node).values()
    assert observer.peak == pytest.approx(1.0)
    node.surrogate_function.alpha = 3.0
    assert function.alpha == 3.0
    assert observer.peak == pytest.approx(1.5)
    node(X)
    mine = statistics([klif(node, X)], lambda u: 1.5 / (1.0 + (1.5 * torch.pi * u) ** 2))
    torch.testing.assert_close(observer.activity.mean("criticality_mean"), mine["criticality_mean"])
    node.surrogate_function.set_spiking_mode(False)
    assert not function.spiking


def test_outputs_and_gradients_are_equal_to_the_last_bit():
    net, plain = network(), network()
    observe(net)
    grads = []
    for each in (net, plain):
        x = X.clone().requires_grad_()
        out = each(x)
        out.square().sum().backward()
        grads.append((out.detach(), x.grad, *(p.grad for p in each.parameters())))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(net[6].v_seq, plain[6].v_seq)
    assert grads[0][0].any()


@pytest.mark.skipif(LEGACY, reason="0.0.0.0.14 has no ILIFNode")
@pytest.mark.parametrize("store_v_seq", [True, False])
def test_graded_spikes_and_their_gradients_stay(store_v_seq):
    grads = []
    for observed in (True, False):
        node = neuron.ILIFNode(step_mode="m", store_v_seq=store_v_seq).double()
        if observed:
            observe(node)
        x = (2.0 * X).requires_grad_()
        for _ in range(2):
            out = node(x)
        out.square().sum().backward()
        grads.append((out.detach(), x.grad, node.v.detach()))
        assert (node.v_seq is None) != store_v_seq
        assert not store_v_seq or node.v_seq.shape == X.shape
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


class Dice(nn.Module):
    """A stochastic surrogate; autograd alone knows its derivative."""

    def forward(self, u):
        p = torch.sigmoid(u)
        return (torch.rand_like(p) < p).to(p) - p.detach() + p


def test_a_stochastic_surrogate_draws_as_many_numbers_as_before():
    outs = []
    for observed in (True, False):
        node = neuron.KLIFNode(surrogate_function=Dice(), step_mode="m").double()
        if observed:
            (observer,) = observe(node).values()
        torch.manual_seed(5)
        outs.append((node(X).detach(), torch.rand(3)))
    torch.testing.assert_close(*outs, rtol=0.0, atol=0.0)
    assert 0.0 < observer.activity.mean("criticality_max").max() <= 0.25


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_carry_observers_of_their_own(copied):
    net = network()
    observe(net)
    net(X)
    functional.reset_net(net)
    if copied == "deepcopy":
        other = copy.deepcopy(net)
    elif copied == "pickle":
        other = pickle.loads(pickle.dumps(net))  # noqa: S301
    else:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    ours, theirs = observers(net), observers(other)
    assert list(ours) == list(theirs) == ["1", "3", "4", "6"]
    assert torch.equal(other(X), net(X))
    functional.reset_net(other)
    for name in ours:
        assert theirs[name] is not ours[name]
        assert theirs[name].node is other.get_submodule(name)
        assert theirs[name].activity.count == 6
        mean = ours[name].activity.mean("abs_charge")
        assert torch.equal(theirs[name].activity.mean("abs_charge"), mean)
    # Functions that were one are one in the copy, and come back so.
    unobserve(other)
    assert other[1].surrogate_function is other[3].surrogate_function
    assert observers(net)["1"].node is net[1]


def test_a_seam_alone_is_copied():
    node = neuron.KLIFNode()
    observe(node)
    function = copy.deepcopy(node.surrogate_function)
    assert function.alpha == 4.0
    assert torch.equal(function(X), (X >= 0).double())
    function = pickle.loads(pickle.dumps(node.surrogate_function))  # noqa: S301
    assert torch.equal(function(X), (X >= 0).double())


def test_twice_is_once():
    net = network()
    first, second = observe(net), observe(net)
    assert {name: id(each) for name, each in first.items()} == {
        name: id(each) for name, each in second.items()
    }
    net(X)
    assert first["1"].activity.count == 3


def test_names_to_skip():
    net = network()
    assert list(observe(net, ["1", "6"])) == ["3", "4"]


def test_a_function_that_replaces_the_seam_stays():
    node = neuron.KLIFNode(step_mode="m").double()
    (observer,) = observe(node).values()
    node.surrogate_function = surrogate.ATan()
    node(X)
    assert observer.how == "none"
    assert "without a call" in observer.why
    unobserve(node)
    assert isinstance(node.surrogate_function, surrogate.ATan)


def test_a_plain_callable_as_the_attribute():
    node = neuron.QIFNode(surrogate_function=surrogate.atan.apply, step_mode="s")
    node.surrogate_function = lambda u: surrogate.ATan()(u)
    (observer,) = observe(node).values()
    node(X[0])
    assert observer.activity.count == 3
    assert observer.activity.mean("criticality_max").max() <= 1.0
    assert observer.peak == pytest.approx(1.0)
    unobserve(node)
    assert node.surrogate_function.__name__ == "<lambda>"


def test_our_own_surrogate():
    node = neuron.KLIFNode(surrogate_function=Tanh(3.0), step_mode="m").double()
    (observer,) = observe(node).values()
    node(X)
    g = statistics(
        [klif(node, X)], lambda u: 1.5 / (torch.tanh(torch.tensor(1.5)) * (3 * u).cosh() ** 2)
    )
    torch.testing.assert_close(observer.activity.mean("criticality_max"), g["criticality_max"])


def test_statistics_follow_the_device():
    node = Plain()
    (observer,) = observe(node).values()
    node(X.float())
    node.to("meta")
    assert observer.activity.sums.device.type == "meta"


@pytest.mark.gpu
def test_on_a_gpu():
    node = neuron.KLIFNode(step_mode="m")
    (observer,) = observe(node).values()
    node(X.float())
    node.reset()
    node.cuda()
    node(X.float().cuda())
    assert observer.activity.count == 6
    assert observer.activity.sums.is_cuda
