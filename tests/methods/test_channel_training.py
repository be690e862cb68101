"""Channel methods in a wrapper, against a plain loop and what the layers really compute."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_prune import PruningWrapper, methods, to_recording
from sj_prune.masks import Global
from tests.support.channel_cases import (
    CHANNEL_METHODS,
    CLASSES,
    CONVS,
    NODES,
    NORMS,
    TOTAL,
    T,
    channel_net,
    flat,
    lif,
    pruner,
    rates,
    sca,
    units_kept,
)
from tests.support.pruning_cases import OPTIMIZERS, batch, loss_of, same, snapshot, train
from tests.support.views import drop_score, layer_view

EVERY = pytest.mark.parametrize("name", CHANNEL_METHODS)


# ---- counts --------------------------------------------------------------------------------------


def test_network_fires():
    """Else the tests below would pass for nothing."""
    model, _ = pruner(sca())
    for rate in rates(model, 1).values():
        assert (rate > 0.01).all()
        assert (rate < 0.99).all()


@pytest.mark.parametrize("growth", ["gradient", "criticality", "random", "score"])
@pytest.mark.parametrize("score", ["code", "paper", "abs_charge", "firing_rate", "criticality"])
def test_sca_is_exact_after_every_update(score, growth):
    model, optimizer = pruner(sca(score=score, growth=growth))

    def after(k):
        pruned = round(0.4 * TOTAL) if k >= 2 else 0
        assert int((~units_kept(model)).sum()) == pruned
        assert model.sparsity()["total"] == pytest.approx(pruned / TOTAL)

    train(model, optimizer, 10, after=after)
    assert [record.step for record in model.history] == [2, 4, 6, 8]
    assert all(sum(r.grown.values()) == round(0.2 * TOTAL) for r in model.history)
    assert all(min(r.kept.values()) >= 1 for r in model.history)


@EVERY
@pytest.mark.parametrize("settings", [{"regrow": 0.0}, {"regrow": 0.2, "growth": "gradient"}])
def test_every_method_reaches_its_sparsity(name, settings):
    row = CHANNEL_METHODS[name]
    model, optimizer = pruner(row.make(**settings))
    train(model, optimizer, 9)
    sparsity = row.make().sparsity
    # Layers without norm, the classifier's inputs among them, follow from the masks of the others.
    if row.emergent:
        assert 0 < int(units_kept(model).sum()) < TOTAL
    else:
        assert int(units_kept(model).sum()) == round((1 - sparsity) * TOTAL)
    grown = sum(sum(record.grown.values()) for record in model.history)
    assert (grown > 0) == (settings["regrow"] > 0)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_prune_only_and_regrow_only_are_two_lines():
    """Which half does the work: either half can be exchanged for chance."""

    def masks(method):
        model, optimizer = pruner(method)
        train(model, optimizer, 8)
        return model

    both = sca()
    chosen = {
        "both": both,
        "prune only": sca(regrow=0.0),
        "growth by chance": sca(growth="random"),
        "pruned by chance": methods.RandomChannels(
            sparsity=0.4, regrow=0.2, growth="gradient", interval=2, end=8, allocation=Global()
        ),
    }
    models = {name: masks(method) for name, method in chosen.items()}
    found = {name: units_kept(model) for name, model in models.items()}
    assert {int(kept.sum()) for kept in found.values()} == {round(0.6 * TOTAL)}
    assert len({tuple(kept.tolist()) for kept in found.values()}) == 4
    assert not any(sum(r.grown.values()) for r in models["prune only"].history)


# ---- one shot: slimming, criticality, GReg, Taylor -----------------------------------------------


def gamma_terms(model, optimizer, steps):
    """Return per step what the method adds to every gamma's gradient, and the gammas before."""
    terms, gammas = [], []
    norms = [model.net.get_submodule(name) for name in NORMS]
    seen = {}
    handle = optimizer.register_step_pre_hook(
        lambda *_: seen.update(after=[norm.weight.grad.clone() for norm in norms])
    )
    for k in range(1, steps + 1):
        optimizer.zero_grad()
        loss_of(model, k).backward()
        before = [norm.weight.grad.clone() for norm in norms]
        gammas.append(torch.cat([norm.weight.detach().clone() for norm in norms]))
        optimizer.step()
        terms.append(torch.cat(seen["after"]) - torch.cat(before))
    handle.remove()
    return terms, gammas


