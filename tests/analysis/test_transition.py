"""Importance transition against sums written out."""

import pytest
import torch

from sj_prune import analysis
from tests.support.analysis_cases import network, wrapped
from tests.support.trained_cases import batches

FIRST = {"1": torch.tensor([True, True, False]), "4": torch.tensor([True, False])}
SECOND = {"1": torch.tensor([True, False, True]), "4": torch.tensor([False, False])}


def importance(net, name, channel):
    gammas = [abs(g) for g in net.get_submodule(name).weight.tolist() if g]
    return abs(net.get_submodule(name).weight[channel].item()) / (sum(gammas) / len(gammas))


def expected(net):
    only_first = (importance(net, "1", 1) + importance(net, "4", 0)) / 2
    return only_first, importance(net, "1", 2)


@pytest.fixture
def nets():
    found = [network(seed) for seed in range(3)]
    found[1][1].weight.data[0] = 0  # pruned in this one: no part of the mean
    found[2][1].weight.data[1] *= -1
    return found


def rows(found):
    return [(row.first, row.second) for row in found.rows]


def test_channels_that_one_mask_keeps(nets):
    found = analysis.transition(FIRST, SECOND, nets, names=("magnitude", "criticality"))
    assert found.units == (2, 1)
    assert [row.epoch for row in found.rows] == [0, 1, 2]
    for net, row in zip(nets, rows(found), strict=True):
        assert row == pytest.approx(expected(net), rel=1e-6)
    assert "only magnitude keeps (2)" in str(found).splitlines()[0]
    assert found.to_markdown().startswith("|")


@pytest.mark.parametrize("form", ["states", "wrapped states", "wrappers", "by epoch", "pairs"])
def test_forms(nets, form):
    plain = rows(analysis.transition(FIRST, SECOND, nets))
    x_seq = batches(1)[0][0]
    models = (
        nets
        if form in ("states", "by epoch", "pairs")
        else [wrapped(net, example_input=x_seq) for net in nets]
    )
    given = {
        "states": [net.state_dict() for net in nets],
        "wrapped states": [model.state_dict() for model in models],
        "wrappers": models,
        "by epoch": dict(zip((0, 10, 20), nets, strict=True)),
        "pairs": [(net, nets[0]) for net in nets],
    }[form]
    found = analysis.transition(FIRST, SECOND, given)
    if form == "pairs":
        assert [row[0] for row in rows(found)] == [row[0] for row in plain]
        assert {row[1] for row in rows(found)} == {plain[0][1]}
    else:
        assert rows(found) == plain
    assert [row.epoch for row in found.rows] == ([0, 10, 20] if form == "by epoch" else [0, 1, 2])


def test_training_in_between(nets):
    net = nets[0]

    def epochs():
        yield net
        net[1].weight[2].square().sum().backward()
        net[1].weight.data += net[1].weight.grad
        yield net

    (first, second) = rows(analysis.transition(FIRST, SECOND, epochs()))
    assert second[1] > first[1]


def test_masks_of_a_wrapper_and_single_weights():
    model = wrapped(network(), example_input=batches(1)[0][0])
    found = analysis.transition(model.masks, SECOND, [model])
    assert found.units == (3, 0)
    assert rows(found)[0][1] is None
    weight = network()[0].weight.detach()
    masks = [{"0": weight > 0}, {"0": weight < 0.1}]
    ((first, second),) = rows(analysis.transition(*masks, [network()]))
    size = weight.double().abs() / weight.double().abs().mean()
    assert first == pytest.approx(float(size[weight >= 0.1].mean()), rel=1e-6)
    assert second == pytest.approx(float(size[weight <= 0].mean()), rel=1e-6)


def test_filters_where_no_norm_follows():
    weight = network()[0].weight.double().abs()
    masks = [{"0": torch.tensor(kept)} for kept in ([True, True, False], [False, True, True])]
    ((first, second),) = rows(analysis.transition(*masks, [network()]))
    filters = weight.flatten(1).mean(1)
    assert [first, second] == pytest.approx((filters[[0, 2]] / filters.mean()).tolist(), rel=1e-6)


def test_refusals(nets):
    other = {"1": SECOND["1"], "2": SECOND["4"]}
    with pytest.raises(ValueError, match=r"only one has \['2', '4'\]"):
        analysis.transition(FIRST, other, nets)
    with pytest.raises(ValueError, match=r"one shape at '4' but got \(2,\) and \(3,\)"):
        analysis.transition(FIRST, {**SECOND, "4": torch.ones(3)}, nets)
    narrow = {name: mask[:1] for name, mask in FIRST.items()}
    with pytest.raises(
        ValueError, match=r"a weight at '1' that fits the mask's \(1,\) but got \(3,\)"
    ):
        analysis.transition(narrow, narrow, nets)
    with pytest.raises(ValueError, match=r"but got none"):
        analysis.transition(FIRST, SECOND, [{}])
    for single in (nets[0], nets[0].state_dict()):
        with pytest.raises(TypeError, match=r"but got a single \w+: give \[net\]"):
            analysis.transition(FIRST, SECOND, single)


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), "ab"])
def test_names_are_two(nets, names):
    with pytest.raises(ValueError, match="Expected names to be of two masks but got"):
        analysis.transition(FIRST, SECOND, nets, names=names)


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        (["a"], r"every epoch to be a network or its state_dict\(\) but got a str"),
        (5, "one an epoch, but got a single int"),
    ],
)
def test_epochs_that_are_no_networks(epochs, message):
    with pytest.raises(TypeError, match=message):
        analysis.transition(FIRST, SECOND, epochs)
