"""The options of Criticality that are ours: recomputed step by step from a stock network."""

import copy
import io
import math

import pytest
import torch
from spikingjelly.activation_based import functional

import sj_prune.run.update
from sj_prune import PruningWrapper, methods
from sj_prune.masks import Uniform
from sj_prune.methods.identity import check_same, describe
from tests.methods.test_criticality import LAYERS, NEURON_OF, TOTAL, scores_by_hand
from tests.support.channel_cases import NORMS, pruner
from tests.support.processes import run_in_ranks
from tests.support.pruning_cases import (
    OPTIMIZERS,
    batch,
    build,
    criticality,
    frozen,
    loss_of,
    same,
    same_state,
    slots_of,
    snapshot,
    train,
    wrapped,
)

R, SPARSITY, UPDATES = 0.2, 0.6, 4
OPTIONS = {
    "published": {},
    "keeps_value": {"keeps_value": True},
    "layer": {"normalize": "layer"},
    "grace": {"grace": 1},
    "together": {"keeps_value": True, "normalize": "layer", "grace": 2},
}
RANKED = {name: options for name, options in OPTIONS.items() if name != "published"}


def method(**options):
    return criticality(sparsity=SPARSITY, regrow=R, interval=2, end=8, **options)


def spied(monkeypatch):
    """Return the list of what every update to come keeps and grows, by layer."""
    seen, original = [], sj_prune.run.update.prune_and_regrow

    def called(layers, *args, **kwargs):
        found = original(layers, *args, **kwargs)
        seen.append({x.name: u for x, u in zip(layers, found, strict=True)})
        return found

    monkeypatch.setattr(sj_prune.run.update, "prune_and_regrow", called)
    return seen


