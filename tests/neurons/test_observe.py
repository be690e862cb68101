"""Observed neurons of every class against equations written a second time, in float64."""

import pytest
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from sj_prune.neurons import observe, sense
from tests.support.neuron_cases import current
from tests.support.observe_cases import (
    OwnReset,
    Plain,
    assert_statistics,
    clif,
    cuba,
    eif,
    glif,
    half,
    ilif,
    klif,
    lif,
    masked_psn,
    plain,
    psn,
    qif,
    sliding_psn,
    statistics,
)

CHANNELS = 3
LENGTHS = (1, 4, 7)
BATCHES = (1, 5, CHANNELS)


def new(name, **kwargs):
    cls = getattr(neuron, name, None)
    if cls is None:
        pytest.skip(f"this release has no {name}")
    return cls(surrogate_function=surrogate.ATan(), **kwargs).double()


def both_modes(make, equations):
    return [(make, equations, mode) for mode in "sm"]


def new_klif(k=1.3, **kwargs):
    node = new("KLIFNode", **kwargs)
    nn.init.constant_(node.k, k)
    return node


def new_masked(length):
    node = new("MaskedPSN", k=2, T=length)
    node.lambda_ = 1.0
    nn.init.constant_(node.bias, -0.3)
    nn.init.uniform_(node.weight, 0.1, 0.6)
    return node


def new_psn(length):
    node = new("PSN", T=length)
    nn.init.constant_(node.bias, -0.3)
    nn.init.uniform_(node.weight, 0.1, 0.6)
    return node


def new_glif(length):
    node = new("GatedLIFNode", T=length, inplane=CHANNELS)
    for parameter in node.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return node


CASES = {
    "KLIF": (lambda t: new_klif(), klif, "sm"),
    "KLIF, scaled reset": (lambda t: new_klif(scale_reset=True, v_reset=-0.1), klif, "sm"),
    "QIF": (lambda t: new("QIFNode"), qif, "sm"),
    "EIF": (lambda t: new("EIFNode", v_reset=-0.1), eif, "sm"),
    "CLIF": (lambda t: new("ComplementaryLIFNode"), clif, "sm"),
    "GLIF": (new_glif, glif, "m"),
    "PSN": (new_psn, psn, "m"),
    "MaskedPSN": (new_masked, masked_psn, "sm"),
    "SlidingPSN": (lambda t: new("SlidingPSN", k=2), sliding_psn, "sm"),
    "CUBALIF": (lambda t: new("CUBALIFNode"), cuba, "sm"),
    "SLTT": (lambda t: new("SLTTLIFNode"), lif, "s"),
    "OTTT": (lambda t: new("OTTTLIFNode"), lif, "s"),
    "a reset of its own": (lambda t: OwnReset(surrogate_function=surrogate.ATan()), half, "sm"),
    "no class of the host": (lambda t: Plain(), plain, "-"),
}


def run(node, x, mode):
    if mode == "s":
        for x_t in x:
            node(x_t)
    else:
        node(x)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("case", "mode"), [(c, m) for c, (_, _, ms) in CASES.items() for m in ms])
def test_every_class(case, mode, length):
    make, equations, _ = CASES[case]
    node = make(length).double()
    if mode != "-" and type(node).__name__ != "PSN":
        node.step_mode = mode
    (observer,) = observe(node).values()
    passes = []
    for seed, batch in enumerate(BATCHES):
        x = current(length, batch, CHANNELS, 2, 3, dtype=torch.float64, seed=seed, high=3.5)
        run(node, x, mode)
        functional.reset_net(node)
        passes.append(equations(node, x))
    assert observer.how == "observed"
    assert_statistics(observer, statistics(passes))
    assert observer.activity.count == sum(BATCHES)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_graded_spikes(mode):
    if not hasattr(neuron, "ILIFNode"):
        pytest.skip("this release has no ILIFNode")
    node = neuron.ILIFNode(v_threshold=0.8, step_mode=mode).double()
    (observer,) = observe(node).values()
    x = current(4, 3, 5, dtype=torch.float64)
    run(node, x, mode)
    spikes, v, h, u = ilif(node, x)

    def box(u):  # the derivative of its surrogate
        return ((u >= 0.0) & (u <= 4.0)).double()

    assert_statistics(observer, statistics([(spikes, v, h, u)], box))
    assert observer.activity.mean("firing_rate").max() > 1.0


