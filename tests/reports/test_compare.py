"""compare() and latency against independent counts; nothing changes in the networks."""

import copy
import re
import time

import pytest
import torch
from scipy.sparse import csr_array
from torch import nn

import sj_prune
from sj_prune import cost, methods
from sj_prune.reports.cost import PICOJOULES_PER_AC, PICOJOULES_PER_MAC
from tests.support.trained_cases import (
    additions,
    batches,
    multiplications,
    parameters,
    snapshot,
    trained_like,
)
from tests.support.trained_cases import assert_untouched as untouched

X = batches(1)[0][0]
LAYERS = ("stem", "conv1", "conv2", "fc1", "fc2")


@pytest.fixture(scope="module")
def pair():
    dense = trained_like()
    net, _ = sj_prune.prune(copy.deepcopy(dense), batches(2), methods.FilterNorm(sparsity=0.5))
    return dense, net, sj_prune.compact(net, X)


def nonzero(net):
    return sum(int(p.count_nonzero()) for p in net.parameters())


def test_rows(pair):
    dense, _, small = pair
    rows = sj_prune.compare(dense, small, X, latency=False).rows
    assert [row.name for row in rows] == list(LAYERS)
    for row in rows:
        weights = [net.get_submodule(row.name).weight for net in (dense, small)]
        assert row.shapes == tuple(tuple(w.shape) for w in weights)
        assert row.weights == tuple(int(w.count_nonzero()) for w in weights)
        positions = 36 if row.name in ("stem", "conv1", "conv2") else 1
        assert row.macs_dense == tuple(w.numel() * positions * 3 for w in weights)
        assert row.macs == tuple(int(w.count_nonzero()) * positions * 3 for w in weights)
    assert rows[1].shapes == ((10, 8, 3, 3), (5, 4, 3, 3))
    for index, net in enumerate((dense, small)):
        assert sum(row.synops[index] for row in rows) == pytest.approx(additions(net, X))


def test_totals(pair):
    dense, masked, small = pair
    totals = sj_prune.compare(dense, small, X, latency=False).totals
    kinds = ("parameters", "nonzero", "macs_dense", "macs", "synops", "events", "energy")
    assert set(totals) == {*kinds, "energy_loihi", "memory", "memory_csr"}
    for index, net in enumerate((dense, small)):
        assert totals["parameters"][index] == parameters(net)
        assert totals["nonzero"][index] == nonzero(net)
        assert totals["macs_dense"][index] == multiplications(net, X)
        assert totals["synops"][index] == pytest.approx(additions(net, X))
        assert totals["synops"][index] > 0
    # A masked network is as large as before, and does the same on dense hardware.
    halfway = sj_prune.compare(masked, small, X, latency=False).totals
    assert halfway["parameters"] == totals["parameters"]
    assert halfway["macs_dense"] == totals["macs_dense"]
    assert halfway["macs"][0] == pytest.approx(halfway["macs"][1]), "zeros not counted"
    assert halfway["nonzero"][0] == pytest.approx(halfway["nonzero"][1])
    assert halfway["synops"][0] == pytest.approx(halfway["synops"][1])


def test_energy(pair):
    """Analog inputs (the image, the sum of the addition) cost analog MACs, spikes SynOps."""
    dense, _, small = pair
    energy = sj_prune.compare(dense, small, X, latency=False).totals["energy"]
    for index, net in enumerate((dense, small)):
        analog = 0
        for name, positions in (("stem", 36), ("fc1", 1)):
            weight = net.get_submodule(name).weight
            analog += int(weight.count_nonzero()) * positions * 3
        expected = PICOJOULES_PER_MAC * analog + PICOJOULES_PER_AC * additions(net, X)
        assert energy[index] == pytest.approx(expected)


def test_memory_is_that_of_sparse_rows_and_of_bits(pair):
    """CSR as SciPy makes it, with column numbers of two bytes; four bits once quantized."""
    _, masked, _ = pair
    small = sj_prune.quantize(copy.deepcopy(masked), 4)
    totals = sj_prune.compare(masked, small, X, latency=False).totals
    weights = [net.get_submodule(name).weight for net in (masked, small) for name in LAYERS]
    half = len(LAYERS)
    for index, (part, bytes_each) in enumerate(((weights[:half], 4), (weights[half:], 0.5))):
        rows = [csr_array(w.detach().flatten(1).numpy()) for w in part]
        assert totals["memory"][index] == sum(w.numel() for w in part) * bytes_each
        expected = sum(m.nnz * (bytes_each + 2) + m.indptr.size * 4 for m in rows)
        assert totals["memory_csr"][index] == expected
    assert totals["memory_csr"][1] < totals["memory_csr"][0]


def test_text(pair):
    dense, _, small = pair
    found = sj_prune.compare(dense, small, X)
    text, markdown = str(found), found.to_markdown()
    for shown in ("10x8x3x3 => 5x4x3x3", "SynOps", "MACs, zeros too", "latency"):
        assert shown in text
        assert shown in markdown
    assert re.search(r"energy: [\d.]+ [pnu]J => ", text)
    assert re.search(r"memory as CSR: [\d.]+ k?B => ", text)
    assert re.search(r"latency: [\d.e+]+ [mu]?s => ", text)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(LAYERS)
    assert all(line.endswith("|") for line in lines)
    before, after = found.totals["parameters"]
    assert f"({100 * (after / before - 1):+.1f} %)" in text
    assert set(found.totals["latency"]) != {0.0}
    assert "latency" not in str(sj_prune.compare(dense, small, X, latency=False))


