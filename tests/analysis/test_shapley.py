"""Sampled Shapley values against the exact ones over all subsets of five channels."""

import math
from itertools import combinations, permutations

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from sj_prune import analysis, methods
from tests.support.analysis_cases import NORMS, network, outputs, silenced
from tests.support.trained_cases import batches, statistics_by_hand, trained_like

LOADER = batches(2)
PLAYERS = range(5)


def gain(output, y):
    return -F.cross_entropy(output.mean(0), y)


@pytest.fixture(scope="module")
def worth():
    """The value of every set of channels, of copies with the others silenced by hand."""
    net = network()
    sets = [set(s) for k in range(6) for s in combinations(PLAYERS, k)]
    found = {}
    for chosen in sets:
        twin = silenced(net, [float(i in chosen) for i in PLAYERS])
        found[frozenset(chosen)] = float(sum(gain(*p) for p in outputs(twin, LOADER)) / 2)
    return found


def exact(worth):
    values = []
    for i in PLAYERS:
        others = [j for j in PLAYERS if j != i]
        value = 0.0
        for k in range(5):
            weight = math.factorial(k) * math.factorial(4 - k) / math.factorial(5)
            for chosen in map(frozenset, combinations(others, k)):
                value += weight * (worth[chosen | {i}] - worth[chosen])
        values.append(value)
    return values


def deviations(worth):
    """Return the standard deviation of what a channel adds, over all 120 orders."""
    added = torch.tensor(
        [
            [
                worth[frozenset(o[: o.index(i) + 1])] - worth[frozenset(o[: o.index(i)])]
                for i in PLAYERS
            ]
            for o in permutations(PLAYERS)
        ]
    )
    return added.std(0, correction=0)


def test_sampled_values_against_all_subsets(worth):
    found = analysis.shapley(network(), LOADER, methods.FilterNorm(), permutations=400, value=gain)
    values, errors = (torch.cat([each[n] for n in NORMS]) for each in (found.values, found.errors))
    distance = (values - torch.tensor(exact(worth))).abs()
    assert (distance < 4 * errors).all()
    assert errors.tolist() == pytest.approx((deviations(worth) / 20).tolist(), rel=0.15)
    # They add up exactly, whatever was drawn.
    assert found.whole == pytest.approx(worth[frozenset(PLAYERS)], rel=1e-6)
    assert found.none == pytest.approx(worth[frozenset()], rel=1e-6)
    assert float(values.sum()) == pytest.approx(found.whole - found.none, abs=1e-12)
    assert errors.max() > 0.001


def test_channels_of_one_group_are_the_players(worth):
    found = analysis.shapley(
        network(), LOADER, methods.FilterNorm(), groups=["4"], permutations=50, value=gain
    )
    assert list(found.values) == list(found.scores) == ["4"]
    base = {0, 1, 2}
    first = worth[frozenset(base | {3})] - worth[frozenset(base)]
    then = worth[frozenset(PLAYERS)] - worth[frozenset(base | {4})]
    assert found.none == pytest.approx(worth[frozenset(base)], rel=1e-6)
    assert abs(float(found.values["4"][0]) - (first + then) / 2) < 4 * float(found.errors["4"][0])


def test_silent_channels_are_worth_nothing_and_cost_nothing():
    net, calls = network(), []
    for parameter in (net[1].weight, net[1].bias):
        parameter.data[1] = 0

    def counted(output, y):
        calls.append(1)
        return gain(output, y)

    found = analysis.shapley(net, LOADER, methods.FilterNorm(), permutations=99, value=counted)
    assert float(found.values["1"][1]) == float(found.errors["1"][1]) == 0
    assert found.alive["1"].tolist() == [True, False, True]
    assert str(found).endswith("1 silent channels, worth 0, are left out")
    assert "1        1 " not in str(found)
    alive = torch.tensor([True, False, True, True, True])
    every = [torch.cat(list(each.values()))[alive] for each in (found.scores, found.values)]
    assert found.correlation() == pytest.approx(spearmanr(*every).statistic)
    assert len(calls) == 2**4 * len(LOADER)  # every set of the other four, once a batch


@pytest.mark.parametrize("method", [methods.NetworkSlimming(), methods.APoZ()])
def test_scores_are_the_methods(method):
    net = network()
    found = analysis.shapley(net, LOADER, method, permutations=2)
    if isinstance(method, methods.APoZ):
        by_hand = statistics_by_hand(net, LOADER)
        expected = {norm: by_hand[str(int(norm) + 1)]["firing_rate"] for norm in NORMS}
    else:
        expected = {norm: net.get_submodule(norm).weight.abs().double() for norm in NORMS}
    for norm, score in found.scores.items():
        assert score.tolist() == pytest.approx(expected[norm].tolist(), rel=1e-5)
    assert found.method == type(method).__name__


def test_gradients_of_the_loss_are_scored():
    found = analysis.shapley(network(), LOADER, methods.TaylorChannels(), permutations=2)
    assert all((score > 0).all() for score in found.scores.values())


def test_coupled_channels_are_one_player():
    net = trained_like()  # residual: the stem and the second convolution
    found = analysis.shapley(
        net, LOADER, methods.FilterNorm(), permutations=2, batches=1, skip=("fc1",)
    )
    assert {name: len(values) for name, values in found.values.items()} == {"norm0": 8, "norm1": 10}


def test_rank_correlation():
    found = analysis.shapley(network(), LOADER, methods.FilterNorm(), permutations=5, value=gain)
    every = [torch.cat(list(each.values())) for each in (found.scores, found.values)]
    assert found.correlation() == pytest.approx(spearmanr(*every).statistic)
    pair = found.scores["1"], found.values["1"]
    assert found.correlation("1") == pytest.approx(spearmanr(*pair).statistic)
    nothing = analysis.shapley(
        network(), LOADER, methods.FilterNorm(), permutations=2, value=lambda *_: 0.0
    )
    assert nothing.correlation() is None
    for text in (str(found), found.to_markdown()):
        lines = text.splitlines()
        assert len(lines) == 2 + 5 + 2
        assert f"{float(found.values['4'][1]):.3g}" in lines[6]
        assert lines[-1].startswith("rank correlation with the score of FilterNorm: ")


def test_a_seed_gives_the_same_orders():
    runs = [
        analysis.shapley(network(), LOADER, methods.FilterNorm(), permutations=2, seed=seed)
        for seed in (1, 1, 2)
    ]
    same, other = (
        all(torch.equal(runs[0].values[n], run.values[n]) for n in NORMS) for run in runs[1:]
    )
    assert (same, other) == (True, False)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"method": methods.Magnitude()},
            ValueError,
            "prunes channels but Magnitude prunes weights",
        ),
        ({"method": None}, TypeError, "Expected method to be"),
        ({"method": methods.GradR()}, ValueError, "GradR lets sparsity emerge"),
        ({"permutations": 1}, ValueError, "at least 2 permutations"),
        ({"groups": ["0"]}, ValueError, r"groups to be among \['1', '4'\] but got \['0'\]"),
        ({"groups": []}, ValueError, r"groups to be among \['1', '4'\] but got none"),
    ],
)
def test_refusals(settings, error, message):
    with pytest.raises(error, match=message):
        analysis.shapley(network(), LOADER, **({"method": methods.FilterNorm()} | settings))


def test_correlation_of_an_unknown_group():
    found = analysis.shapley(network(), LOADER, methods.FilterNorm(), permutations=2, batches=1)
    with pytest.raises(ValueError, match=r"group to be one of \['1', '4'\] but got 'zz'"):
        found.correlation("zz")
