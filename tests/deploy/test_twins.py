"""Deployed networks against torch, bit by bit, over shapes, settings and residual connections."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import layer, neuron
from torch import nn

import sj_prune
from sj_prune.deploy import tuner
from tests.support.deploy_cases import integers, make_twin, output_of, rates_of, spiking

NEURONS = {
    "if": lambda: neuron.IFNode(v_threshold=2.0),
    "if soft": lambda: neuron.IFNode(v_threshold=2.0, v_reset=None),
    "if other": lambda: neuron.IFNode(v_threshold=2.0, v_reset=-0.5),
    "lif": lambda: neuron.LIFNode(tau=2.0),
    "lif kept": lambda: neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=1.5),
    "lif soft": lambda: neuron.LIFNode(tau=4.0, v_reset=None, decay_input=False),
    "lif other": lambda: neuron.LIFNode(tau=4.0, v_reset=0.25, v_threshold=0.75),
    "plif": lambda: neuron.ParametricLIFNode(init_tau=2.0),
    "plif kept": lambda: neuron.ParametricLIFNode(init_tau=2.0, decay_input=False, v_reset=None),
}


def kernels_of(fast):
    return {row.kernel for row in fast.report().rows}


@contextmanager
def only(kernel):
    """Let the tuner choose nothing else for layers that read spikes or counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tuner,
            "_candidates",
            lambda made, layer, *_: [kernel if made.forms[layer.input].planes else "reals"],
        )
        yield


def assert_equal(net, x, **kwargs):
    fast = sj_prune.deploy(net, x, **kwargs)
    expected = output_of(net, x)
    assert torch.equal(fast(x), expected)
    return fast, expected


class Block(nn.Module):
    """A convolution with its norm beside a shortcut of a kind."""

    def __init__(self, channels, kind, node):
        super().__init__()
        self.kind = kind
        self.conv = layer.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = layer.BatchNorm2d(channels)
        self.node = node
        self.other = layer.Conv2d(channels, channels, 1)

    def forward(self, x):
        y = self.norm(self.conv(x))
        if self.kind == "spiking":
            return self.node(y + x)
        if self.kind == "convolution":
            y += self.other(x)
            return self.node(y)
        s = self.node(y)
        if self.kind == "add":
            return x + s
        if self.kind == "and":
            return x * s
        if self.kind == "iand":
            return x * (1.0 - s)
        if self.kind == "cat":
            return torch.cat([x, s], 2)
        assert self.kind == "stream"
        return y + x


