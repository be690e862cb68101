"""Noise on inputs and weights against loops written by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F

from sj_prune import analysis
from tests.support.analysis_cases import accuracy_by_hand, network, outputs
from tests.support.trained_cases import batches

LOADER = batches(3)
SETTINGS = {"inputs": (0.0, 0.4), "parameters": (0.0, 0.3, 2.0), "repeats": 3}


def pruned():
    net = network()
    with torch.no_grad():
        for layer in (net[0], net[3], net[7]):
            layer.weight[torch.rand(layer.weight.shape) < 0.5] = 0
    return net


def normal(shape, generator):
    return torch.randn(shape, generator=generator)


def noisy_inputs(level, generator):
    numbers = [v for x_seq, _ in LOADER for v in x_seq.double().flatten().tolist()]
    mean = sum(numbers) / len(numbers)
    deviation = (sum((v - mean) ** 2 for v in numbers) / (len(numbers) - 1)) ** 0.5
    return [(x + level * deviation * normal(x.shape, generator), y) for x, y in LOADER]


def noisy_weights(net, level, generator):
    twin = copy.deepcopy(net)
    for layer in (twin[0], twin[3], twin[7]):
        weight = layer.weight.data
        kept = [w for w in weight.double().flatten().tolist() if w]
        size = (sum(w * w for w in kept) / len(kept)) ** 0.5
        weight[weight != 0] += (level * size * normal(weight.shape, generator))[weight != 0]
    return twin


@pytest.mark.parametrize("seed", [0, 5])
def test_accuracy_under_noise(seed):
    net = pruned()
    found = analysis.robustness(net, LOADER, seed=seed, **SETTINGS)
    assert [(row.kind, row.level) for row in found.rows] == [
        *(("inputs", level) for level in SETTINGS["inputs"]),
        *(("parameters", level) for level in SETTINGS["parameters"]),
    ]
    clean = accuracy_by_hand(net, LOADER)
    for row in found.rows:
        drawn = [torch.Generator().manual_seed(3 * seed + repeat) for repeat in range(3)]
        if not row.level:
            expected = [clean]
        elif row.kind == "inputs":
            expected = [accuracy_by_hand(net, noisy_inputs(row.level, g)) for g in drawn]
        else:
            shaken = [noisy_weights(net, row.level, g) for g in drawn]
            expected = [accuracy_by_hand(twin, LOADER) for twin in shaken]
        assert list(row.values) == pytest.approx(expected, abs=1e-12)
        assert row.mean == pytest.approx(sum(expected) / len(expected))
    assert len({value for row in found.rows for value in row.values}) > 2


def test_another_value_and_batches():
    def loss(output, y):
        return -F.cross_entropy(output.mean(0), y)

    found = analysis.robustness(
        network(), LOADER, inputs=(0,), parameters=(), batches=2, value=loss
    )
    pairs = outputs(network(), LOADER[:2])
    (row,) = found.rows
    assert row.mean == pytest.approx(float(sum(loss(*pair) for pair in pairs) / 2))


def test_batches_of_unequal_size_count_by_samples():
    net, ((x, y), *_) = network(), LOADER
    parts = [(x[:, :1], y[:1]), (x[:, 1:], y[1:])]
    found = [
        analysis.robustness(net, each, inputs=(0.3,), parameters=(0.3,))
        for each in (parts, [(x, y)])
    ]
    assert found[0].rows[1].values == pytest.approx(found[1].rows[1].values, abs=1e-12)


def test_no_synapse_comes_back():
    net = network()
    torch.nn.init.zeros_(net[7].weight)
    found = analysis.robustness(net, LOADER, inputs=(), parameters=(0, 9.0), repeats=2)
    assert {value for row in found.rows for value in row.values} == {accuracy_by_hand(net, LOADER)}


def test_tables():
    found = analysis.robustness(network(), LOADER, **SETTINGS)
    for text in (str(found), found.to_markdown()):
        assert "noise on" in text.splitlines()[0]
        assert f"{found.rows[1].mean:.4g}" in text.splitlines()[3]
        assert text.endswith("Weights that are 0 stay so.")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"inputs": (-0.1,)},
            ValueError,
            "Expected a level of inputs to be finite and of at least",
        ),
        ({"parameters": ("a",)}, TypeError, "Expected a level of parameters to be a number"),
        ({"repeats": 0}, ValueError, "Expected repeats of at least 1"),
        ({"batches": 1.5}, TypeError, "Expected batches to be an integer"),
        ({"seed": -1}, ValueError, "Expected seed to be at least 0"),
    ],
)
def test_refusals(settings, error, message):
    with pytest.raises(error, match=message):
        analysis.robustness(network(), LOADER, **settings)


def test_integers_take_no_noise():
    loader = [(x.to(torch.uint8), y) for x, y in LOADER]
    with pytest.raises(ValueError, match=r"but got torch.uint8: let the loader yield x.float\(\)"):
        analysis.robustness(network(), loader)


def test_computed_weights_take_no_noise():
    net = network()
    torch.nn.utils.parametrizations.weight_norm(net[3])
    with pytest.raises(ValueError, match=r"but those of \['3'\] are computed"):
        analysis.robustness(net, LOADER, inputs=(), repeats=1)
    assert analysis.robustness(net, LOADER, inputs=(0.0,), parameters=()).rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": 0.5}, r"Expected inputs to be levels of noise but got 0.5: give \(0.0, 0.5\)"),
        ({"parameters": None}, "Expected parameters to be levels of noise but got None"),
    ],
)
def test_a_single_level_is_no_levels(settings, message):
    with pytest.raises(TypeError, match=message):
        analysis.robustness(network(), LOADER, **settings)


def test_levels_may_be_any_iterable():
    found = analysis.robustness(network(), LOADER, inputs=iter([0.0]), parameters=torch.empty(0))
    assert [row.level for row in found.rows] == [0.0]


@pytest.mark.parametrize("x", [torch.ones(1, 1, 1), torch.full((2, 1, 2), 3e38)])
def test_inputs_without_a_deviation_take_no_noise(x):
    loader = [(x, torch.zeros(1).long())]
    with pytest.raises(ValueError, match=rf"deviation.* of {x.numel()} numbers is (nan|inf)"):
        analysis.robustness(torch.nn.Flatten(2), loader)
