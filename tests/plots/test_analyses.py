"""Plots of analyses: what stands on the axes is what was measured."""

import pytest
import torch

from sj_prune import plots
from sj_prune.analysis import (
    ClassCluster,
    Clusters,
    NoiseLevel,
    Robustness,
    Shapley,
    Transition,
    TransitionPoint,
)

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
pyplot = pytest.importorskip("matplotlib.pyplot")

CLUSTERS = Clusters(
    "fc",
    (ClassCluster(0, 5, 0.2, 2, 0.3, 0.9), ClassCluster(3, 4, 0.4), ClassCluster(7, 0, None)),
    0,
)
OTHER = Clusters("fc", (ClassCluster(3, 5, 0.1, 2, 0.5, 0.7),), 0)
TRANSITION = Transition(
    ("a", "b"), (3, 2), (TransitionPoint(0, 1.0, 0.5), TransitionPoint(10, 0.9, 0.8))
)
SHAPLEY = Shapley(
    values={"1": torch.tensor([0.1, 0.0, 0.3]), "4": torch.tensor([0.2, 0.1])},
    errors={"1": torch.tensor([0.01, 0.0, 0.03]), "4": torch.tensor([0.02, 0.04])},
    scores={"1": torch.tensor([1.0, 0.0, 2.0]), "4": torch.tensor([5.0, 6.0])},
    alive={"1": torch.tensor([True, False, True]), "4": torch.tensor([True, True])},
    method="SCA",
    permutations=9,
    whole=0.9,
    none=0.2,
)
NOISE = Robustness(
    (
        NoiseLevel("inputs", 0.0, (0.9,)),
        NoiseLevel("inputs", 0.5, (0.7, 0.8, 0.9)),
        NoiseLevel("parameters", 0.1, (0.5, 0.6)),
    )
)


@pytest.fixture(autouse=True)
def _no_figure_stays():
    yield
    pyplot.close("all")


def labels(ax):
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def points(ax):
    """Return the points of every scattered network, without the shift that keeps them apart."""
    return [[(round(float(x)), float(y)) for x, y in c.get_offsets()] for c in ax.collections]


def assert_labeled(fig, ax):
    assert ax.figure is fig
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    fig.canvas.draw()


def test_variance_of_one_network_and_of_several():
    fig, ax = plots.intra_cluster_variance(CLUSTERS)
    assert points(ax) == [[(0, 0.2), (1, 0.4)]]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "3", "7"]
    assert [line.get_ydata()[0] for line in ax.get_lines()] == pytest.approx([0.3])  # the mean
    assert labels(ax) == []
    assert_labeled(fig, ax)
    _, ax = plots.intra_cluster_variance({"dense": CLUSTERS, "pruned": OTHER}, test=True)
    assert points(ax) == [[(0, 0.3)], [(1, 0.5)]]
    assert labels(ax) == ["dense", "pruned"]
    assert "test data" in ax.get_ylabel()


def test_similarity():
    fig, ax = plots.class_similarity({"dense": CLUSTERS, "pruned": OTHER})
    assert points(ax) == [[(0, 0.9)], [(1, 0.7)]]
    assert_labeled(fig, ax)
    trained_only = Clusters("fc", (ClassCluster(0, 5, 0.2),), 0)
    _, ax = plots.class_similarity({"a": OTHER, "b": trained_only})
    assert points(ax) == [[(1, 0.7)], []]
    assert len(ax.get_lines()) == 1
    for nothing in (trained_only, {}):
        with pytest.raises(ValueError, match="clusters with a similarity to draw"):
            plots.class_similarity(nothing)


def test_transition():
    fig, ax = plots.importance_transition(TRANSITION)
    first, second, average = ax.get_lines()
    assert list(first.get_xdata()) == list(second.get_xdata()) == [0, 10]
    assert [list(line.get_ydata()) for line in (first, second)] == [[1.0, 0.9], [0.5, 0.8]]
    assert average.get_ydata()[0] == 1
    assert labels(ax) == ["only a keeps (3)", "only b keeps (2)", "an average unit"]
    assert_labeled(fig, ax)
    one = Transition(("a", "b"), (3, 0), (TransitionPoint(0, 1.0, None),))
    assert labels(plots.importance_transition(one)[1]) == ["only a keeps (3)", "an average unit"]
    for rows, units in ((), (1, 1)), (TRANSITION.rows, (0, 0)):
        with pytest.raises(ValueError, match="masks that differ"):
            plots.importance_transition(Transition(("a", "b"), units, rows))


def test_shapley_values():
    fig, ax = plots.shapley_values(SHAPLEY)
    for container, group in zip(ax.containers, ("1", "4"), strict=True):
        line, _, (whiskers,) = container.lines
        alive = SHAPLEY.alive[group]
        assert list(line.get_xdata()) == SHAPLEY.scores[group][alive].tolist()
        assert list(line.get_ydata()) == SHAPLEY.values[group][alive].tolist()
        ends = [segment[1, 1] - segment[0, 1] for segment in whiskers.get_segments()]
        assert ends == pytest.approx((2 * SHAPLEY.errors[group][alive]).tolist())
    assert labels(ax) == ["1 (2, rank correlation 1.00)", "4 (2, rank correlation -1.00)"]
    assert "SCA" in ax.get_xlabel()
    assert_labeled(fig, ax)


def test_noise():
    fig, ax = plots.accuracy_under_noise(NOISE, "inputs")
    line, _, (whiskers,) = ax.containers[0].lines
    assert list(line.get_xdata()) == [0, 0.5]
    assert list(line.get_ydata()) == pytest.approx([0.9, 0.8])
    assert whiskers.get_segments()[1][:, 1] == pytest.approx([0.7, 0.9])
    assert labels(ax) == []
    assert_labeled(fig, ax)
    _, ax = plots.accuracy_under_noise({"dense": NOISE, "pruned": NOISE}, "parameters")
    assert labels(ax) == ["dense", "pruned"]
    first, second = (float(c.lines[0].get_xdata()[0]) for c in ax.containers)
    assert first < 0.1 < second < 0.105
    with pytest.raises(ValueError, match="Expected kind to be one of"):
        plots.accuracy_under_noise(NOISE, "weights")
    with pytest.raises(ValueError, match="levels of noise on parameters"):
        plots.accuracy_under_noise(Robustness(NOISE.rows[:2]), "parameters")


def test_all_draw_on_given_axes():
    fig, axes = pyplot.subplots(2, 2, layout="constrained")
    found = [
        plots.intra_cluster_variance(CLUSTERS, axes[0, 0]),
        plots.importance_transition(TRANSITION, axes[0, 1]),
        plots.shapley_values(SHAPLEY, axes[1, 0]),
        plots.accuracy_under_noise(NOISE, "inputs", axes[1, 1]),
    ]
    assert [ax for _, ax in found] == list(axes.flat)
    assert pyplot.get_fignums() == [fig.number]