@pytest.mark.parametrize("kind", [methods.NetworkSlimming, methods.CriticalityChannels])
def test_slimming_penalty_stops_at_the_update(kind):
    model, optimizer = pruner(kind(sparsity=0.4, regrow=0.2, end=4, l1=0.125), "sgd")
    terms, gammas = gamma_terms(model, optimizer, 7)
    kept = units_kept(model)
    for k, (term, gamma) in enumerate(zip(terms, gammas, strict=True), start=1):
        expected = 0.125 * gamma.sign() * (k < 4)
        torch.testing.assert_close(term[kept], expected[kept], rtol=0, atol=1e-6)
    assert [record.step for record in model.history] == [4]


def test_slimming_takes_the_smallest_gammas_of_all_layers():
    model, optimizer = pruner(methods.NetworkSlimming(sparsity=0.4, end=3))
    train(model, optimizer, 2)
    gammas = torch.cat([model.net.get_submodule(n).weight.detach().abs() for n in NORMS])
    train(model, optimizer, 1, start=3)
    assert units_kept(model).nonzero().flatten().tolist() == sorted(
        gammas.argsort(descending=True)[: round(0.6 * TOTAL)].tolist()
    )


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_criticality_channels_is_algorithm_2(aggregate):
    """Prune by |gamma| to s + r(1 - s), bring the most critical back; they keep all they had."""
    s, r = 0.512, 0.3
    net = channel_net()
    model = PruningWrapper(
        net,
        methods.CriticalityChannels(end=3, aggregate=aggregate, sparsity=s, regrow=r),
        example_input=batch(0)[0],
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model.attach(optimizer)
    critical = {norm: [] for norm in NORMS}
    for norm, node in zip(NORMS, NODES, strict=True):
        net.get_submodule(node).register_forward_pre_hook(
            lambda _, inputs, norm=norm: critical[norm].append(inputs[0].detach().double())
        )
    first = snapshot(net)
    train(model, optimizer, 3)
    keep = round((1 - s) * TOTAL)
    k = math.floor(r * keep)
    gammas = torch.cat([first[f"{norm}.weight"].abs() for norm in NORMS]).tolist()
    scores = torch.cat([criticality(critical[norm], aggregate) for norm in NORMS]).tolist()
    order = sorted(range(TOTAL), key=lambda i: -gammas[i])
    survivors, pruned = order[: keep - k], order[keep - k :]
    grown = sorted(pruned, key=lambda i: -scores[i])[:k]
    assert units_kept(model).nonzero().flatten().tolist() == sorted(survivors + grown)
    assert sum(model.history[0].grown.values()) == k > 0
    for norm, conv in zip(NORMS, CONVS, strict=True):
        mask = model.masks[norm]
        for attribute in ("weight", "bias"):
            value = getattr(net.get_submodule(norm), attribute)
            assert value[mask].equal(first[f"{norm}.{attribute}"][mask])
        assert net.get_submodule(conv).weight.equal(first[f"{conv}.weight"])


def criticality(currents, aggregate):
    """METHODS section 1: time mean, then the map, then samples; ATan(2), whose peak is 1."""
    total, samples = 0.0, 0
    for x_seq in currents:
        v, mean = torch.zeros_like(x_seq[0]), 0.0
        for x in x_seq:
            h = v - v / (4 / 3) + x
            mean = mean + 1 / (1 + (math.pi * (h - 1.0)) ** 2) / T
            v = torch.where(h >= 1.0, 0.0, h)
        per_map = mean.flatten(2)
        per_map = per_map.amax(2) if aggregate == "max" else per_map.mean(2)
        total, samples = total + per_map.sum(0), samples + x_seq.shape[1]
    return total / samples


@pytest.mark.parametrize("variant", [1, 2])
def test_greg_shrinks_exactly_what_it_removes(variant):
    method = methods.GReg(
        sparsity=0.5,
        end=30,
        variant=variant,
        every=1,
        delta=0.5,
        ceiling=4.0,
        pick_delta=0.1,
        pick_ceiling=0.3,
    )
    net = channel_net()
    model, optimizer = pruner(method, "sgd", net=net)
    choice = 1 if variant == 1 else 4
    train(model, optimizer, choice - 1)
    smallest = [smallest_half(net.get_submodule(conv).weight) for conv in CONVS]
    train(model, optimizer, 29 - choice + 1, start=choice)
    assert model.history == []
    assert units_kept(model).all()
    chosen = [model.session.run.memory[conv]["chosen"] for conv in CONVS]
    assert all(map(torch.equal, chosen, smallest))
    plain = plain_greg(variant, chosen)
    for conv, picked in zip(CONVS, chosen, strict=True):
        weight, other = (n.get_submodule(conv).weight.detach() for n in (net, plain))
        torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-6)
        norms = weight.flatten(1).norm(dim=1)
        assert norms[picked].max() < 0.5 * norms[~picked].min()
    train(model, optimizer, 1, start=30)
    assert [model.masks[norm].equal(~c) for norm, c in zip(NORMS, chosen, strict=True)] == [
        True
    ] * 3
    weights = snapshot(net)
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 2, start=31)
    assert all(weights[f"{c}.weight"].equal(net.get_submodule(c).weight) for c in CONVS)


