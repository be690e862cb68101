"""Where a pass over time begins and ends, in loops inside and outside of the network."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.utils.checkpoint import checkpoint

from sj_prune.neurons import observe, sense, to_stock
from tests.support.neuron_cases import LEGACY, current
from tests.support.observe_cases import (
    Plain,
    Whole,
    assert_statistics,
    klif,
    lif,
    plain,
    qif,
    run,
    statistics,
)

C = 3
NO_SCRIPTS = pytest.mark.skipif(
    LEGACY, reason="this checkpoint fails in TorchScript of 0.0.0.0.14, observed or not"
)
EQUATIONS = {"LIFNode": lif, "KLIFNode": klif, "IFNode": None}


def node_of(kind, **kwargs):
    return getattr(neuron, kind)(surrogate_function=surrogate.ATan(), **kwargs).double()


class Loop(nn.Module):
    """A network of single steps that loops over time in its forward."""

    def __init__(self, kind):
        super().__init__()
        self.fc = nn.Linear(4, C)
        self.spike = node_of(kind)
        self.double()

    def forward(self, x_seq):
        return sum(self.spike(self.fc(x)) for x in x_seq)


def currents(length, dtype=torch.float64):
    for seed, batch in enumerate((1, 5, C)):
        yield current(length, batch, 4, dtype=dtype, seed=seed, low=0.0, high=6.0)


def driven(kind):
    torch.manual_seed(1)
    net = Loop(kind)
    nn.init.uniform_(net.fc.weight, 0.1, 0.5)
    return net, sense(net)["spike"]


@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("kind", ["LIFNode", "KLIFNode"])
def test_a_loop_inside_the_network(kind, length):
    net, sensor = driven(kind)
    passes = []
    for x in currents(length):
        net(x)
        functional.reset_net(net)
        passes.append(EQUATIONS[kind](net.spike, net.fc(x).detach()))
    assert sensor.how == "observed"
    assert_statistics(sensor, statistics(passes))


@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("kind", ["LIFNode", "KLIFNode"])
def test_a_loop_in_the_training_script(kind, length):
    net, sensor = driven(kind)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    passes = []
    for x in currents(length):
        passes.append(EQUATIONS[kind](net.spike, net.fc(x).detach()))
        loss = sum(net.spike(net.fc(x_t)) for x_t in x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        functional.reset_net(net)
    assert_statistics(sensor, statistics(passes))


@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("kind", ["LIFNode", "KLIFNode"])
def test_a_recurrent_container(kind, length):
    torch.manual_seed(2)
    inner = nn.Sequential(nn.Linear(4, C), node_of(kind))
    net = layer.LinearRecurrentContainer(inner, 4, C, step_mode="m").double()
    for weight in (net.rc.weight, inner[0].weight):
        nn.init.uniform_(weight, 0.0, 0.6)
    sensor = sense(net)["sub_module.1"]
    passes = []
    for x in currents(length):
        net(x)
        functional.reset_net(net)
        # What the neuron got depends on what it fired: find it step by step.
        y, got = torch.zeros(x.shape[1], C, dtype=torch.float64), []
        for x_t in x:
            got.append(inner[0](net.rc(torch.cat([x_t, y], -1))).detach())
            y = EQUATIONS[kind](inner[1], torch.stack(got))[0][-1]
        passes.append(EQUATIONS[kind](inner[1], torch.stack(got)))
    assert_statistics(sensor, statistics(passes))


@pytest.mark.parametrize("kind", ["LIFNode", "KLIFNode"])
def test_what_ends_a_pass(kind):
    node = node_of(kind)
    sensor = sense(node)[""]
    steps = current(4, 2, C, dtype=torch.float64)
    for x in steps[:2]:
        node(x)
    sensor.close_pass()  # the optimizer's step
    assert sensor.activity.count == 2
    for x in steps:
        node(x)
    node.v = 0.0  # put back to rest by hand
    node(current(3, C, dtype=torch.float64)[:2])
    node.v = 0.0
    node(current(5, C, dtype=torch.float64))  # another batch shape
    node.reset()
    assert sensor.activity.count == 2 + 2 + 2 + 5
    sensor.close_pass()
    sensor.close_pass()  # nothing is under way
    assert sensor.activity.count == 11


@pytest.mark.parametrize("kind", ["LIFNode", "KLIFNode"])
def test_the_maximum_comes_after_the_time_mean(kind):
    """Single steps are no passes of their own: a maximum of each would be larger."""
    node = node_of(kind, step_mode="s")
    sensor = sense(node)[""]
    x = current(6, 2, C, 4, 4, dtype=torch.float64)
    for x_t in x:
        node(x_t)
    u = EQUATIONS[kind](node, x)[3]
    single = statistics([([s], [None], [None], [s]) for s in u])["criticality_max"]
    assert (sensor.activity.mean("criticality_max") < single - 0.05).all()


@pytest.mark.parametrize("use_reentrant", [True, pytest.param(False, marks=NO_SCRIPTS)])
@pytest.mark.parametrize("name", ["ATan", "S2NN"])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_recomputation_in_backward_is_not_counted(mode, name, use_reentrant):
    node = neuron.QIFNode(surrogate_function=getattr(surrogate, name)(), step_mode=mode).double()
    (observer,) = observe(node).values()
    x = current(4, 3, C, dtype=torch.float64).requires_grad_()
    x_in = x[0] if mode == "s" else x
    out = checkpoint(node, x_in, use_reentrant=use_reentrant, preserve_rng_state=False)
    before = observer.calls
    node.reset()  # a recomputation starts from rest
    out.sum().backward()
    assert observer.calls == before
    assert observer.activity.count == 3


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputed_module_that_is_no_host_class(use_reentrant):
    node = Plain().double()
    (observer,) = observe(node).values()
    x = current(4, 3, C, dtype=torch.float64).requires_grad_()
    checkpoint(node, x, use_reentrant=use_reentrant).sum().backward()
    assert observer.calls == 4
    assert_statistics(observer, statistics([plain(node, x.detach())]))


def test_eval_mode_keeps_nothing_unless_asked():
    node = node_of("KLIFNode", step_mode="m").eval()
    (observer,) = observe(node).values()
    x = current(4, 3, C, dtype=torch.float64)
    node(x)
    assert observer.activity.count == 0
    observer.record_in_eval = True
    node(x)
    assert observer.activity.count == 3
    observer.record_in_eval = False
    node.train()
    observer.recording = False
    node(x)
    assert observer.activity.count == 3


def test_inference_mode_and_training_share_one_activity():
    node = node_of("QIFNode", step_mode="s")
    (observer,) = observe(node).values()
    x = current(4, 3, C, dtype=torch.float64)
    with torch.inference_mode():
        node(x[0])
    node.v = node.v.clone()
    node(x[1])
    node.reset()
    expected = statistics([qif(node, x[:2])])
    assert_statistics(observer, expected)


def test_chosen_statistics_only():
    node = node_of("KLIFNode", step_mode="m")
    (observer,) = observe(node).values()
    x = current(4, 3, C, dtype=torch.float64)
    node(x)
    observer.statistics = ("criticality_max", "abs_potential")
    assert observer.activity.count == 0
    node(x)
    functional.reset_net(node)
    node(x)
    assert observer.statistics == ("abs_potential", "criticality_max")
    assert observer.activity.count == 6
    assert node.training
    functional.reset_net(node)
    node(x)
    observer.statistics = ("abs_potential", "criticality_max")  # the same: nothing is forgotten
    assert observer.activity.count == 9
    with pytest.raises(ValueError, match="Expected statistics among"):
        observer.statistics = ("rate",)


@pytest.mark.parametrize("kind", ["LIFNode", "KLIFNode"])
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize(("channel_dim", "order"), [(-1, (0, 1, 4, 2, 3)), (1, (0, 2, 1, 3, 4))])
def test_channels_elsewhere(channel_dim, order, mode, kind):
    """Features last, and ``[T, C, N, *]``; the order brings x to ``[T, N, C, *]``."""
    node = node_of(kind, step_mode=mode)
    sensor = sense(node)[""]
    sensor.channel_dim = channel_dim
    x = current(4, 2, C, 4, 5, dtype=torch.float64)
    for x_in in x if mode == "s" else [x]:
        node(x_in)
    passes = [EQUATIONS[kind](node, x.permute(order))]
    assert_statistics(sensor, statistics(passes))
    assert sensor.activity.channels == x.permute(order).shape[2]


def test_two_widths_end_what_is_kept_and_not_the_training():
    node = node_of("KLIFNode", step_mode="m")
    (observer,) = observe(node).values()
    for channels in (3, 4, 3):
        node(current(4, 2, channels, dtype=torch.float64))
        node.reset()
    assert observer.how == "none"
    assert "different numbers of channels" in observer.why


def test_a_module_that_loops_needs_no_reset():
    node = Plain().double()
    (observer,) = observe(node).values()
    batches = [current(4, 2, C, dtype=torch.float64, seed=seed) for seed in range(3)]
    for x in batches:
        node(x)
    assert_statistics(observer, statistics([plain(node, x) for x in batches]))


def test_a_whole_network_that_loops_needs_no_reset():
    node = Whole().double()
    nn.init.uniform_(node.fc.weight, 0.0, 0.3)
    (observer,) = observe(node).values()
    passes = []
    for seed in range(3):
        x = current(4, 2, 3, 2, 2, dtype=torch.float64, seed=seed)
        node(x)
        steps = run(node, node.currents(x).detach(), half_leak, cut, threshold=0.8)
        passes.append((steps[0], [None], [None], steps[3]))
    assert_statistics(observer, statistics(passes))
    assert observer.why == (
        "no abs_charge: it has no attribute v_threshold; "
        "no abs_potential: its potential after reset is no attribute v"
    )


def half_leak(x, v):
    return 0.5 * v + x


def cut(h, s):
    return h * (1.0 - s)


def test_copies_follow_half_precision_and_keep_single():
    node = neuron.KLIFNode(surrogate_function=surrogate.ATan(), step_mode="m").bfloat16()
    (observer,) = observe(node).values()
    node(current(4, 2, C).bfloat16())
    assert observer.activity.sums.dtype == torch.float64
    assert 0.0 < observer.activity.mean("abs_charge").mean() < 3.0


@pytest.mark.skipif(not LEGACY, reason="TorchScript in eval mode is 0.0.0.0.14's")
def test_what_runs_as_a_script_says_so():
    node = node_of("LIFNode", step_mode="m").eval()
    (observer,) = observe(node).values()
    observer.record_in_eval = True
    node(current(4, 2, C, dtype=torch.float64))
    assert observer.how == "none"
    assert "without a call of its surrogate function" in observer.why
    to_stock(node)