class ByHand:
    """A stock network that is trained and pruned by the rules, ties left to what is compared."""

    def __init__(self, optimizer, *, keeps_value=False, normalize=None, grace=0):
        self.net = build().double()
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        self.weights = {n: self.net.get_submodule(n).weight for n in LAYERS}
        self.masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in self.weights.items()}
        self.age = {n: torch.full(w.shape, -1) for n, w in self.weights.items()}
        self.keeps_value, self.normalize, self.grace = keeps_value, normalize, grace

    def step(self, k, chosen):
        x_seq, _ = batch(k)
        functional.reset_net(self.net)
        scores = scores_by_hand(self.net, [x_seq.double()]) if chosen is not None else None
        self.optimizer.zero_grad()
        loss_of(self.net, k, torch.float64).backward()
        for n, w in self.weights.items():
            w.grad[~self.masks[n]] = 0.0
        if chosen is not None:
            self.check(k // 2, scores, chosen)
            self.take(k // 2, chosen)
        self.optimizer.step()
        self.hold()

    def check(self, t, scores, chosen):
        """What an update chose has the highest scores, over all or within each layer."""
        keep = round((1 - SPARSITY * (1 - (1 - t / UPDATES) ** 3)) * TOTAL)
        drop = {n: self.drop_score(n, t) for n in LAYERS}
        alive = sorted(
            ((s, n) for n in LAYERS for s in drop[n][self.masks[n]].tolist()), reverse=True
        )
        counts = {n: sum(name == n for _, name in alive[:keep]) for n in LAYERS}
        pools = [("10",), *((n,) for n in NEURON_OF)] if self.normalize else [("10",), NEURON_OF]
        for pool in pools:
            kept = sum(counts[n] for n in pool)
            new = 0 if pool == ("10",) else math.floor(R * kept)
            self.highest(pool, drop, self.masks, {n: chosen[n].survivors for n in pool}, kept - new)
            candidates = {n: ~chosen[n].survivors for n in pool}
            grow = {n: self.grow_score(n, scores) for n in pool}
            self.highest(pool, grow, candidates, {n: chosen[n].grown for n in pool}, new)

    @staticmethod
    def highest(pool, score, among, chosen, number):
        mine = torch.cat([score[n][among[n]] for n in pool]).sort(descending=True).values[:number]
        theirs = torch.cat([score[n][chosen[n]] for n in pool]).sort(descending=True).values
        assert not any((chosen[n] & ~among[n]).any() for n in pool)
        torch.testing.assert_close(theirs, mine, rtol=1e-9, atol=1e-12)

    def drop_score(self, n, t):
        young = (self.age[n] >= 0) & (t - self.age[n] <= self.grace)
        return self.weights[n].detach().abs().masked_fill(young, math.inf)

    def grow_score(self, n, scores):
        """Return criticality; equal ones are told apart by `|w|`."""
        weight = self.weights[n].detach()
        if n not in NEURON_OF:
            return torch.zeros_like(weight)
        score = scores[NEURON_OF[n]].view(-1, *[1] * (weight.ndim - 1)).expand_as(weight)
        return score + 1e-7 * weight.abs()

    def take(self, t, chosen):
        for n, w in self.weights.items():
            new = chosen[n].grown & ~self.masks[n] if self.keeps_value else chosen[n].grown
            self.fill(w, new)
            self.masks[n] = chosen[n].survivors | chosen[n].grown
            self.age[n][chosen[n].grown] = t
            w.grad[~self.masks[n] | new] = 0.0
        self.hold()

    def hold(self):
        for n, w in self.weights.items():
            self.fill(w, ~self.masks[n])

    def fill(self, weight, where):
        for tensor in (weight.data, *slots_of(self.optimizer, weight).values()):
            tensor[where] = 0.0


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam"])
@pytest.mark.parametrize("name", OPTIONS)
def test_four_updates_are_those_by_hand(name, optimizer, monkeypatch):
    model, mine = wrapped(method(**OPTIONS[name]), optimizer, net=build().double())
    seen, hand = spied(monkeypatch), ByHand(optimizer, **OPTIONS[name])
    again = 0
    for k in range(1, 11):
        before = model.masks.masks
        train(model, mine, 1, start=k, dtype=torch.float64)
        due = k % 2 == 0 and k <= 8
        assert len(seen) == min(k // 2, 4)
        hand.step(k, seen[-1] if due else None)
        if due:
            again += sum(int((u.grown & before[n]).sum()) for n, u in seen[-1].items())
        for n, weight in hand.weights.items():
            found = model.masks.weight(n)
            assert model.masks[n].equal(hand.masks[n])
            torch.testing.assert_close(found, weight, rtol=1e-8, atol=1e-10)
            for key, slot in slots_of(hand.optimizer, weight).items():
                torch.testing.assert_close(mine.state[found][key], slot, rtol=1e-8, atol=1e-10)
    assert again > 0  # or keeps_value would say nothing
    assert all(sum(record.grown.values()) > 0 for record in model.history)


@pytest.mark.parametrize("name", RANKED)
def test_every_option_changes_something(name):
    found = []
    for options in ({}, OPTIONS[name]):
        model, optimizer = wrapped(method(**options))
        train(model, optimizer, 8)
        found.append(snapshot(model.net))
    assert not same(*found)


def test_within_layers_densities_are_those_of_magnitude():
    """One update from the same weights: each layer keeps what the global threshold leaves it."""
    kept = {}
    for name, made in {
        "magnitude": methods.Magnitude(sparsity=SPARSITY, interval=2, end=8),
        "layer": method(normalize="layer"),
        "published": method(),
    }.items():
        model, optimizer = wrapped(made)
        train(model, optimizer, 2)
        kept[name] = model.masks.kept()
    assert kept["layer"] == kept["magnitude"] != kept["published"]


def test_channels_within_layers_keep_what_gamma_leaves():
    kept = {}
    for name, made in {
        "slimming": methods.NetworkSlimming(sparsity=0.5, end=4),
        "layer": methods.CriticalityChannels(sparsity=0.5, regrow=0.4, end=4, normalize="layer"),
        "published": methods.CriticalityChannels(sparsity=0.5, regrow=0.4, end=4),
    }.items():
        model, optimizer = pruner(made)
        train(model, optimizer, 4)
        kept[name] = {n: int(model.masks[n].sum()) for n in NORMS}
        if name == "layer":
            assert sum(model.history[-1].grown.values()) > 0
    assert kept["layer"] == kept["slimming"] != kept["published"]
    within = methods.CriticalityChannels(allocation=Uniform(), normalize="layer")
    assert within.plan() == methods.CriticalityChannels(allocation=Uniform()).plan()


def test_grace_lasts_as_many_updates_as_asked(monkeypatch):
    for grace in (0, 1, 2):
        seen = spied(monkeypatch)
        model, optimizer = wrapped(
            criticality(sparsity=0.5, regrow=0.1, interval=1, end=8, grace=grace)
        )
        train(model, optimizer, 8)
        lost = [0, 0, 0]  # of what an update has grown, in the first, second, third after it
        for first, *later in zip(seen, seen[1:], seen[2:], seen[3:], strict=False):
            for n, update in first.items():
                held = update.grown
                for age, other in enumerate(later):
                    lost[age] += int((held & ~other[n].survivors).sum())
                    held = held & other[n].survivors
        assert [number > 0 for number in lost[: grace + 1]] == [False] * grace + [True]
        monkeypatch.undo()


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam"])
@pytest.mark.parametrize("name", RANKED)
def test_resumes_bit_identically(name, optimizer):
    model, mine = wrapped(method(**OPTIONS[name]), optimizer)
    train(model, mine, 5)
    file = io.BytesIO()
    torch.save((model.state_dict(), mine.state_dict()), file)
    train(model, mine, 5, start=6)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, fresh = wrapped(method(**OPTIONS[name]), optimizer, net=build(9), seed=5)
    other.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    train(other, fresh, 5, start=6)
    assert same(snapshot(model.net), snapshot(other.net))
    assert same(model.masks.masks, other.masks.masks)
    assert same_state(frozen(mine), frozen(fresh))
    assert model.history == other.history


def test_two_ranks_agree(tmp_path):
    first, second = run_in_ranks(2, "own_plan", "trained_by_criticality", tmp_path)
    assert first == second
    assert len(set(first["hashes"])) == 7


@pytest.mark.parametrize("name", RANKED)
def test_options_are_part_of_the_identity(name):
    plain, changed = method(), method(**OPTIONS[name])
    with pytest.raises(ValueError, match=r"Expected a checkpoint with method\."):
        check_same(plain, describe(changed))
    saved = describe(plain)
    for option in ("keeps_value", "normalize", "grace"):
        del saved[option]  # as it was before there were any
    check_same(plain, saved)
    with pytest.raises(ValueError, match=r"Expected a checkpoint with method\."):
        check_same(changed, saved)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"keeps_value": 1}, TypeError, "Expected keeps_value to be True or False but got 1"),
        ({"normalize": "net"}, ValueError, r"Expected normalize to be one of .* but got 'net'"),
        ({"grace": -1}, ValueError, "Expected grace to be at least 0 but got -1"),
        ({"grace": 1.5}, TypeError, "Expected grace to be an integer but got 1.5"),
    ],
)
def test_wrong_options(wrong, error, message):
    net = build()
    weights = copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=message):
        PruningWrapper(net, criticality(**wrong))
    assert same(weights, net.state_dict())
