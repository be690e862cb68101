"""Budgets in the terms of hardware: what comes out fits, and nothing less would have done."""

import copy

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import chips, methods
from tests.chips.test_fits import X, convolutions, linear

WEIGHTS = methods.Magnitude(sparsity=0.5, interval=1, end=1)
CHANNELS = methods.FilterNorm(sparsity=0.5)


def pruned(net, budget, method=WEIGHTS, x=None, **more):
    x = torch.rand(2, 1, net[0].weight.shape[1]) if x is None else x
    return sj_prune.prune(net, [x], method, budget=budget, **more).net


def weights(net):
    return [m.weight.detach() for m in net if isinstance(m, nn.Linear)]


def test_fan_in_keeps_the_largest_of_each_neuron():
    torch.manual_seed(0)
    net = linear(16, 30, 20, 8)
    dense = copy.deepcopy(net)
    for before, after in zip(weights(dense), weights(pruned(net, {"fan_in": 7})), strict=True):
        least = before.abs().topk(7, 1).values[:, -1:]
        assert torch.equal(after, before * (before.abs() >= least))


def test_fan_out_counts_what_leaves_an_input():
    torch.manual_seed(0)
    net = linear(16, 30, 20, 8)
    found = weights(pruned(net, {"fan_out": 9}))
    assert [int((w != 0).sum(0).max()) for w in found] == [9, 9, 8]
    assert [int((w != 0).sum()) for w in found] == [9 * 16, 9 * 30, 8 * 20]


def test_both_fans():
    torch.manual_seed(0)
    for w in weights(pruned(linear(16, 30, 20, 8), {"fan_in": 6, "fan_out": 5})):
        assert int((w != 0).sum(1).max()) <= 6
        assert int((w != 0).sum(0).max()) <= 5


def test_mean_fan_in_is_met_exactly():
    torch.manual_seed(0)
    found = weights(pruned(linear(16, 30, 20, 8), {"mean_fan_in": 5.5}))
    assert [int((w != 0).sum()) for w in found] == [165, 110, 44]


def test_fan_in_of_a_convolution_counts_the_map():
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(3, 6, 3, padding=1), neuron.IFNode(), layer.Conv2d(6, 4, 3, stride=2)
    )
    functional.set_step_mode(net, "m")
    x = torch.rand(2, 1, 3, 7, 7)
    net = pruned(net, {"fan_in": 11}, x=x)
    for matrix in sj_prune.synapses(net, x):
        assert np.diff(matrix.indptr).max() == 11


def test_a_layer_a_core_and_several():
    torch.manual_seed(0)
    net = linear(16, 30, 20, 8)
    found = weights(pruned(copy.deepcopy(net), {"synapses_per_core": 150, "neurons_per_core": 30}))
    assert [int((w != 0).sum()) for w in found] == [150, 150, 150]
    chip = chips.Chip(name="mine", cores=9, synapses_per_core=100)
    fitted = pruned(net, {"cores": 9, "synapses_per_core": 100})
    x = torch.rand(2, 1, 16)
    assert sj_prune.fits(fitted, x, chip).ok
    assert sum(int(c) for c in sj_prune.fits(fitted, x, chip).cores.values()) == 9


@pytest.mark.parametrize("seed", range(20))
def test_speck_with_random_networks(seed):
    """Every network gets room; one channel more of any layer and it has none."""
    random = np.random.default_rng(seed)
    widths = random.integers(8, 150, random.integers(2, 5)).tolist()
    torch.manual_seed(seed)
    net = pruned(convolutions(widths), {"chip": "speck2f"}, CHANNELS, X)
    small = sj_prune.compact(net, X)
    fit = sj_prune.fits(small, X, "speck2f")
    assert fit.ok, fit.problems
    kept = [m.weight.shape[0] for m in small if isinstance(m, nn.Conv2d)]
    for i, width in enumerate(kept):
        wider = [*kept[:i], width + 1, *kept[i + 1 :]]
        assert width == widths[i] or not sj_prune.fits(convolutions(wider), X, "speck2f").ok


def test_outputs_count_in_powers_of_two_and_inputs_one_by_one():
    torch.manual_seed(0)
    net = pruned(convolutions((32, 64, 128)), {"chip": "speck2f"}, CHANNELS, X)
    kept = [int((m.weight.flatten(1) != 0).any(1).sum()) for m in net if isinstance(m, nn.Conv2d)]
    # 64 inputs leave room for 64 outputs of 9 places; 128 outputs for 32 inputs: the sum decides
    assert sum(kept) >= 32 + 32 + 128


def test_what_nothing_mends_is_refused_with_the_reason():
    before = linear(20, 30, 8)
    net = copy.deepcopy(before)
    with pytest.raises(ValueError, match=r"fits Xylo Audio 2 but .* inputs 20 of at most 16"):
        pruned(net, {"chip": "xylo_a2"})
    for mine, theirs in zip(net.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(ValueError, match="single weights leave shapes as they are"):
        pruned(convolutions((128, 128)), {"chip": chips.SPECK2F}, x=X)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"chip": "loihi9"}, "chip to be one of"),
        ({"chip": "speck2f", "macs": 0.5}, "hardware limits"),
        ({"fan_in": 3, "macs": 0.5}, "hardware limits"),
        ({"fan_in": 2.5}, "fan_in to be a number of them"),
        ({"fan_in": True}, "fan_in to be a number of them"),
        ({"fan_out": 0}, "fan_out to be positive"),
        ({"cores": 3}, "cores=3 to come with"),
    ],
)
def test_wrong_budgets(budget, said):
    with pytest.raises(ValueError, match=said):
        pruned(linear(4, 4), budget)
