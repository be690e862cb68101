"""Which dimension counts channels is followed through the graph, whatever the sizes are."""

import pytest
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

import sj_prune
from sj_prune import methods
from sj_prune.network.facts import scoring_neurons
from sj_prune.network.topology import trace
from sj_prune.neurons.convert import sensor_of


class Own(neuron.LIFNode):
    """Observed: its reset is its own."""

    def neuronal_reset(self, spike):
        self.v = self.v - 0.5 * spike


def conv_maps(net, x):  # [T, N, C, L]
    return net.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def conv_channels_second(net, x):  # [T, C, N, L]
    return conv_maps(net, x).transpose(1, 2)


def conv_features_last(net, x):  # [T, N, L, C]
    return conv_maps(net, x).transpose(2, 3)


def pooled_channels_second(net, x):  # [T, C, N]
    return conv_maps(net, x).mean(3).transpose(1, 2)


def linear_features_last(net, x):  # [T, N, L, C]
    return net.layer(x.transpose(2, 3))


def linear_turned(net, x):  # [T, N, C, L]
    return net.layer(x.transpose(2, 3)).transpose(2, 3)


def linear_three(net, x):  # [T, N, C]
    return net.layer(x.mean(3))


# What the neurons get -> where its channels are, in a sequence.
LAYOUTS = {
    conv_maps: 2,
    conv_channels_second: 1,
    conv_features_last: 3,
    pooled_channels_second: 1,
    linear_features_last: 3,
    linear_turned: 2,
    linear_three: 2,
}
T, N, L, C = 3, 4, 5, 6
SIZES = {
    "different": (T, N, L, C),
    "N = C": (T, C, L, C),
    "T = C": (C, N, L, C),
    "L = C": (T, N, C, C),
    "all the same": (4, 4, 4, 4),
}


class Net(nn.Module):
    def __init__(self, layout, kind, channels, step):
        super().__init__()
        self.layout, self.step = layout, step
        linear = "linear" in layout.__name__
        self.layer = nn.Linear(2, channels) if linear else nn.Conv1d(2, channels, 1)
        mode = "s" if step else "m"
        self.node = kind(step_mode=mode, surrogate_function=surrogate.ATan(), v_threshold=0.2)

    def forward(self, x):
        y = self.layout(self, x)
        if self.step == "loop":
            return torch.stack([self.node(step) for step in y])
        return self.node(y.flatten(0, 1)) if self.step == "flat" else self.node(y)


def build(layout, kind, sizes, step=""):
    torch.manual_seed(0)
    t, n, length, channels = sizes
    net = Net(layout, kind, channels, step)
    return net, torch.randn(t, n, 2, length) * 2


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("step", ["", "loop"])
@pytest.mark.parametrize("kind", [neuron.LIFNode, Own])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_statistics_are_of_channels(layout, kind, step, sizes):
    net, x = build(layout, kind, SIZES[sizes], step)
    dim = LAYOUTS[layout]
    sj_prune.neurons.convert.sense(net)
    found = trace(net, {"layer": net.layer}, (x,))
    assert scoring_neurons(found, None, "layer") == {"node": None}
    assert (found.facts["node"].channel_dim, found.facts["node"].channels) == (dim, SIZES[sizes][3])
    spikes = net(x)
    rates = spikes.movedim(dim, 0).flatten(1).mean(1)
    assert rates.unique().numel() > 1
    got = sensor_of(net.node).activity.mean("firing_rate")
    torch.testing.assert_close(got, rates.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", [neuron.LIFNode, Own])
def test_time_and_samples_flattened_into_one_step(kind, sizes):
    """``[T N, C, L]`` given to a neuron in single-step mode: samples, as far as it can tell."""
    net, x = build(conv_maps, kind, SIZES[sizes], "flat")
    sj_prune.neurons.convert.sense(net)
    found = trace(net, {"layer": net.layer}, (x,))
    assert scoring_neurons(found, None, "layer") == {"node": None}
    rates = net(x).transpose(0, 1).flatten(1).mean(1)
    got = sensor_of(net.node).activity.mean("firing_rate")
    torch.testing.assert_close(got, rates.double(), atol=1e-6, rtol=0)


def test_what_stands_along_samples_is_no_channel_of_the_layer():
    """As wide as the layer, but mixed: not its own channels one by one."""

    def flattened(net, x):  # [T, N, C L]
        return conv_maps(net, x).flatten(2)

    net, x = build(flattened, neuron.LIFNode, (3, 4, 1, 6))
    sj_prune.to_recording(net)
    found = trace(net, {"layer": net.layer}, (x,))
    assert scoring_neurons(found, None, "layer") == {"node": None}  # one place: they are
    net, x = build(flattened, neuron.LIFNode, (3, 4, 2, 6))
    sj_prune.to_recording(net)
    found = trace(net, {"layer": net.layer}, (x,))
    assert scoring_neurons(found, None, "layer") == {}
    assert found.spread["layer"] == ("node",)


def test_labels_that_are_lost_leave_the_usual_place():
    """An operation that is not understood in between: as before, by the size."""

    def scaled(net, x):
        return conv_maps(net, x) * torch.linspace(0.5, 1.5, C).view(-1, 1)

    net, x = build(scaled, neuron.LIFNode, SIZES["different"])
    sj_prune.to_recording(net)
    found = trace(net, {"layer": net.layer}, (x,))
    assert found.facts["node"].channel_dim == 2
    assert found.neurons["layer"] == ("node",)


@pytest.mark.parametrize("kind", [neuron.LIFNode, Own])
def test_criticality_masks_of_a_loop_equal_those_of_a_sequence(kind):
    """Three updates, channels second and as many as samples."""
    masks = []
    for step in ("", "loop"):
        net, x = build(conv_channels_second, kind, (3, 6, 5, 6), step)
        method = methods.Criticality(sparsity=0.5, regrow=0.4, interval=1, end=3)
        model = sj_prune.PruningWrapper(net, method)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.attach(optimizer)
        for _ in range(3):
            functional.reset_net(model)
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()
        masks.append(model.masks["layer"])
        assert len(model.session.run.history) == 3
    assert torch.equal(*masks)
    assert not masks[0].all()
