"""SynOps of spikes behind averages and sums, energy with memory access, and fans."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import cost
from sj_prune.export.folded import folded, layers
from sj_prune.export.synapses import fans
from tests.export.networks import Residual, pruned

T, N = 3, 2
CONV = {"stride": 2, "padding": 1}


def spikes(*shape, rate=0.4):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(2)) < rate).float()


class Net(nn.Module):
    """What the neurons of a stem fire goes through `between`, then through a pruned convolution."""

    def __init__(self, between, channels=4):
        super().__init__()
        self.stem = nn.Sequential(layer.Conv2d(2, 4, 3, padding=1, step_mode="m"))
        self.node = neuron.IFNode(step_mode="m", v_threshold=0.3)
        self.between = between
        self.conv = nn.Conv2d(channels, 5, 3, **CONV)
        with torch.no_grad():
            self.conv.weight.mul_(torch.rand_like(self.conv.weight) < 0.5)

    def forward(self, x):
        Net.fired = self.node(self.stem(x))
        return self.conv(self.between(Net.fired.flatten(0, 1)))


BETWEEN = {  # and how many of the spikes come to each place, written once more
    "pool": (nn.AvgPool2d(2), lambda s: 4 * F.avg_pool2d(s, 2)),
    "overlap": (
        nn.AvgPool2d(3, 2, 1),
        lambda s: F.conv2d(s, torch.eye(4)[:, :, None, None].expand(4, 4, 3, 3), None, 2, 1),
    ),  # fmt: skip
    "twice": (
        nn.Sequential(nn.AvgPool2d(2), nn.Dropout(), nn.AvgPool2d(2)),
        lambda s: 16 * F.avg_pool2d(s, 4),
    ),  # fmt: skip
    "adaptive": (nn.AdaptiveAvgPool2d((4, 2)), lambda s: 8 * F.avg_pool2d(s, (2, 4))),
    "mean": (lambda s: s.mean((2, 3), keepdim=True), lambda s: s.sum((2, 3), keepdim=True)),
    "sum": (lambda s: s + s, lambda s: 2 * s),
    "of sums": (lambda s: F.avg_pool2d(s.clone().add_(s) / 2, 2), lambda s: 8 * F.avg_pool2d(s, 2)),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), lambda s: 4 * F.avg_pool2d(s, 2)),
    "nothing": (nn.Identity(), lambda s: s),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_every_spike_before_an_average_meets_the_weights(case):
    between, counts = BETWEEN[case]
    torch.manual_seed(0)
    net = Net(between)
    found = cost.measure(net, torch.rand(T, N, 2, 8, 8))["conv"]
    n = counts(Net.fired.detach().flatten(0, 1)).double()
    assert n.sum() > 0
    for weight, events in (
        ((net.conv.weight != 0).double(), found.events),
        (torch.ones_like(net.conv.weight).double(), found.events_dense),
    ):
        assert events == pytest.approx(float(F.conv2d(n, weight, **CONV).sum()) / N, rel=1e-12)
    assert found.direct_macs == 0
    if found.binary_input:
        assert found.events == found.synops
    else:
        assert found.synops == 0
        assert found.macs > 0


@pytest.mark.parametrize(
    "between",
    [
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),  # a spike at the border is another number
        nn.AdaptiveAvgPool2d(3),
        lambda s: F.avg_pool2d(s, 2).mul_(torch.rand(1, 4, 1, 1)),
        lambda s: F.avg_pool2d(s, 2) + torch.rand(4, 1, 1),
        lambda s: s + F.avg_pool2d(s, 3, 1, 1),
        lambda s: torch.sigmoid(F.avg_pool2d(s, 2)),
    ],
)
def test_what_is_not_made_of_equal_spikes_is_analog(between):
    torch.manual_seed(0)
    found = cost.measure(Net(between), torch.rand(T, N, 2, 8, 8))["conv"]
    assert (found.events, found.events_dense) == (0, 0)
    assert found.direct_macs == found.macs > 0
    assert found.direct_macs_dense == found.macs_dense


def test_images_are_no_events_and_frames_of_events_are():
    net = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 3, 3))
    image = cost.measure(net, torch.rand(N, 2, 8, 8), samples=N)["1"]
    assert image.events == 0
    assert image.direct_macs == image.macs > 0
    x = spikes(N, 2, 8, 8)
    frames = cost.measure(net, x, samples=N)["1"]
    assert frames.events * N == 3 * F.conv2d(4 * F.avg_pool2d(x, 2), torch.ones(1, 2, 3, 3)).sum()


def test_single_steps_joined_and_split():
    torch.manual_seed(0)
    node, pool, linear = neuron.IFNode(), nn.AvgPool1d(2), nn.Linear(6, 4)

    class Loops(nn.Module):
        def __init__(self):
            super().__init__()
            self.node, self.linear = node, linear

        def forward(self, x):
            s = torch.stack([self.node(step) for step in x])
            Loops.count = int(s.sum())
            halves = torch.cat(pool(s).chunk(2, 0), 0)
            return self.linear(halves)

    net = Loops()
    found = cost.measure(net, 2 * torch.rand(4, N, 12))["linear"]
    assert net.count > 0
    assert found.events * N == 4 * net.count


def test_energy_with_memory_access():
    torch.manual_seed(0)
    net = Net(nn.AvgPool2d(2))
    found = cost.measure(net, torch.rand(T, N, 2, 8, 8))
    neurons, fired = 4 * 8 * 8, float(Net.fired.sum())
    assert found.updates == T * neurons
    assert found.spikes == fired / N > 0
    operations = found["stem.0"].macs + found["conv"].events  # the image is no spike
    expected = 33.6 * operations + 72.8 * T * neurons + 69.3 * fired / N
    assert found.energy(cost.LOIHI) == pytest.approx(expected, rel=1e-12)
    dense = found["stem.0"].macs_dense + found["conv"].events_dense
    more = 33.6 * (dense - operations)
    assert found.energy(cost.LOIHI, "_dense") == pytest.approx(expected + more, rel=1e-12)


CONVS = [
    lambda: layer.Conv2d(4, 6, 3, groups=2, padding=2, stride=(2, 1)),
    lambda: layer.Conv2d(4, 4, 3, groups=4, dilation=2),
    lambda: layer.Conv1d(4, 6, 3, stride=2, padding=1),
    lambda: layer.Linear(9, 5),
]


@pytest.mark.parametrize("make", CONVS)
def test_fans_are_those_of_the_connection_matrix(make):
    torch.manual_seed(0)
    net = nn.Sequential(make(), neuron.IFNode())
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        net[0].weight.mul_(torch.rand_like(net[0].weight) < 0.5)
    tail = {4: (4, 7, 6), 3: (4, 9), 2: (9,)}[net[0].weight.ndim]
    x = torch.rand(T, N, *tail)
    found = cost.measure(net, x)["0"]
    made = folded(net, x)
    for ours, theirs in zip(
        (found.fan_in, found.fan_out), fans(made, next(layers(made))), strict=True
    ):
        assert ours == pytest.approx((theirs.mean(), theirs.max()))


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1, "output_padding": 1}])
@pytest.mark.parametrize("groups", [1, 2])
def test_fans_of_a_transposed_convolution(settings, groups):
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False, **settings)
    with torch.no_grad():
        conv.weight.copy_((torch.rand_like(conv.weight) < 0.5).float())
    found = cost.measure(conv, torch.rand(1, 4, 5, 4), samples=1)[""]
    columns = conv(torch.eye(80).view(80, 4, 5, 4)).detach().flatten(1).T.numpy()
    assert found.fan_in == pytest.approx((columns.sum(1).mean(), columns.sum(1).max()))
    assert found.fan_out == pytest.approx((columns.sum(0).mean(), columns.sum(0).max()))


def test_report_and_comparison_say_all_of_it():
    torch.manual_seed(0)
    x = torch.rand(T, N, 2, 8, 8)
    net = pruned(Residual(node=neuron.IFNode), x, sparsity=0.0)
    model = sj_prune.PruningWrapper(net, sj_prune.methods.Magnitude(interval=1, end=1))
    model.update_masks(sparsity=0.7)
    report, found = model.report(x), cost.measure(model.net, x)
    rows = {row.name: row for row in report.rows}
    assert rows["block.0"].synops == 0  # behind the pooling
    assert rows["block.0"].events == found["block.0"].events > 0
    assert 0 < rows["block.0"].events < rows["block.0"].events_dense
    mask = model.masks["head.2"]
    assert rows["head.2"].fan_in == pytest.approx(float(mask.sum(1).double().mean()))
    assert rows["head.2"].fan_in_max == int(mask.sum(1).max())
    assert rows["head.2"].fan_out_max == int(mask.sum(0).max())
    totals = report.totals
    assert totals["events"] == sum(row.events for row in report.rows)
    assert totals["energy_loihi"] == found.energy(cost.LOIHI)
    assert totals["energy_loihi_dense"] > totals["energy_loihi"]
    assert totals["memory"] == 4 * sum(row.total for row in report.rows)
    assert totals["memory_csr"] == sum(6 * row.kept + 4 * (row.shape[0] + 1) for row in report.rows)
    comparison = sj_prune.compare(net, model.finalize(), x, latency=False)
    assert comparison.totals["events"] == (totals["events"],) * 2
    assert comparison.totals["energy_loihi"][1] == totals["energy_loihi"]
    for text in (str(report), report.to_markdown(), str(comparison)):
        assert "Loihi" in text
        assert "events" in text
    assert np.isfinite(list(totals.values())).all()
