"""Budgets in the terms of hardware: what comes out fits, and nothing less would have done."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import chips, masks, methods
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


def sums(matrix):
    """Return the largest fan-in and fan-out of a connection matrix."""
    there = (matrix != 0).astype(int)
    return int(there.sum(1).max()), int(there.sum(0).max())


GEOMETRIES = {
    "linear": (lambda: layer.Linear(12, 10), (12,)),
    "conv": (lambda: layer.Conv2d(4, 6, 3, padding=1), (4, 5, 5)),
    "strided": (lambda: layer.Conv2d(3, 6, 3, stride=2, padding=1), (3, 7, 7)),
    "patches": (lambda: layer.Conv2d(3, 6, 4, stride=4), (3, 8, 8)),
    "dilated": (lambda: layer.Conv2d(3, 4, (3, 2), dilation=2), (3, 6, 7)),
    "small map": (lambda: layer.Conv2d(3, 4, 3, padding=1), (3, 2, 2)),
    "one place": (lambda: layer.Conv2d(3, 4, 3, padding=1), (3, 1, 1)),
    "groups": (lambda: layer.Conv2d(4, 8, 3, padding=1, groups=2), (4, 5, 5)),
    "conv1d": (lambda: layer.Conv1d(4, 6, 3, stride=2), (4, 9)),
}


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(sorted(GEOMETRIES)),
    fan_in=st.none() | st.integers(1, 40),
    fan_out=st.none() | st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_fans_are_met_and_no_weight_more_would_meet_them(kind, fan_in, fan_out, seed):
    """Against the connection matrix: a weight put back anywhere is one too many."""
    limits = {"fan_in": fan_in, "fan_out": fan_out}
    limits = {name: k for name, k in limits.items() if k is not None} or {"fan_in": 10**6}
    make, tail = GEOMETRIES[kind]
    torch.manual_seed(seed)
    net = nn.Sequential(make(), neuron.IFNode())
    functional.set_step_mode(net, "m")
    x = torch.rand(2, 1, *tail)
    pruned(net, limits, x=x)
    most = np.array([limits.get("fan_in", np.inf), limits.get("fan_out", np.inf)])
    assert (np.array(sums(sj_prune.synapses(net, x)[0])) <= most).all()
    weight = net[0].weight.data
    for place in torch.randperm(weight.numel())[:12].tolist():
        if weight.view(-1)[place] == 0:
            weight.view(-1)[place] = 1.0
            assert (np.array(sums(sj_prune.synapses(net, x)[0])) > most).any()
            weight.view(-1)[place] = 0.0


class Twice(nn.Module):
    """A weight that works twice: its module runs again, or another module has it too."""

    def __init__(self, tied):
        super().__init__()
        self.a = layer.Linear(8, 8)
        self.b = layer.Linear(8, 8) if tied else self.a
        self.b.weight = self.a.weight
        self.node1, self.node2 = neuron.IFNode(), neuron.IFNode()
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.node2(self.b(self.node1(self.a(x))))


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_work_twice_take_room_twice(tied):
    x = torch.rand(2, 1, 8)
    for budget, kept in (
        ({"fan_in": 3}, 24),
        ({"synapses_per_core": 20, "neurons_per_core": 8}, 20),
        ({"synapses_per_core": 64, "cores": 1}, None),
    ):
        torch.manual_seed(0)
        net = Twice(tied)
        if kept is None:
            with pytest.raises(ValueError, match="the network needs 2 cores of 1, 1 too many"):
                sj_prune.prune(net, [x], WEIGHTS, budget=budget)
        else:
            sj_prune.prune(net, [x], WEIGHTS, budget=budget)
            assert int(net.a.weight.count_nonzero()) == kept


@settings(max_examples=8, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 24), min_size=3, max_size=5),
    budget=st.sampled_from(["synapses_per_core", "mean_fan_in", "mean_fan_out"]),
    amount=st.integers(2, 60),
    seed=st.integers(0, 99),
)
def test_limits_of_sums_are_met_exactly(sizes, budget, amount, seed):
    """Every layer keeps all that its limit admits, or the error says by how much it misses."""
    torch.manual_seed(seed)
    net = linear(*sizes)
    total = {"mean_fan_in": 1, "mean_fan_out": 0}.get(budget)
    admitted = [
        min(w.numel(), amount if total is None else amount * w.shape[1 - total])
        for w in weights(net)
    ]
    assert [int((w != 0).sum()) for w in weights(pruned(net, {budget: amount}))] == admitted


@settings(max_examples=10, deadline=None)
@given(
    sizes=st.lists(st.integers(4, 24), min_size=3, max_size=5),
    neurons=st.integers(1, 24),
    seed=st.integers(0, 99),
)
def test_channels_that_stay_are_as_many_as_fit(sizes, neurons, seed):
    torch.manual_seed(seed)
    net, x = linear(*sizes), torch.rand(2, 1, sizes[0])
    budget = {"neurons_per_core": neurons}
    if sizes[-1] > neurons:  # outputs stay
        with pytest.raises(ValueError, match=r"cores of \d+, \d+ too many"):
            pruned(net, budget, CHANNELS)
        return
    small = sj_prune.compact(pruned(net, budget, CHANNELS), x)
    assert [w.shape[0] for w in weights(small)] == [
        *(min(size, neurons) for size in sizes[1:-1]),
        sizes[-1],
    ]


@pytest.mark.parametrize("budget", [{"fan_in": 4}, {"chip": "xylo_a2"}, {"macs": 0.5}])
def test_blocks_have_one_sparsity_and_no_budget(budget):
    method = methods.Magnitude(sparsity=0.5, interval=1, end=1, structure=masks.NM(2, 4))
    net = linear(16, 8, 4)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"structure=NM\(n=2, m=4\) ends at one, 0\.5, but got"):
        pruned(net, budget, method)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    found = weights(pruned(net, {"sparsity": 0.5}, method))
    assert [int((w != 0).sum(1).max()) for w in found] == [8, 4]


def test_more_layers_than_cores_are_said():
    with pytest.raises(ValueError, match="taken by other layers, one core too few"):
        pruned(convolutions((8,) * 5 + (4,) * 5, pool=False), {"chip": "speck2f"}, CHANNELS, X)


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