def test_noisy():
    node = new("NoisyCUBALIFNode", num_node=CHANNELS, T=4, is_training=False)
    (observer,) = observe(node).values()
    x = current(4, 5, CHANNELS, dtype=torch.float64)
    node(x)
    assert_statistics(observer, statistics([cuba(node, x)]))


def test_few_spike_counts_its_table_as_time():
    if not hasattr(neuron, "FewSpikeNode"):
        pytest.skip("this release has no FewSpikeNode")
    from spikingjelly.activation_based.neuron.few_spike import FewSpikeTable

    table = FewSpikeTable([0.5, 0.4, 0.3], [0.5, 0.4, 0.3], [0.5, 0.4, 0.3])
    node = neuron.FewSpikeNode(table, surrogate.ATan()).double()
    (observer,) = observe(node).values()
    x = current(5, CHANNELS, dtype=torch.float64)
    node(x)
    v, us = x, []
    for theta in table.theta.double():
        us.append(v - theta)
        v = v - theta * (us[-1] >= 0.0)
    spikes = [(u >= 0.0).double() for u in us]
    assert_statistics(observer, statistics([(spikes, [None], [None], us)]))
    assert set(observer.missing) == {"abs_potential", "abs_charge"}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["IFNode", "LIFNode", "ParametricLIFNode"])
@pytest.mark.parametrize("v_reset", [0.0, -0.2, None])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_observed_equals_fused(kind, v_reset, batch, length, step_mode):
    """The same stock node, observed and recording: alike to 1e-6 in float32."""

    def make():
        return getattr(neuron, kind)(
            v_reset=v_reset, surrogate_function=surrogate.Sigmoid(), step_mode=step_mode
        )

    fused, observed = make(), make()
    sensor = sense(fused)[""]
    (observer,) = observe(observed).values()
    assert observer.how == "observed"
    for seed in range(2):
        x = current(length, batch, CHANNELS, 2, 2, seed=seed)
        run(fused, x, step_mode)
        run(observed, x, step_mode)
        functional.reset_net(fused)
        functional.reset_net(observed)
    assert observer.statistics == sensor.statistics
    for name in sensor.statistics:
        ours, theirs = observer.activity.mean(name), sensor.activity.mean(name)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert observer.activity.count == sensor.activity.count == 2 * batch


@pytest.mark.parametrize("kind", ["IFNode", "LIFNode", "ParametricLIFNode"])
def test_single_steps_equal_one_sequence(kind):
    """A pass over single steps keeps exactly what a fused pass over the sequence keeps."""
    x = current(5, 4, CHANNELS, 2, 2, dtype=torch.float64)
    kept = []
    for mode in "sm":
        node = getattr(neuron, kind)(step_mode=mode).double()
        sensor = sense(node)[""]
        assert sensor.how == {"s": "observed", "m": "fused"}[mode]
        run(node, x, mode)
        kept.append({name: sensor.activity.mean(name) for name in sensor.statistics})
    torch.testing.assert_close(*kept, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["Sigmoid", "S2NN", "PiecewiseLeakyReLU"])
def test_every_kind_of_surrogate(name):
    """Closed forms and those that only autograd knows."""
    function = getattr(surrogate, name)()
    node = neuron.KLIFNode(surrogate_function=function, step_mode="m").double()
    (observer,) = observe(node).values()
    x = current(4, 3, CHANNELS, dtype=torch.float64)
    node(x)

    def slope(u):
        u = u.clone().requires_grad_()
        return torch.autograd.grad(function(u).sum(), u)[0]

    assert_statistics(observer, statistics([klif(node, x)], slope))