class Residual(nn.Module):
    def __init__(self, kind, make, head):
        super().__init__()
        self.stem = spiking(4)
        self.block1 = Block(4, kind, make())
        self.block2 = Block(8 if kind == "cat" else 4, kind, make())
        self.norm = layer.BatchNorm2d(16 if kind == "cat" else 4)  # behind an addition
        self.node = make()
        self.head = head

    def forward(self, x):
        y = self.node(self.norm(self.block2(self.block1(self.stem(x)))))
        return self.head(y.flatten(2)).mean(0)


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("steps", [1, 5, 9, 17])
def test_every_setting_of_neurons(name, steps):
    net = make_twin(
        nn.Sequential(
            layer.Conv2d(2, 5, 3, padding=1),
            NEURONS[name](),
            layer.Conv2d(5, 6, 3, bias=False),
            layer.BatchNorm2d(6),
            NEURONS[name](),
            layer.Flatten(),
            layer.Linear(6 * 5 * 3, 7),
            NEURONS[name](),
        )
    )
    x = integers(steps, 2, 2, 7, 5)
    assert steps == 1 or all(rate > 0 for rate in rates_of(net, x))
    assert_equal(net, x)


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    groups=st.sampled_from([1, 2, 4]),
    size=st.tuples(st.integers(1, 13), st.integers(1, 19)),
    steps=st.integers(1, 12),
    samples=st.integers(1, 5),
    keep=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    run_by=st.sampled_from(["bits", "events", "dense"]),
)
@settings(max_examples=60, deadline=None)
def test_every_convolution(
    kernel, stride, padding, dilation, groups, size, steps, samples, keep, run_by
):
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [max(n, r - 2 * p) for n, r, p in zip(size, reach, padding, strict=True)]
    conv = layer.Conv2d(
        4, 8, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    net = make_twin(nn.Sequential(spiking(4), conv, neuron.IFNode(v_threshold=2.0)), keep)
    run_by = "bits" if groups > 1 and run_by == "events" else run_by
    with only(run_by):
        fast, _ = assert_equal(net, integers(steps, samples, 2, *size), threads=1 + steps % 3)
    assert kernels_of(fast) - {"reals"} == {run_by}


@pytest.mark.parametrize("kind", ["spiking", "convolution", "add", "and", "iand", "cat", "stream"])
@pytest.mark.parametrize("steps", [1, 4, 11])
def test_every_residual_connection(kind, steps):
    features = (16 if kind == "cat" else 4) * 6 * 7
    net = make_twin(
        Residual(kind, lambda: neuron.LIFNode(tau=2.0, v_reset=None), layer.Linear(features, 3)),
        keep=0.5,
    )
    # One head for all steps: the mean is of four or of a number that divides exactly only then.
    x = integers(steps, 3, 2, 6, 7)
    fast = sj_prune.deploy(net, x)
    y = output_of(net, x)
    assert fast(x).shape == y.shape == (3, 3)
    torch.testing.assert_close(fast(x), y, rtol=1e-6, atol=0)
    assert max(rates_of(net, x)) > 0


POOLS = {
    "max": layer.MaxPool2d(2),
    "max 3": layer.MaxPool2d(3, stride=2, padding=1),
    "average": layer.AvgPool2d(2),
    "average padded": layer.AvgPool2d(4, stride=2, padding=1),
    "average ceil": layer.AvgPool2d(2, ceil_mode=True),
    "adaptive": layer.AdaptiveAvgPool2d(4),
    "adaptive uneven": layer.AdaptiveAvgPool2d((4, 2)),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(("steps", "kernel"), [(3, "events"), (10, "events"), (10, "bits")])
def test_every_pooling(name, steps, kernel):
    net = make_twin(
        nn.Sequential(
            spiking(4),
            POOLS[name],
            layer.Conv2d(4, 5, 3, padding=1, bias=False),
            neuron.LIFNode(tau=2.0),
        )
    )
    x = integers(steps, 2, 2, 8, 8)
    assert min(rates_of(net, x)) > 0
    with only(kernel):
        assert_equal(net, x)


@pytest.mark.parametrize("channels", [1, 17, 40, 300])
@pytest.mark.parametrize("threads", [1, 3])
def test_events_of_any_number_of_channels(channels, threads):
    net = nn.Sequential(
        spiking(70), layer.Conv2d(70, channels, 3, padding=1), neuron.LIFNode(v_reset=None)
    )
    make_twin(net)
    with only("events"):
        for samples, size in ((1, 3), (2, 11)):
            assert_equal(net, integers(4, samples, 2, size, size), threads=threads)


def test_maps_of_one_dimension():
    net = make_twin(
        nn.Sequential(
            layer.Conv1d(2, 4, 3, padding=1),
            layer.BatchNorm1d(4),
            neuron.IFNode(),
            layer.MaxPool1d(2),
            layer.Conv1d(4, 6, 3, stride=2, dilation=2, groups=2),
            neuron.IFNode(),
        )
    )
    x = integers(4, 3, 2, 17)
    assert_equal(net, x)


class OverTokens(nn.Module):
    """A head as transformers have it: the map is a list of tokens, of which the mean is taken."""

    def __init__(self):
        super().__init__()
        self.body, self.head = spiking(4), layer.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x).flatten(3).mean(-1)).mean(0)


def test_mean_over_tokens():
    assert_equal(make_twin(OverTokens()), integers(4, 2, 2, 4, 4))


def test_containers_and_dropout_and_voting():
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)),
        neuron.IFNode(),
        layer.Dropout(0.5),
        layer.Flatten(),
        layer.Linear(4 * 6 * 6, 12),
        neuron.IFNode(),
        layer.VotingLayer(4),
    )
    make_twin(net)
    for module in net[0]:
        module.step_mode = "s"
    x = integers(4, 3, 2, 6, 6)
    fast, y = assert_equal(net, x)
    assert y.shape == (4, 3, 3)


@pytest.mark.parametrize("keep", [0.02, 1.0])
def test_other_shapes_than_at_first(keep):
    net = make_twin(
        nn.Sequential(spiking(8), layer.Conv2d(8, 8, 3, padding=1), neuron.IFNode()), keep
    )
    fast = sj_prune.deploy(net, integers(4, 1, 2, 9, 9), threads=2)
    for steps, samples in ((1, 1), (4, 5), (32, 3), (9, 40)):
        x = integers(steps, samples, 2, 9, 9, seed=steps)
        assert torch.equal(fast(x), output_of(net, x))