def test_networks_are_untouched(pair):
    dense, _, small = (copy.deepcopy(net) for net in pair)
    dense.train()
    dense.norm1.eval()
    dense(X)  # carries state
    before, after = snapshot(dense), snapshot(small)
    random = torch.get_rng_state()
    sj_prune.compare(dense, small, X)
    untouched(dense, before)
    untouched(small, after)
    assert torch.equal(torch.get_rng_state(), random)


def test_networks_without_a_common_layer():
    with pytest.raises(ValueError, match="no name in common"):
        sj_prune.compare(trained_like(), nn.Sequential(nn.Linear(6, 2)), X)
    model = sj_prune.PruningWrapper(trained_like(), sj_prune.methods.FilterNorm(sparsity=0.5))
    with pytest.raises(ValueError, match="of a wrapper give model.net"):
        sj_prune.compare(trained_like(), model, X)


# ---- a compact network against SpikingJelly ------------------------------------------------------


def test_compact_network_equals_spikingjelly(pair):
    """Its own counters find what ours do."""
    op_counter = pytest.importorskip("spikingjelly.activation_based.op_counter")
    if not hasattr(op_counter, "SynOpCounter"):
        pytest.skip("this release counts no SynOps")
    for net in (pair[0], pair[2]):
        synops, macs = op_counter.SynOpCounter(), op_counter.MACCounter()
        twin = copy.deepcopy(net).eval()
        with torch.no_grad(), op_counter.DispatchCounterMode([synops, macs]):
            twin(X)
        found = cost.measure(net, X, samples=1).values()
        weights = ("convolution", "addmm", "mm")
        counted = {str(op): n for op, n in macs.records["Global"].items()}
        assert sum(c.synops for c in found) == synops.get_total() > 0
        assert sum(c.macs for c in found) == sum(
            n for op, n in counted.items() if any(w in op for w in weights)
        )
        assert sum(c.synops for c in found) == pytest.approx(6 * additions(net, X))


def test_compact_network_spends_what_was_left_of_the_masked_one(pair):
    _, masked, small = pair
    found = [
        {
            name: (c.synops, c.macs, c.total_macs, c.parameters_nonzero)
            for name, c in cost.measure(net, X).items()
        }
        for net in (masked, small)
    ]
    assert found[0] == found[1]


def test_macs_by_brute_force():
    net = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Flatten())
    with torch.no_grad():
        net[0].weight[0, 0] = 0
    x = (torch.rand(5, 4, 7, 7) < 0.3).float()
    found = cost.measure(net, x, samples=5)["0"]
    visits = sum(1 for _ in range(6) for _ in range(2) for _ in range(9) for _ in range(4 * 4))
    assert found.total_macs_dense == visits
    assert found.total_macs == visits - 9 * 16
    assert found.macs == 0  # on spikes


# ---- latency -------------------------------------------------------------------------------------


class Sleeps(nn.Module):
    """Takes the times given, and remembers how it was called."""

    def __init__(self, times):
        super().__init__()
        self.layer, self.times, self.calls = nn.Linear(1, 1), list(times), []

    def forward(self, x, y=None):
        time.sleep(self.times.pop(0))
        self.calls.append((self.training, torch.is_grad_enabled(), y))
        return self.layer(x)


def test_latency_is_the_median_after_the_warm_up():
    net = Sleeps([0.3, 0.02, 0.2, 0.04]).train()
    found = cost.latency(net, (torch.ones(1), 5), repeats=3, warm_up=1)
    assert 0.04 <= found < 0.15
    assert net.calls == [(False, False, 5)] * 4
    assert net.training


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warm_up": -1}])
def test_latency_needs_a_repeat(wrong):
    with pytest.raises(ValueError, match="repeats of at least 1"):
        cost.latency(nn.Linear(1, 1), torch.ones(1), **wrong)


def test_latency_leaves_the_network_as_it_was():
    net = sj_prune.to_recording(trained_like(drop=0.5)).train()
    for node in (net.node0, net.node1):
        node.record_in_eval = True
    net(X)
    before, counts = snapshot(net), [n.activity.count for n in (net.node0, net.node1)]
    random = torch.get_rng_state()
    assert cost.latency(net, X, repeats=2) > 0
    untouched(net, before)
    assert [n.activity.count for n in (net.node0, net.node1)] == counts
    assert net.node0.recording
    assert torch.equal(torch.get_rng_state(), random)


def test_latency_starts_from_reset_neurons():
    """A state of another batch size would fail."""
    net = trained_like()
    net(X)
    cost.latency(net, X[:, :2], repeats=2)
    assert net.node0.v.shape[0] == 6


def test_latency_when_the_forward_fails():
    net = trained_like().train()
    before = snapshot(net)
    with pytest.raises(Exception, match=r"channels|size"):
        cost.latency(net, torch.rand(3, 6, 3, 6, 6))
    untouched(net, before)