def plain_greg(variant, chosen):
    """Return the network after 29 steps of a plain loop with the factors written out."""
    # The wrapper's neurons: those of an old SpikingJelly round otherwise, which training amplifies.
    net = to_recording(channel_net())
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    for k in range(1, 30):
        optimizer.zero_grad()
        loss_of(net, k).backward()
        if variant == 1:
            factors = (0.0, min(4.0, 0.5 * k))
        elif k < 4:  # all alike, before the choice
            factors = (0.1 * k, 0.1 * k)
        else:
            factors = (0.0, min(4.0, 0.3 + 0.5 * (k - 3)))
        for conv, picked in zip(CONVS, chosen, strict=True):
            weight = net.get_submodule(conv).weight
            for c, one in enumerate(picked.tolist()):
                weight.grad[c] += factors[one] * weight.detach()[c]
        optimizer.step()
    return net


def smallest_half(weight):
    """Uniform: half of each layer, 4 of 8 and 5 of 10; 7 is rounded so that 12 of 25 stay."""
    l1 = weight.detach().abs().flatten(1).sum(1)
    dropped = {8: 4, 10: 5, 7: 4}[len(l1)]
    mask = torch.zeros(len(l1), dtype=torch.bool)
    mask[l1.argsort()[:dropped]] = True
    return mask


@pytest.mark.parametrize("batches", [None, 2])
def test_taylor_scores_the_window_before_each_update(batches):
    method = methods.TaylorChannels(sparsity=0.6, interval=3, end=6, batches=batches)
    model = PruningWrapper(channel_net(), method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.attach(optimizer)
    squares = []
    for k in range(1, 7):
        optimizer.zero_grad()
        loss_of(model, k).backward()
        norms = [model.net.get_submodule(name) for name in NORMS]
        squares.append(
            [(n.weight.grad * n.weight + n.bias.grad * n.bias).detach().square() for n in norms]
        )
        before = model.masks.masks
        optimizer.step()
        if k % 3:
            continue
        window = squares[-(batches or 3) :]
        assert (flat(before) & ~units_kept(model)).any()
        for i, norm in enumerate(NORMS):
            score = sum(step[i] for step in window) / len(window)
            mask = model.masks[norm]
            dropped = before[norm] & ~mask
            assert not dropped.any() or score[dropped].max() <= score[mask].min()


# ---- layers without norm, or without neurons -----------------------------------------------------


def bare_net(neurons=True):
    """Two linear layers with biases and no norm, a neuron behind the first alone if any."""
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Flatten(),
        layer.Linear(72, 12),
        lif() if neurons else nn.ReLU(),
        layer.Linear(12, CLASSES),
    )
    functional.set_step_mode(net, "m")
    nn.init.uniform_(net[1].bias, 0.2, 0.8)
    return net


