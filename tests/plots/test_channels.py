"""Plots of channels: what stands on the axes is what the masks, scores and records say."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F

import sj_prune
from sj_prune import methods, plots
from sj_prune.run.history import UpdateRecord

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
pyplot = pytest.importorskip("matplotlib.pyplot")


def images(seed=0):
    return torch.rand(3, 4, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def network():
    net = nn.Sequential(
        layer.Conv2d(2, 8, 3, padding=1),
        layer.BatchNorm2d(8),
        neuron.IFNode(),
        layer.Conv2d(8, 12, 3, padding=1),
        layer.BatchNorm2d(12),
        neuron.IFNode(),
        layer.AdaptiveAvgPool2d(1),
        layer.Flatten(),
        layer.Linear(12, 5),
    )
    functional.set_step_mode(net, "m")
    for norm in (net[1], net[4]):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, 0.2, 1.0)
    return net


def wrapped(**settings):
    settings = {"sparsity": 0.5, "regrow": 0.2, "interval": 1, "end": 4, "l1": 0.0} | settings
    model = sj_prune.PruningWrapper(network(), methods.SCA(**settings))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.attach(optimizer)
    return model, optimizer


def step(model, optimizer, x):
    functional.reset_net(model)
    F.cross_entropy(model(x).mean(0), torch.arange(4)).backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(steps=4, **settings):
    model, optimizer = wrapped(**settings)
    for seed in range(steps):
        step(model, optimizer, images(seed))
    return model


def activity(net, x, convolutions):
    """Return mean(|V| + S) of each channel, from the host's own potentials and spikes."""
    nodes, found = [net[i + 2] for i in convolutions], []
    for node in nodes:
        node.store_v_seq = True
        node.register_forward_hook(lambda node, _, out: found.append(node.v_seq.abs() + out))
    net.train()(x)
    return [value.mean((0, 1, 3, 4)) for value in found]


def points(ax):
    """Return label -> [(score, height)] of the scattered channels, without the numbers in it."""
    return {
        c.get_label().split()[0]: [tuple(map(float, p)) for p in c.get_offsets()]
        for c in ax.collections
    }


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def assert_labeled(fig, ax):
    assert ax.figure is fig
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    fig.canvas.draw()


# ---- importance ----------------------------------------------------------------------------------


def test_importance_tells_kept_from_pruned_and_sorts():
    scores = {"a": torch.tensor([0.3, 0.1, 0.2]), "b": torch.tensor([5.0])}
    kept = {"a": torch.tensor([True, False, True]), "b": torch.tensor([True])}
    fig, ax = plots.channel_importance(scores, kept)
    found = points(ax)
    assert sorted(x for x, _ in found["kept"]) == pytest.approx([0.2, 0.3, 5.0])
    assert [x for x, _ in found["pruned"]] == pytest.approx([0.1])
    heights = {round(x, 3): y for x, y in [*found["kept"], *found["pruned"]]}
    assert -0.5 < heights[0.1] < heights[0.2] < heights[0.3] < 0.5  # the first row
    assert heights[5.0] == pytest.approx(-1.0)
    assert ticks(ax.yaxis) == ["a (3)", "b (1)"]
    assert sorted(labels(ax)) == ["kept (3)", "pruned (1)"]
    assert_labeled(fig, ax)


def test_importance_without_masks_and_logarithmic():
    _, ax = plots.channel_importance({"a": torch.tensor([1e-4, 1.0])}, log=True)
    assert set(points(ax)) == {"kept"}
    assert ax.get_xscale() == "log"


def test_importance_of_a_wrapper_is_the_activity_of_its_neurons():
    model, optimizer = wrapped(regrow=0.0, end=2)
    dense = sj_prune.to_stock(copy.deepcopy(model.net))
    expected = activity(dense, images(), (0, 3))
    step(model, optimizer, images())
    best = torch.cat(expected).sort(descending=True).values[:10]
    fig, ax = plots.channel_importance(model)
    found = points(ax)
    assert sorted((x for x, _ in found["kept"]), reverse=True) == pytest.approx(best.tolist())
    for row, layer_scores in enumerate(expected):
        here = sorted(x for p in found.values() for x, y in p if abs(y + row) < 0.5)
        assert here == pytest.approx(layer_scores.sort().values.tolist())
    assert ticks(ax.yaxis) == ["1 (8)", "4 (12)"]
    assert_labeled(fig, ax)
    # One update later: who sleeps is shown with the score it had when awake.
    step(model, optimizer, images(1))
    later = points(plots.channel_importance(model)[1])
    assert sorted(x for x, _ in later["pruned"]) == pytest.approx(
        sorted(x for x, _ in found["pruned"])
    )
    assert sorted(x for x, _ in later["kept"]) != pytest.approx(sorted(x for x, _ in found["kept"]))


