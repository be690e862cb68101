"""DPAP against its rule, from the spikes that the network shows while it trains."""

import math

import numpy as np
import pytest
import torch

from sj_prune import methods
from sj_prune.methods.dpap import trace
from sj_prune.run.scores import scores
from sj_prune.run.update import would_drop
from tests.support.channel_cases import CONVS, NODES, NORMS, dpap, pruner
from tests.support.pruning_cases import same, train
from tests.support.reference import Bare, follows


def by_hand(spikes):
    """Return the mean over time of the trace, summed over the map, of every sample and channel."""
    steps, samples, channels = spikes.shape[:3]
    found = np.zeros((samples, channels))
    r = np.zeros(spikes.shape[1:])
    for t in range(steps):
        r = 0.5 * r + spikes[t]
        found += r.reshape(samples, channels, -1).sum(-1) / steps
    return found


def scaled(values):
    return (values - values.min()) / ((values.max() - values.min()) or 1.0)


def test_trace():
    spikes = (torch.rand(5, 3, 4, 2, 2) < 0.4).double()
    np.testing.assert_allclose(trace(spikes).numpy(), by_hand(spikes.numpy()))
    np.testing.assert_allclose(trace(spikes[..., 0, 0]).numpy(), by_hand(spikes[..., 0, 0].numpy()))


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam"])
def test_dpap(optimizer):
    """Three conv layers in a row: the input of each is what the neurons before it fired."""
    patience, interval, begin, end = 0.7, 2, 2, 34
    method = dpap(patience=patience, interval=interval, begin=begin, end=end)
    model, opt = pruner(method, optimizer)
    shown = {}
    for norm, node in zip(NORMS, NODES, strict=True):
        model.net.get_submodule(node).register_forward_hook(
            lambda _, inputs, out, norm=norm: shown.update({norm: out.detach().numpy()})
        )
    total, b = ({n: 0.0 for n in NORMS} for _ in range(2))
    r = {n: patience for n in NORMS}
    alive = {n: torch.ones_like(model.masks[n]) for n in ()}
    seen, updates = 0, []
    for k in range(1, end + 3):
        train(model, opt, 1, start=k)
        if k > end:
            continue  # nothing is added up for no update
        c = {n: by_hand(shown[n]) for n in NORMS}
        seen += len(c["1"])
        before = {"1": np.ones(len(c["1"])), "4": c["1"].sum(1), "7": c["4"].sum(1)}
        for n in NORMS:
            total[n] = total[n] + c[n].sum(0)
            post = c[n] * (c[n] - total[n] / seen)
            b[n] = b[n] + (post * before[n][:, None]).sum(0)
        if k <= begin or (k - begin) % interval:
            continue
        t = (k - begin) // interval
        for n in NORMS:
            d = scaled(b[n]) * scaled(total[n])
            v = scaled(np.minimum(d, np.quantile(d, 0.75)))
            delta = 2 * v - 0.65
            delta = delta + 5 * (delta > 0)
            new = 0.999 * r[n] + delta * math.exp(-((t - 1) // 12))
            kept = alive.get(n, torch.ones(len(new), dtype=torch.bool))
            r[n] = np.where(kept.numpy(), new, r[n])  # of those pruned it means nothing
            now = kept & torch.from_numpy(new >= 0)
            assert model.masks[n].equal(now), (k, n)
            alive[n] = now
        updates.append(sum(int(mask.sum()) for mask in alive.values()))
    assert updates[0] == 25
    assert len(set(updates)) > 1
    assert [record.step for record in model.history] == list(range(4, end + 1, 2))


def test_an_epoch_is_asked_for():
    with pytest.raises(ValueError, match=r"Expected interval, the optimizer steps of one epoch"):
        methods.DPAP(end=100)


def test_a_sparsity_that_is_asked_for_is_exact():
    model, optimizer = pruner(dpap(patience=100.0))
    train(model, optimizer, 3)
    assert all(mask.all() for mask in model.masks.values())  # nobody has run out of patience
    train(model, optimizer, 1, start=4)
    with model.recording():
        train(model, [], 1)
    model.update_masks(0.4)
    assert sum(int(model.masks[n].sum()) for n in NORMS) == 15


def test_a_score_that_is_asked_for_twice_is_the_same():
    """Asking ages nobody: only an update that is installed does."""
    model, optimizer = pruner(dpap(patience=0.5))
    train(model, optimizer, 1)
    session = model.session
    assert same(would_drop(session), would_drop(session))
    drops = [{each.name: each.drop for each in scores(model.net, session.run)} for _ in range(3)]
    assert same(drops[0], drops[1])
    assert same(drops[0], drops[2])
    assert all("awake" not in memory for memory in session.run.memory.values())
    model.update_masks(0.4)
    for name, conv in zip(NORMS, CONVS, strict=True):
        assert session.run.memory[conv]["awake"].equal(drops[0][name].to(torch.float64))


# ---- synapses ------------------------------------------------------------------------------------


def synapses(**settings):
    return methods.DPAPSynapses(
        **{"sparsity": 0.3, "patience": 2.0, "interval": 2, "end": 8, **settings}
    )


def spikes_of(net, names):
    """Return a dictionary that holds what these neurons fired in the last forward."""
    shown = {}
    for name in names:
        net.get_submodule(name).register_forward_hook(
            lambda _, inputs, out, name=name: shown.update({name: out.detach().numpy()})
        )
    return shown


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_synapses(optimizer):
    """One linear layer has neurons behind it, and those of a map before it; 8 survives by b."""
    end, known, records = 14, {}, []
    r, b, total, seen = np.full((8, 54), 2.0), np.zeros((8, 54)), np.zeros(8), [0]

    def start(bare, model):
        known["spikes"] = spikes_of(bare.net, ["5", "9"])

    def advance(bare: Bare, k):
        nonlocal b, total
        bare.backward(k)
        if k <= end:
            before, c = (by_hand(known["spikes"][n]) for n in ("5", "9"))
            seen[0] += len(c)
            total = total + c.sum(0)
            post = c * (c - total / seen[0])
            b = b + post.T @ before.repeat(9, axis=1)
        if k <= end and k % 2 == 0:
            d = scaled(b)
            v = scaled(np.minimum(d, np.quantile(d, 0.75)))
            delta = 2 * v - 1.5
            delta = delta + 2 * (delta > 0)
            new = 0.999 * r + delta * math.exp(-((k // 2 - 1) // 13))
            kept = bare.masks["8"].numpy()
            r[kept] = new[kept]
            bare.masks["8"] = torch.from_numpy(kept & (new >= 0))
            records.append(int(bare.masks["8"].sum()))
            bare.hold()
        bare.step()

    model, _ = follows(synapses(end=end), optimizer, 16, advance, start=start)
    assert len(set(records)) > 2
    assert 0 < records[-1] < 432
    assert model.masks["0"].all()
    assert model.session.run.masks.uncounted == {"0", "3", "10"}