BARE = ["FilterNorm-1", "GReg-1", "APoZ", "TaylorChannels", "RandomChannels"]


@pytest.mark.parametrize("name", BARE)
def test_layers_without_norm(name):
    net = bare_net()
    model, optimizer = pruner(CHANNEL_METHODS[name].make(regrow=0.2), net=net)
    train(model, optimizer, 10)
    mask = model.masks["1"]
    assert int(mask.sum()) == 6
    assert not net[1].weight[~mask].any()
    assert not net[1].bias[~mask].any()


def test_taylor_counts_the_bias():
    """Of a layer without norm the whole output is gated, bias and all."""
    model, optimizer = pruner(methods.TaylorChannels(end=4), "sgd", net=bare_net())
    optimizer.param_groups[0]["lr"] = 0.0
    fc, expected = model.net[1], 0.0
    for k in (1, 2, 3):
        optimizer.zero_grad()
        loss_of(model, k).backward()
        gate = (fc.weight.grad * fc.weight).sum(1) + fc.bias.grad * fc.bias
        expected = expected + gate.detach().double().square() / 3
        optimizer.step()
    found = drop_score(model.method, layer_view(model, "1"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)


def test_activity_without_neurons_is_explained():
    model, optimizer = pruner(methods.APoZ(end=1), net=bare_net(neurons=False))
    with pytest.raises(ValueError, match="APoZ scores neurons, and none that records follows"):
        train(model, optimizer, 1)


def test_slimming_without_norms_is_explained():
    model, optimizer = pruner(methods.NetworkSlimming(end=1), net=bare_net())
    with pytest.raises(ValueError, match="NetworkSlimming scores gamma, and no norm follows"):
        train(model, optimizer, 1)


# ---- as any method -------------------------------------------------------------------------------


@EVERY
def test_training_is_reproducible_to_the_bit(name):
    def run(seed=0):
        model, optimizer = pruner(CHANNEL_METHODS[name].make(), seed=seed)
        torch.manual_seed(seed + 5)  # the global generator has no say
        train(model, optimizer, 9)
        return snapshot(model.net), model.masks.masks

    (weights, masks), (again, masks_again) = run(), run()
    assert same(weights, again)
    assert same(masks, masks_again)
    if CHANNEL_METHODS[name].random:
        assert not same(masks, run(seed=1)[1])


@EVERY
def test_update_now(name):
    """`update_masks` prunes a trained network at once, whatever the schedule says."""
    row = CHANNEL_METHODS[name]
    model = PruningWrapper(channel_net(), row.make(end=None, interval=None, batches=None))
    loss_of(model, 1).backward()
    model.update_masks(0.6)
    assert int(units_kept(model).sum()) == round(0.4 * TOTAL)
    assert model.step == 0


def test_loss_and_logits_are_those_of_a_network_with_zeros():
    """The masked network is the dense one with gamma = beta = 0: nothing else is touched."""
    model, optimizer = pruner(sca())
    train(model, optimizer, 8)
    x_seq, y = batch(99)
    functional.reset_net(model)
    model.eval()
    mine = model(x_seq)
    net = copy.deepcopy(model).finalize()
    functional.reset_net(net)
    theirs = net(x_seq)
    assert mine.equal(theirs)
    assert torch.isfinite(F.cross_entropy(mine.mean(0), y))