def test_importance_without_scores_or_with_other_masks():
    model, _ = wrapped()
    for nothing in (model, {}, {"a": torch.empty(0)}):
        with pytest.raises(ValueError, match="after the first mask update"):
            plots.channel_importance(nothing)
    with pytest.raises(ValueError, match="3 entries in the mask of 'a' but got 2"):
        plots.channel_importance({"a": torch.ones(3)}, {"a": torch.ones(2)})
    with pytest.raises(ValueError, match="3 entries in the mask of 'a' but got none"):
        plots.channel_importance({"a": torch.ones(3)}, {})


# ---- survivors -----------------------------------------------------------------------------------


def survivors(ax):
    """Return [(dense, kept)] of every bar, network by network."""
    heights = [[bar.get_height() for bar in container] for container in ax.containers]
    pairs = zip(heights[::2], heights[1::2], strict=True)
    return [list(zip(dense, kept, strict=True)) for dense, kept in pairs]


def test_survivors_of_wrapper_report_and_comparison():
    model, x = trained(), images()
    report = model.report(x)
    found = [plots.survivors_per_layer(source) for source in (model, report)]
    net = model.finalize()
    alive = [int((norm.weight != 0).sum()) for norm in (net[1], net[4])]
    assert sum(alive) == 10
    for fig, ax in found:
        assert survivors(ax) == [[(8, alive[0]), (12, alive[1])]]
        assert ticks(ax.xaxis) == ["0", "3"]
        assert labels(ax) == ["dense", "kept"]
        assert_labeled(fig, ax)
    functional.reset_net(net)
    comparison = sj_prune.compare(net, sj_prune.compact(net, x), x, latency=False)
    _, ax = plots.survivors_per_layer(comparison)
    assert survivors(ax) == [[(8, alive[0]), (12, alive[1]), (5, 5)]]  # the classifier too


def test_survivors_of_transposed_convolutions_are_their_output_channels():
    net = nn.Sequential(
        layer.ConvTranspose2d(2, 6, 2),
        layer.ConvTranspose2d(6, 4, 3, groups=2),
        layer.Conv2d(4, 8, 1, groups=2),
    )
    functional.set_step_mode(net, "m")
    comparison = sj_prune.compare(net, copy.deepcopy(net), images(), latency=False)
    _, ax = plots.survivors_per_layer(comparison)
    assert survivors(ax) == [[(6, 6), (4, 4), (8, 8)]]


def test_survivors_of_several_networks():
    some, fewer = trained(), trained(sparsity=0.7)
    fig, ax = plots.survivors_per_layer({"half": some, "less": fewer})
    assert labels(ax) == ["dense", "half", "less"]
    kept = [[model.masks.kept()[norm] for norm in ("1", "4")] for model in (some, fewer)]
    assert [[k for _, k in network] for network in survivors(ax)] == kept
    assert sum(kept[0]) == 10
    assert sum(kept[1]) == 6
    assert_labeled(fig, ax)


def test_survivors_of_nothing():
    model, _ = wrapped()  # no forward yet
    with pytest.raises(ValueError, match="after the first forward"):
        plots.survivors_per_layer(model)
    single = sj_prune.PruningWrapper(network(), methods.Magnitude(interval=1, end=1))
    with pytest.raises(ValueError, match="see density_per_layer"):
        plots.survivors_per_layer({"weights": single})
    with pytest.raises(TypeError, match="but got int"):
        plots.survivors_per_layer({"a": 3})


# ---- exchange ------------------------------------------------------------------------------------


def record(step, pruned, units):
    kept = {name: units[name] - len(p) for name, p in pruned.items()}
    return UpdateRecord(step, 0.5, 0.5, kept, {}, {}, pruned)


UNITS = {"a": 4, "b": 2}
HISTORY = [
    record(10, {"a": [1, 2], "b": [0]}, UNITS),
    record(20, {"a": [2, 3], "b": [0]}, UNITS),  # 3 goes, 1 comes back
    record(30, {"a": [2], "b": [0, 1]}, UNITS),  # 3 comes back, the other group loses its last
]


