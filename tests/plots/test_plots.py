"""Plots: what stands on the axes is what went in."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F

import sj_prune
from sj_prune import methods, plots
from sj_prune.reports.measured import channel_means
from sj_prune.run.history import UpdateRecord

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _no_style_stays():
    style = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == style


def images():
    return torch.rand(3, 2, 2, 6, 6)


def trained(method=None, steps=3):
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        layer.BatchNorm2d(4),
        neuron.IFNode(),
        layer.Flatten(),
        layer.Linear(144, 5),
        neuron.LIFNode(),
    )
    functional.set_step_mode(net, "m")
    nn.init.constant_(net[1].bias, 0.6)
    method = method or methods.Criticality(sparsity=0.5, interval=1, end=3)
    wrapper = sj_prune.PruningWrapper(net, method)
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.01)
    wrapper.attach(optimizer)
    for _ in range(steps):
        functional.reset_net(wrapper)
        F.cross_entropy(wrapper(images()).mean(0), torch.arange(2)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return wrapper


def labels(ax):
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def bars(ax):
    return [bar.get_height() for container in ax.containers for bar in container]


def record(step, target, sparsity):
    return UpdateRecord(step, target, sparsity, {}, {}, {})


def assert_labeled(fig, ax):
    assert ax.figure is fig
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    fig.canvas.draw()


def test_sparsity_of_one_run():
    wrapper = trained()
    fig, ax = plots.sparsity_over_steps(wrapper.history)
    (line,) = ax.get_lines()
    assert list(line.get_xdata()) == [1, 2, 3]
    assert list(line.get_ydata()) == [record.sparsity for record in wrapper.history]
    assert labels(ax) == []
    assert_labeled(fig, ax)
    assert all(float(text) == int(float(text)) for text in ticks(ax.xaxis))


def test_sparsity_of_several_runs_and_missed_targets():
    runs = {"a": [record(10, 0.5, 0.5)], "b": [record(5, 0.9, 0.2), record(10, 0.9, 0.7)]}
    fig, ax = plots.sparsity_over_steps(runs)
    assert labels(ax) == ["a", "b", "b, asked for"]
    assert list(ax.get_lines()[2].get_ydata()) == [0.9, 0.9]
    assert_labeled(fig, ax)
    _, ax = plots.sparsity_over_steps(runs["b"])
    assert labels(ax)[-1] == "asked for"


@pytest.mark.parametrize(("given", "named"), [([], "the history"), ({"a": []}, "a"), ({}, "hist")])
def test_sparsity_without_updates(given, named):
    with pytest.raises(ValueError, match=f"at least one mask update in {named}"):
        plots.sparsity_over_steps(given)


def regrown(step, grown, survived):
    return UpdateRecord(step, 0.5, 0.5, {}, {}, grown, survived=survived)


RUN = [
    regrown(10, {"a": 4, "b": 0}, {}),
    regrown(20, {"a": 2, "b": 2}, {"a": 1, "b": 0}),
    regrown(30, {"a": 0, "b": 0}, {"a": 2, "b": 0}),
    regrown(40, {"a": 0, "b": 0}, {"a": 0, "b": 0}),
]


def test_survival_of_regrowth():
    fig, ax = plots.regrowth_survival(RUN)
    (line,) = ax.get_lines()
    assert list(line.get_xdata()) == [20, 30]
    assert list(line.get_ydata()) == [0.25, 0.5]
    assert labels(ax) == []
    assert_labeled(fig, ax)
    _, ax = plots.regrowth_survival({"one": RUN, "two": RUN[:2]})
    assert labels(ax) == ["one", "two"]


def test_regrowth_by_layer():
    fig, ax = plots.regrowth_per_layer(RUN)
    assert bars(ax) == [4, 2, 0, 2]
    assert [bar.get_y() for bar in ax.containers[1]] == [4, 2]
    assert labels(ax) == ["a", "b"]
    assert_labeled(fig, ax)


@pytest.mark.parametrize("given", [[], RUN[:1], RUN[2:], {}, {"x": RUN[:1]}])
def test_no_regrowth_to_follow(given):
    with pytest.raises(ValueError, match="Expected "):
        plots.regrowth_survival(given)


@pytest.mark.parametrize("given", [[], RUN[2:]])
def test_no_regrowth_at_all(given):
    with pytest.raises(ValueError, match="Expected a history in which something is regrown"):
        plots.regrowth_per_layer(given)


def test_density_of_a_wrapper_and_of_its_masks():
    wrapper = trained()
    fig, ax = plots.density_per_layer(wrapper)
    expected = [1 - wrapper.sparsity()[name] for name in ("0", "4")]
    assert bars(ax) == pytest.approx(expected)
    assert ticks(ax.xaxis) == ["0", "4"]
    assert labels(ax) == []
    assert_labeled(fig, ax)
    for masks in (wrapper.masks, wrapper.masks.masks):
        assert bars(plots.density_per_layer(masks)[1]) == pytest.approx(expected)


@pytest.mark.parametrize("log", [False, True])
def test_density_of_several(log):
    one = {f"layer{i}.conv": torch.arange(100) < i for i in range(20)}
    fig, ax = plots.density_per_layer({"one": one, "two": {"layer3.conv": torch.ones(4)}}, log=log)
    assert labels(ax) == ["one", "two"]
    assert bars(ax)[:20] == pytest.approx([i / 100 for i in range(20)])
    assert bars(ax)[23] == 1
    assert ax.get_yscale() == ("log" if log else "linear")
    assert_labeled(fig, ax)


@pytest.mark.parametrize("given", [{}, {"a": {}}])
def test_density_of_nothing(given):
    with pytest.raises(ValueError, match="at least one mask"):
        plots.density_per_layer(given)


def medians(ax):
    return [line.get_xdata()[0] for line in ax.get_lines()]


def test_criticality_measured():
    wrapper, x = trained(), images()
    fig, ax = plots.criticality_histogram(wrapper, x)
    scores = channel_means(wrapper.session, x)
    assert ticks(ax.yaxis) == ["2 (4)", "5 (5)"]
    assert medians(ax) == pytest.approx([score.quantile(0.5).item() for score in scores.values()])
    assert_labeled(fig, ax)


def test_criticality_recorded():
    wrapper = trained(methods.Criticality(sparsity=0.5, interval=4, end=4))
    with pytest.raises(ValueError, match="pass example_input"):
        plots.criticality_histogram(wrapper)
    wrapper(images())  # the batch before the update is recorded
    _, ax = plots.criticality_histogram(wrapper)
    assert len(medians(ax)) == 2


def test_criticality_scores():
    scores = {"a": torch.full((5,), 0.3), "b": torch.linspace(0, 1, 101), "none": torch.empty(0)}
    fig, ax = plots.criticality_histogram(scores)
    assert medians(ax) == pytest.approx([0.3, 0.5])
    assert_labeled(fig, ax)
    assert_labeled(*plots.criticality_histogram({"equal": torch.zeros(3)}))


def test_accuracy_of_several_seeds():
    results = {"a": [(0.95, 70.0), (0.9, 72.0), (0.9, 74.0), (0.9, 73.3)], "b": [(0.99, 60.0)]}
    fig, ax = plots.accuracy_over_sparsity(results, dense=75.0)
    line, _, (whiskers,) = ax.containers[0].lines
    assert list(line.get_ydata()) == pytest.approx([73.1, 70.0])
    assert whiskers.get_segments()[0][:, 1] == pytest.approx([72.0, 74.0])
    assert line.get_xdata() == pytest.approx([0.1, 0.05], rel=0.03)
    assert ticks(ax.xaxis) == ["90", "95", "99"]
    assert ax.xaxis_inverted()
    assert sorted(labels(ax)) == ["a", "b", "dense"]
    assert ax.get_ylabel() == "accuracy (%)"
    assert_labeled(fig, ax)


def test_accuracy_as_a_fraction():
    _, ax = plots.accuracy_over_sparsity({"a": [(0.9, 0.7)]}, dense=0.8)
    assert ax.get_ylabel() == "accuracy (fraction)"


def test_neighboring_sparsities_share_a_tick():
    points = [(s, 1.0) for s in (0.0, 0.9, 0.95, 0.9569, 0.99)]
    _, ax = plots.accuracy_over_sparsity({"a": points})
    assert ticks(ax.xaxis) == ["0", "90", "95", "99"]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "at least one method"),
        ({"a": []}, "at least one point"),
        ({"a": [(1.0, 5.0)]}, "in \\[0, 1\\) but 'a' has 1.0"),
        ({"a": [(90, 5.0)]}, "has 90"),
    ],
)
def test_accuracy_of_bad_results(results, message):
    with pytest.raises(ValueError, match=message):
        plots.accuracy_over_sparsity(results)


def test_all_draw_on_given_axes():
    fig, axes = pyplot.subplots(2, 2, figsize=(12, 8), layout="constrained")
    wrapper = trained()
    found = [
        plots.sparsity_over_steps(wrapper.history, axes[0, 0]),
        plots.density_per_layer(wrapper, axes[0, 1]),
        plots.criticality_histogram(wrapper, images(), axes[1, 0]),
        plots.accuracy_over_sparsity({"a": [(0.9, 0.7)]}, ax=axes[1, 1]),
    ]
    assert [ax for _, ax in found] == list(axes.flat)
    assert all(figure is fig for figure, _ in found)
    assert pyplot.get_fignums() == [fig.number]


def test_message_without_matplotlib(loaded):
    assert "pip install sj_prune[plots]" in loaded["no matplotlib"]
