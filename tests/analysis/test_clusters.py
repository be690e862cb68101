"""Clusters of features against the definitions, written again in float64."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_prune import analysis
from tests.support.analysis_cases import CLASSIFIER, network, step_by_step
from tests.support.trained_cases import CLASSES, batches

TRAIN, TEST = batches(4), batches(2, seed=1)


def features(net, loader, name=CLASSIFIER):
    """Return the normalized features of every sample, float64, and its class."""
    twin, seen, found = copy.deepcopy(net).eval(), [], []
    twin.get_submodule(name).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    for x_seq, y in loader:
        functional.reset_net(twin)
        with torch.no_grad():
            twin(x_seq)
        for sample, label in enumerate(y.tolist()):
            mean = sum(step[sample].double().flatten() for step in seen[-1]) / len(seen[-1])
            norm = mean.square().sum().sqrt()
            found.append((mean / norm if norm else mean, label))
    return found


@pytest.mark.parametrize("name", [None, "6", "3"])
def test_variance_and_similarity(name):
    net = network()
    found = analysis.clusters(net, TRAIN, TEST, layer=name)
    assert found.layer == (name or CLASSIFIER)
    train, test = (features(net, loader, found.layer) for loader in (TRAIN, TEST))
    assert [row.label for row in found.rows] == list(range(CLASSES))
    for row in found.rows:
        own = [x for x, label in train if label == row.label]
        other = [x for x, label in test if label == row.label]
        assert (row.samples, row.test_samples) == (len(own), len(other))
        mean = sum(own) / len(own)
        variance = sum((x - mean).square().sum() for x in own) / len(own)
        assert row.variance == pytest.approx(float(variance), rel=1e-12, abs=1e-14)
        if not other:
            assert row.test_variance is None
            assert row.similarity is None
            continue
        test_mean = sum(other) / len(other)
        variance = sum((x - test_mean).square().sum() for x in other) / len(other)
        assert row.test_variance == pytest.approx(float(variance), rel=1e-12, abs=1e-14)
        cosine = (mean @ test_mean) / (mean.norm() * test_mean.norm())
        assert row.similarity == pytest.approx(float(cosine), rel=1e-12)
    assert 0.01 < found.mean("variance") < 1
    assert 0.5 < found.mean("similarity") < 1


def test_first_batches_alone():
    assert analysis.clusters(network(), TRAIN, batches=2) == analysis.clusters(network(), TRAIN[:2])


def test_classes_without_samples_and_silent_ones():
    net = network()
    nn.init.zeros_(net[4].weight)
    nn.init.zeros_(net[4].bias)
    found = analysis.clusters(net, [(x, y.clamp(max=1)) for x, y in TRAIN], [(TEST[0][0], y2())])
    assert found.silent == 4 * 6 + 6
    assert [row.label for row in found.rows] == [0, 1, 7]
    assert [row.variance for row in found.rows] == [0.0, 0.0, None]
    assert [row.similarity for row in found.rows] == [None] * 3
    assert found.mean("similarity") is None
    assert "; of 30 samples they are all 0" in str(found)


def y2():
    return torch.full((6,), 7)


@pytest.mark.parametrize("with_test", [False, True])
def test_tables(with_test):
    found = analysis.clusters(network(), TRAIN, TEST if with_test else None)
    for text in (str(found), found.to_markdown()):
        lines = text.splitlines()
        assert ("train/test cosine" in lines[0]) is with_test
        assert lines[-1] == "features: the input of 7, mean over time, L2-normalized"
        mean = next(line for line in lines if "mean " in line)
        assert f"{found.mean('variance'):.3g}" in mean
    assert found.to_markdown().startswith("| class")


class Votes(nn.Module):
    """A classifier that is a convolution, and another head that comes first."""

    def __init__(self, classifier):
        super().__init__()
        self.head, self.last = layer.Linear(32, 3), classifier
        self.flat = layer.Flatten()
        functional.set_step_mode(self, "m")

    def forward(self, x_seq):
        self.head(self.flat(x_seq))
        return self.last(x_seq).flatten(2)


@pytest.mark.parametrize(
    "classifier",
    [layer.Conv2d(2, 5, 4), layer.SeqToANNContainer(nn.Conv2d(2, 5, 4))],
    ids=["multi-step", "container"],
)
def test_the_classifier_is_what_runs_last(classifier):
    generator = torch.Generator().manual_seed(0)
    x_seq = torch.rand(3, 4, 2, 4, 4, generator=generator)
    net, y = Votes(classifier), torch.tensor([0, 0, 1, 1])
    found = analysis.clusters(net, [(x_seq, y)])
    assert found.layer.startswith("last")
    flat = x_seq.double().mean(0).flatten(1)
    flat = flat / flat.norm(dim=1, keepdim=True)
    expected = [
        float(flat[:2].var(0, correction=0).sum()),
        float(flat[2:].var(0, correction=0).sum()),
    ]
    assert [row.variance for row in found.rows] == pytest.approx(expected, rel=1e-12)


def test_refusals():
    net = network()
    with pytest.raises(
        ValueError, match=r"Expected layer to name a module, such as \['0', '3', '7'\]"
    ):
        analysis.clusters(net, TRAIN, layer="fc")
    with pytest.raises(ValueError, match=r"Expected the input of '7' to be of the 4 samples"):
        analysis.clusters(net, [(TRAIN[0][0], torch.zeros(4).long())], layer=CLASSIFIER)
    with pytest.raises(ValueError, match="Expected one of .* to run in the forward but none does"):
        analysis.clusters(nn.Sequential(nn.Identity()), TRAIN, layer=None)


@pytest.mark.parametrize("where", [0, 3])
def test_features_that_are_not_finite_are_refused(where):
    net = network()
    nn.init.constant_(net[where].weight, float("nan"))
    with pytest.raises(ValueError, match=r"finite features but the input of '7' has nan"):
        analysis.clusters(net, [(x, y) for x, y in TRAIN], layer=CLASSIFIER, forward=potentials)


def potentials(net, x_seq):
    """Run without neurons, which would make numbers of nan."""
    net[2], net[5] = nn.Identity(), nn.Identity()
    return net(x_seq)


@pytest.mark.parametrize("form", ["multi-step", "single-step", "container"])
@pytest.mark.parametrize("labels", [2, 3, 12])
def test_labels_of_other_samples_are_refused(form, labels):
    """In 4 steps of 6 samples, each number divides what a layer may get."""
    net, forward = network(), None
    x_seq = torch.rand(4, 6, 2, 6, 6)
    if form == "single-step":
        functional.set_step_mode(net, "s")
        forward = step_by_step
    if form == "container":
        net = nn.Sequential(*net[:6], layer.SeqToANNContainer(nn.Flatten(), nn.Linear(72, 5)))
    with pytest.raises(ValueError, match=rf"of the {labels} samples that have labels but got"):
        analysis.clusters(net, [(x_seq, torch.zeros(labels).long())], forward=forward)
    assert analysis.clusters(net, [(x_seq, torch.zeros(6).long())], forward=forward).rows