def exchange(ax):
    """Return what came back and what was pruned at each update."""
    back, gone = ([bar.get_height() for bar in container] for container in ax.containers)
    return back, [-n for n in gone]


def test_exchange_of_a_history():
    fig, ax = plots.channel_exchange(HISTORY)
    assert exchange(ax) == ([0, 1, 1], [3, 1, 1])
    assert labels(ax) == ["came back", "newly pruned"]
    assert_labeled(fig, ax)
    assert not any(text.startswith(("-", "\N{MINUS SIGN}")) for text in ticks(ax.yaxis))


def test_exchange_of_a_wrapper():
    model, optimizer = wrapped(end=6)
    alive = [torch.ones(20, dtype=torch.bool)]
    for seed in range(6):
        step(model, optimizer, images(seed))
        alive.append(torch.cat([model.masks["1"], model.masks["4"]]))
    changes = list(zip(alive, alive[1:], strict=False))
    back = [int((after & ~before).sum()) for before, after in changes]
    gone = [int((before & ~after).sum()) for before, after in changes]
    assert sum(back) > 0
    assert exchange(plots.channel_exchange(model)[1]) == (back, gone)


def test_a_first_update_that_dwarfs_the_others_is_cut_off():
    units = {"a": 100}
    history = [
        record(1, {"a": list(range(50))}, units),
        record(2, {"a": list(range(1, 51))}, units),
    ]
    _, ax = plots.channel_exchange(history)
    assert exchange(ax) == ([0, 1], [50, 1])
    assert -5 < ax.get_ylim()[0] < -1
    assert [text.get_text() for text in ax.texts] == ["50"]
    _, ax = plots.channel_exchange(history[:1])  # alone, it is shown whole
    assert ax.get_ylim()[0] < -50
    assert not ax.texts


KEPT, PRUNED, GONE, BACK = range(4)


@pytest.mark.parametrize("sort", [False, True])
def test_raster(sort):
    fig, ax = plots.channel_raster(HISTORY, sort=sort)
    rows = {
        "a0": [KEPT, KEPT, KEPT],
        "a1": [GONE, BACK, KEPT],
        "a2": [GONE, PRUNED, PRUNED],
        "a3": [KEPT, GONE, BACK],
        "b0": [GONE, PRUNED, PRUNED],
        "b1": [KEPT, KEPT, GONE],
    }
    order = ["a0", "a1", "a3", "a2", "b1", "b0"] if sort else sorted(rows)
    (image,) = ax.images
    assert image.get_array().tolist() == [rows[name] for name in order]
    left, right, bottom, top = image.get_extent()
    assert (left, right, bottom, top) == (0.5, 3.5, 6, 0)
    assert ticks(ax.yaxis) == ["a (4)", "b (2)"]
    assert list(ax.get_yticks()) == [2, 5]
    # The legend shows the colors of the picture.
    patches = [patch.get_facecolor() for patch in ax.get_legend().get_patches()]
    assert [image.cmap(image.norm(state)) for state in range(4)] == patches
    assert labels(ax) == ["kept", "pruned", "newly pruned", "came back"]
    assert_labeled(fig, ax)


def test_raster_of_more_channels_than_pixels():
    units = {"a": 3000}
    history = [record(i, {"a": list(range(i, 1500))}, units) for i in range(3)]
    fig, ax = plots.channel_raster(history)
    assert ax.images[0].get_array().shape == (3000, 3)
    assert_labeled(fig, ax)


@pytest.mark.parametrize("plot", [plots.channel_exchange, plots.channel_raster])
def test_no_exchange_of_nothing_or_of_single_weights(plot):
    with pytest.raises(ValueError, match="at least one mask update"):
        plot([])
    with pytest.raises(ValueError, match="of single weights"):
        plot([UpdateRecord(1, 0.5, 0.5, {"a": 5}, {}, {})])


def test_all_draw_on_given_axes():
    fig, axes = pyplot.subplots(2, 2, figsize=(12, 8), layout="constrained")
    model = trained()
    found = [
        plots.channel_importance(model, ax=axes[0, 0]),
        plots.survivors_per_layer(model, axes[0, 1]),
        plots.channel_exchange(model, axes[1, 0]),
        plots.channel_raster(model.history, axes[1, 1]),
    ]
    assert [ax for _, ax in found] == list(axes.flat)
    assert all(figure is fig for figure, _ in found)
    assert pyplot.get_fignums() == [fig.number]
