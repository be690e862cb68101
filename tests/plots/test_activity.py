"""Plots of neurons and filters: colors and marks are the values that the network has."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import methods, plots

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


def network():
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        neuron.LIFNode(),
        layer.Flatten(),
        layer.Linear(4 * 5 * 5, 3),
        neuron.IFNode(),
    )
    functional.set_step_mode(net, "m")
    return net


def recording():
    return (3 * torch.rand(6, 2, 2, 5, 5)).round()


def spikes(net, x_seq):
    """Return what the neurons give, found by running layer by layer."""
    functional.reset_net(net.eval())
    first = net[1](net[0](x_seq))
    return first, net[4](net[3](net[2](first)))


# ---- map -----------------------------------------------------------------------------------------


def strips(ax):
    return [image.get_array()[0] for image in ax.get_images()]


def test_map_orders_by_the_first_network_and_leaves_silence_out():
    dense = {"a": torch.tensor([0.1, 0.3, 0.2]), "b": torch.tensor([0.5])}
    pruned = {"a": torch.tensor([0.0, 0.4, 0.6]), "b": torch.tensor([0.7])}
    fig, ax = plots.channel_map({"dense": dense, "pruned": pruned})
    found = strips(ax)
    expected = [[0.3, 0.2, 0.1], [0.4, 0.6], [0.5], [0.7]]
    assert [s.compressed().tolist() for s in found] == [pytest.approx(e) for e in expected]
    assert found[1].mask.tolist() == [False, False, True]
    assert {image.get_clim() for image in ax.get_images()} == {(0.0, float(pruned["b"]))}
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a (3)", "b (1)"]
    assert ax.figure is fig


def test_map_of_a_wrapper_shows_its_firing_rates():
    net, x_seq = network(), recording()
    expected = [found.float() for found in spikes(net, x_seq)]
    expected = [e.mean((0, 1, 3, 4) if e.ndim == 5 else (0, 1)) for e in expected]
    model = sj_prune.PruningWrapper(net, methods.Magnitude(sparsity=0.5))
    _, ax = plots.channel_map({"": model}, x_seq)
    for strip, rates in zip(strips(ax), expected, strict=True):
        want = [r for r in rates.sort(descending=True).values.tolist() if r > 0]
        assert strip.compressed().tolist() == pytest.approx(want)


def test_map_without_values_or_of_other_widths():
    with pytest.raises(ValueError, match="values of firing_rate to draw but got none"):
        plots.channel_map({})
    with pytest.raises(ValueError, match="first network but 'small' has {'a': 2}"):
        plots.channel_map({"dense": {"a": torch.ones(3)}, "small": {"a": torch.ones(2)}})


# ---- raster --------------------------------------------------------------------------------------


def marks(ax):
    """Return a set of (time step, row) for each collection of marks."""
    return [
        {(round(float(s[:, 0].mean())), int(s[0, 1])) for s in c.get_segments()}
        for c in ax.collections
    ]


def test_raster_marks_every_spike_of_the_sample():
    net, x_seq = network(), recording()
    trains = [x_seq, *spikes(net, x_seq)]
    before = [p.clone() for p in net.parameters()]
    fig, ax = plots.spike_raster(net, x_seq, sample=1, most=1000)
    for i, (train, found) in enumerate(zip(trains, marks(ax), strict=True)):
        on = (train[:, 1].flatten(1) > 0).nonzero()
        assert found == {(int(t), 1000 * i + int(n)) for t, n in on}
    labels = [text.get_text().splitlines() for text in ax.get_yticklabels()]
    assert [name for name, *_ in labels] == ["input", "1", "4"]
    rates = [float((train[:, 1] > 0).float().mean()) for train in trains]
    assert [rate for *_, rate in labels] == [f"rate {rate:.3f}" for rate in rates]
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not net[1]._forward_hooks
    assert ax.figure is fig


def test_raster_shows_the_same_neurons_of_every_network():
    x_seq = recording()
    counts = [plots.spike_raster(network(), x_seq, most=4)[1] for _ in range(2)]
    assert marks(counts[0])[0] == marks(counts[1])[0]
    assert {row for _, row in marks(counts[0])[0]} <= set(range(4))


def medians(ax):
    return [float(line.get_xdata()[0]) for line in ax.lines]


def test_plots_of_a_wrapper_are_of_the_masked_network():
    net, x_seq = network(), recording()
    dense = {name: value.clone() for name, value in net.state_dict().items()}
    model = sj_prune.PruningWrapper(net, methods.Magnitude(sparsity=0.9, interval=1, end=1))
    model.update_masks(0.9)

    def drawn_after_writing(draw):
        for name, parameter in net.named_parameters():
            parameter.data.copy_(dense[name])  # and no look since
        return draw()[1]

    drawn = drawn_after_writing(lambda: plots.spike_raster(model, x_seq, most=1000))
    map_drawn = drawn_after_writing(lambda: plots.channel_map({"": model}, x_seq))
    histogram = drawn_after_writing(lambda: plots.criticality_histogram(model, x_seq))
    masked = network()
    masked.load_state_dict({n: v for n, v in net.state_dict().items() if n in dense})
    assert int((masked[0].weight == 0).sum()) > 0
    _, expected = plots.spike_raster(masked, x_seq, most=1000)
    assert marks(drawn) == marks(expected)
    rates = [found.float() for found in spikes(masked, x_seq)]
    first = rates[0].mean((0, 1, 3, 4)).sort(descending=True).values
    assert strips(map_drawn)[0].filled(0).tolist() == pytest.approx(first.tolist())
    assert medians(histogram) == medians(plots.criticality_histogram(model, x_seq)[1])
    masked.load_state_dict(dense)
    unpruned = sj_prune.PruningWrapper(masked, methods.Magnitude(sparsity=0.5))
    assert medians(histogram) != medians(plots.criticality_histogram(unpruned, x_seq)[1])


def test_raster_needs_sequences():
    with pytest.raises(ValueError, match="multi-step mode"):
        plots.spike_raster(nn.Linear(3, 3), torch.rand(4, 2, 3))


# ---- filters -------------------------------------------------------------------------------------


def test_filters_lie_side_by_side_and_zeros_are_gray():
    weight = torch.tensor([[[[1.0, -1.0]], [[0.5, 0.0]]], [[[0.0, 0.0]], [[0.2, 0.3]]]])
    _, ax = plots.filters({"a": weight}, columns=2)
    (image,) = ax.get_images()
    row = image.get_array()[0]
    gray = torch.tensor([0xBB / 255] * 3).tolist()
    shown = [pytest.approx(gray) == list(cell[:3]) for cell in row]
    # two filters of two input channels of two weights, a white line behind each
    assert shown == [False, False, False, True, False, True, True, False, False, False]
    assert [list(row[i][:3]) for i in (4, 9)] == [[1.0, 1.0, 1.0]] * 2
    assert row[0][2] > row[0][0]  # purple above 0, orange below
    assert row[1][2] < row[1][0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a: 5 weights"]


def test_filters_are_of_convolutions():
    with pytest.raises(ValueError, match="'a' has \\(3, 3\\)"):
        plots.filters({"a": torch.ones(3, 3)})
    with pytest.raises(ValueError, match="at least one weight"):
        plots.filters({})


# ---- cost ----------------------------------------------------------------------------------------


def test_cost_shows_means_and_ranges():
    points = {"dense": {"": [(1.0, 99.0), (3.0, 98.0)]}, "pruned": {"95%": [(0.1, 97.0)]}}
    fig, ax = plots.accuracy_over_cost(points, "SynOps")
    means = [line.get_xydata().tolist() for line in ax.get_lines() if line.get_marker() in "os"]
    assert means == [[[2.0, 98.5]], [[0.1, 97.0]]]
    ends = [c.get_segments()[0].tolist() for c in ax.collections][:2]
    assert ends == [[[1.0, 98.5], [3.0, 98.5]], [[2.0, 98.0], [2.0, 99.0]]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("SynOps", "accuracy (%)")
    assert "95%" in [text.get_text() for text in ax.texts]
    assert ax.figure is fig
    with pytest.raises(ValueError, match="costs above 0"):
        plots.accuracy_over_cost({"a": {"": [(0.0, 1.0)]}}, "SynOps")
