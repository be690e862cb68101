"""A foreign default device: every tensor of ours is made where the network is, or on the CPU.

"meta" holds no values, so whatever is made there by mistake raises, or tells nothing.
"""

import copy
from contextlib import contextmanager

import pytest
import torch

from sj_prune import PruningWrapper, compact, methods, prune
from sj_prune.compaction import compact_with_optimizer, load_compact, save_compact
from sj_prune.masks import Channels
from tests.support.channel_cases import CHANNEL_METHODS, channel_net
from tests.support.pruning_cases import (
    batch,
    build,
    criticality,
    loss_of,
    magnitude,
    rigl,
    same,
    same_state,
    snapshot,
)


@pytest.fixture(params=["cpu", "meta"])
def device(request):
    return request.param


@contextmanager
def default(name):
    """The default device inside a block."""
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


METHODS = {
    **{name: (channel_net, row.make) for name, row in CHANNEL_METHODS.items()},
    "SCA-multiples": (
        channel_net,
        lambda: CHANNEL_METHODS["SCA"].make(structure=Channels(linear=False, multiple=2)),
    ),
    "Magnitude": (build, magnitude),
    "Criticality": (build, criticality),
    "RigL": (build, rigl),
    "GradR": (build, lambda: methods.GradR(sparsity=0.9, alpha=0.05, interval=2, end=9)),
}


def trained(name, device, monkeypatch):
    """Return what 8 steps, a report, a checkpoint and a finalized network come to."""
    make, method = METHODS[name]
    net = make()
    batches = {k: batch(k) for k in range(1, 9)}
    monkeypatch.setattr("pruning_cases.batch", batches.__getitem__)
    with default(device):
        model = PruningWrapper(net, method(), example_input=batches[1][0])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model.attach(optimizer)
        for k in batches:
            optimizer.zero_grad()
            loss_of(model, k).backward()
            optimizer.step()
        rows = model.report(batches[1][0]).rows
        text = str(model.explain())
        state = copy.deepcopy(model.state_dict())
        twin = PruningWrapper(make_on_cpu(make), method(), example_input=batches[1][0])
        twin.load_state_dict(state)
        assert same_state(twin.state_dict(), state)
        masks = model.masks.masks
        net = model.finalize()
    return snapshot(net), masks, [(row.kept, row.firing_rate, row.synops) for row in rows], text


def make_on_cpu(make):
    with torch.device("cpu"):
        return make()


@pytest.mark.parametrize("name", METHODS)
def test_training_is_the_same(name, monkeypatch):
    weights, masks, rows, text = trained(name, "meta", monkeypatch)
    expected = trained(name, "cpu", monkeypatch)
    assert same(weights, expected[0])
    assert same(masks, expected[1])
    assert (rows, text) == expected[2:]
    assert any(not mask.all() for mask in masks.values())


@pytest.mark.parametrize("budget", [None, {"macs": 0.6}, {"synops": 0.6}, {"parameters": 0.6}])
@pytest.mark.parametrize(
    "method",
    [
        methods.FilterNorm(),
        methods.APoZ(structure=Channels(multiple=2)),
        methods.TaylorChannels(),
        methods.Criticality(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_pruning_at_once_is_the_same(method, budget):
    found = []
    for device in ("meta", "cpu"):
        net = make_on_cpu(channel_net)
        with default(device):
            net, report = prune(net, [batch_on_cpu(1), batch_on_cpu(2)], method, budget=budget)
        found.append((snapshot(net), report.totals))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def batch_on_cpu(index):
    with torch.device("cpu"):
        return batch(index)


def test_compaction_is_the_same(device, tmp_path):
    net = channel_net()
    x_seq = batch(1)[0]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(x_seq).sum().backward()
    optimizer.step()
    prune(net, [x_seq], methods.FilterNorm(sparsity=0.5))
    expected = snapshot(compact(net, x_seq))
    with default(device):
        assert same(snapshot(compact(net, x_seq)), expected)
        small, sliced = compact_with_optimizer(net, optimizer, x_seq)
        assert all(v["momentum_buffer"].device.type == "cpu" for v in sliced.state.values())
        save_compact(tmp_path / "small.pt", small)
        loaded = load_compact(tmp_path / "small.pt", make_on_cpu(channel_net))
        assert same(snapshot(loaded), expected)
