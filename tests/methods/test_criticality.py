"""Criticality against METHODS section 2, recomputed by brute force from a stock network."""

import copy
import math

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import (
    T,
    assert_masked,
    batch,
    build,
    criticality,
    frozen,
    lif,
    loss_of,
    same,
    same_state,
    snapshot,
    train,
    wrapped,
)
from tests.support.views import grow_score, layer_view

LAYERS = ("0", "3", "8", "10")
NEURON_OF = {"0": "2", "3": "5", "8": "9"}  # none follows "10"
TOTAL = 760


def input_currents(net, x_seq):
    """Return what every neuron layer receives in train mode, taken by plain forward hooks."""
    net, seen = copy.deepcopy(net), {}
    for name in NEURON_OF.values():
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].detach()})
        )
    functional.reset_net(net)
    net(x_seq)
    return seen


def scores_by_hand(net, x_seqs, aggregate="max", peak=1.0, alpha=2.0, v_threshold=1.0):
    """METHODS section 1, step by step: time mean, then the map, then the mean over samples."""
    totals = dict.fromkeys(NEURON_OF.values(), 0.0)
    for x_seq in x_seqs:
        for name, currents in input_currents(net, x_seq).items():
            v, criticality = torch.zeros_like(currents[0]), 0.0
            for x in currents:
                h = v - v / (4 / 3) + x
                criticality = criticality + (alpha / 2) / (
                    1 + (math.pi / 2 * alpha * (h - v_threshold)) ** 2
                )
                v = torch.where(h >= v_threshold, 0.0, h)
            per_map = (criticality / T).flatten(2) if currents.ndim > 3 else criticality / T
            if currents.ndim > 3:
                per_map = per_map.amax(2) if aggregate == "max" else per_map.mean(2)
            totals[name] = totals[name] + per_map.double().sum(0)
    samples = sum(x_seq.shape[1] for x_seq in x_seqs)
    return {name: total / samples / peak for name, total in totals.items()}


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in LAYERS])


def expected_masks(weights, masks, scores, sparsity, r):
    """METHODS section 2 over plain lists: K, K_c, then (K - K_c) - k kept and k regrown."""
    keep = round((1 - sparsity) * TOTAL)
    alive = [
        (abs(w), name, i)
        for name in LAYERS
        for i, w in enumerate(weights[name].flatten().tolist())
        if masks[name].flatten()[i]
    ]
    ranked = sorted(alive, reverse=True)
    classifier = [unit for unit in ranked[:keep] if unit[1] == "10"]  # K_c of them
    k = math.floor(r * (keep - len(classifier)))
    others = [unit for unit in ranked if unit[1] != "10"]
    survivors = classifier + others[: keep - len(classifier) - k]
    kept = {unit[1:] for unit in survivors}
    pruned = [
        (float(scores[NEURON_OF[n]][i // (weights[n].numel() // len(weights[n]))]), abs(w), n, i)
        for n in NEURON_OF
        for i, w in enumerate(weights[n].flatten().tolist())
        if (n, i) not in kept
    ]
    grown = [unit[2:] for unit in sorted(pruned, reverse=True)[:k]]
    result = {name: torch.zeros(weights[name].numel(), dtype=torch.bool) for name in LAYERS}
    for name, i in [*kept, *grown]:
        result[name][i] = True
    return {n: m.view_as(weights[n]) for n, m in result.items()}, k, len(classifier)


def state_of(model):
    return {n: model.masks.weight(n).detach().clone() for n in model.masks}


@pytest.mark.parametrize("aggregate", ["max", "mean"])
@pytest.mark.parametrize("r", [0.0, 0.3, 0.6])
def test_first_update_is_algorithm_1(aggregate, r):
    """The first update has no ties: all weights are alive and differ."""
    net = build()
    stock = copy.deepcopy(net)
    method = criticality(aggregate=aggregate, regrow=r, interval=1, end=4)
    model, optimizer = wrapped(method, net=net)
    scores = scores_by_hand(stock, [batch(1)[0]], aggregate)
    weights, masks = state_of(model), model.masks.masks
    train(model, optimizer, 1)
    sparsity = 0.8 * (1 - (3 / 4) ** 3)
    expected, k, in_classifier = expected_masks(weights, masks, scores, sparsity, r)
    assert (k > 0) == (r > 0)
    assert 0 < in_classifier < 40
    assert all(model.masks[name].equal(expected[name]) for name in LAYERS)
    (record,) = model.history
    assert sum(record.grown.values()) == k
    assert record.grown["10"] == 0


def test_every_update_is_algorithm_1_up_to_ties():
    """Later, weights that were pruned before tie: compare what does not depend on the order."""
    model, optimizer = wrapped(criticality(interval=1, end=4, regrow=0.4))
    for t in range(1, 5):
        stock = copy.deepcopy(model.net)
        weights, masks = state_of(model), model.masks.masks
        scores = scores_by_hand(stock, [batch(t)[0]])
        train(model, optimizer, 1, start=t)
        sparsity = 0.8 * (1 - (1 - t / 4) ** 3)
        expected, k, in_classifier = expected_masks(weights, masks, scores, sparsity, 0.4)
        per_weight = {
            n: scores[NEURON_OF[n]].view(-1, *[1] * (w.ndim - 1)).expand_as(w).clone()
            if n in NEURON_OF
            else torch.zeros_like(w)
            for n, w in weights.items()
        }
        assert model.masks["10"].equal(expected["10"])
        assert int(model.masks["10"].sum()) == in_classifier
        assert sum(model.history[-1].grown.values()) == k
        for mine in (per_weight, {n: w.abs() for n, w in weights.items()}):
            a = flat(mine)[flat(model.masks.masks)].sort().values
            b = flat(mine)[flat(expected)].sort().values
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def dense_gradients(net, k):
    """Return what backward gives a copy of the network that knows no masks."""
    net = copy.deepcopy(net)
    loss_of(net, k).backward()
    return {n: net.get_submodule(n).weight.grad for n in LAYERS}


def test_growth_by_gradient_takes_the_steepest_of_all_layers_that_feed_neurons():
    model, optimizer = wrapped(criticality(interval=1, end=4, regrow=0.2, growth="gradient"))
    for t in range(1, 5):
        stock = copy.deepcopy(model).finalize()
        gradients = dense_gradients(stock, t)
        weights, masks = state_of(model), model.masks.masks
        loss_of(model, t).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparsity = 0.8 * (1 - (1 - t / 4) ** 3)
        # What survives does not depend on the criterion: any scores will do.
        scores = {n: torch.zeros(100) for n in NEURON_OF.values()}
        _, k, _ = expected_masks(weights, masks, scores, sparsity, 0.2)
        survivors = without_growth(weights, masks, sparsity, 0.2)
        ranked = sorted(
            (
                (abs(g), n, i)
                for n in NEURON_OF
                for i, g in enumerate(gradients[n].flatten().tolist())
                if not survivors[n].flatten()[i]
            ),
            reverse=True,
        )
        expected = {n: survivors[n].clone().flatten() for n in LAYERS}
        for _, n, i in ranked[:k]:
            expected[n][i] = True
        assert k > 0
        for n in LAYERS:
            assert model.masks[n].flatten().equal(expected[n]), (t, n)


def without_growth(weights, masks, sparsity, r):
    """Return the survivors of METHODS section 2 alone, over plain lists."""
    keep = round((1 - sparsity) * TOTAL)
    ranked = sorted(
        (
            (abs(w), n, i)
            for n in LAYERS
            for i, w in enumerate(weights[n].flatten().tolist())
            if masks[n].flatten()[i]
        ),
        reverse=True,
    )
    classifier = [unit for unit in ranked[:keep] if unit[1] == "10"]
    k = math.floor(r * (keep - len(classifier)))
    others = [unit for unit in ranked if unit[1] != "10"][: keep - len(classifier) - k]
    kept = {n: torch.zeros(weights[n].numel(), dtype=torch.bool) for n in LAYERS}
    for _, n, i in [*classifier, *others]:
        kept[n][i] = True
    return {n: m.view_as(weights[n]) for n, m in kept.items()}


@pytest.mark.parametrize("growth", ["gradient", "random"])
def test_growth_changes_only_what_is_grown(growth):
    """The first update of any criterion keeps the same survivors and grows as many."""
    models = {g: wrapped(criticality(interval=1, growth=g)) for g in ("criticality", growth)}
    for model, optimizer in models.values():
        train(model, optimizer, 1)
    (a, _), (b, _) = models.values()
    assert sum(a.history[0].grown.values()) == sum(b.history[0].grown.values()) > 0
    assert a.history[0].dropped == b.history[0].dropped
    assert b.history[0].grown["10"] == 0
    assert a.masks["10"].equal(b.masks["10"])
    assert not all(a.masks[n].equal(b.masks[n]) for n in NEURON_OF)


def test_random_growth_is_uniform_over_what_does_not_survive():
    """Over many seeds every such weight is grown about as often: 6 sigma of a binomial."""
    weights = snapshot(build())
    survivors = without_growth(
        {n: weights[f"{n}.weight"] for n in LAYERS},
        {n: torch.ones_like(weights[f"{n}.weight"], dtype=torch.bool) for n in LAYERS},
        sparsity=0.8 * (1 - (3 / 4) ** 3),
        r=0.5,
    )
    seeds, counts = 200, {n: torch.zeros(weights[f"{n}.weight"].shape) for n in NEURON_OF}
    method = criticality(interval=1, end=4, regrow=0.5, growth="random")
    for seed in range(seeds):
        model = PruningWrapper(build(), method, seed=seed)
        loss_of(model, 1)
        model.update_masks(0.8 * (1 - (3 / 4) ** 3))
        for n in NEURON_OF:
            counts[n] += model.masks[n] & ~survivors[n]
    grown = torch.cat([counts[n][~survivors[n]] for n in NEURON_OF]) / seeds
    p = float(grown.mean())
    assert 0.1 < p < 0.9
    assert float((grown - p).abs().max()) < 6 * math.sqrt(p * (1 - p) / seeds)


def test_random_drop_is_magnitude_blind():
    """Over many seeds large and small weights survive alike; only criticality decides growth."""
    kept = []
    for seed in range(60):
        model = PruningWrapper(build(), criticality(regrow=0.0, drop="random"), seed=seed)
        loss_of(model, 1)
        model.update_masks(0.5)
        kept.append(flat(model.masks.masks))
    rate = torch.stack(kept).float().mean(0)
    magnitude = flat({n: snapshot(build())[f"{n}.weight"].abs() for n in LAYERS})
    large = magnitude > magnitude.median()
    # Of 60 * 380 draws with probability one half the mean is within 6 sigma = 0.02.
    assert abs(float(rate[large].mean()) - 0.5) < 0.02
    assert abs(float(rate[~large].mean()) - 0.5) < 0.02


def test_without_regrowth_it_is_magnitude():
    """Weights, masks and optimizer stay bit-identical over a whole schedule."""
    one, a = wrapped(criticality(regrow=0.0), "adamw")
    other, b = wrapped(methods.Magnitude(sparsity=0.8, interval=2, end=9), "adamw")
    for k in range(1, 12):
        train(one, a, 1, start=k)
        train(other, b, 1, start=k)
        assert same(one.masks.masks, other.masks.masks)
        assert same(snapshot(one.net), snapshot(other.net))
        assert same_state(frozen(a), frozen(b))
    assert one.sparsity()["total"] == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("growth", ["criticality", "gradient", "random"])
@pytest.mark.parametrize("regrow", [0.0, 0.3])
def test_dense_gradients_only_where_growth_is_ranked_by_them(growth, regrow):
    method = criticality(growth=growth, regrow=regrow)
    assert method.plan().gradient == ("update" if growth == "gradient" and regrow else "never")


def test_regrown_weights_start_at_zero():
    """In the step of the update they were still masked when the gradient came; then they train."""
    model, optimizer = wrapped(criticality(interval=2, end=8, regrow=0.5), "adam")
    before = {n: torch.rand(m.shape) < 0.5 for n, m in model.masks.items()}
    model.masks.install(before)
    train(model, optimizer, 2)
    grown = {n: model.masks[n] & ~before[n] for n in LAYERS}
    assert any(g.any() for g in grown.values())
    assert not any(model.masks.weight(n)[g].any() for n, g in grown.items())
    train(model, optimizer, 1, start=3)
    assert any(model.masks.weight(n)[g].any() for n, g in grown.items())


def test_batches_widen_the_window():
    """With batches=3 of an interval of 4, the mean over the last three batches is scored."""
    net = build()
    method = criticality(batches=3, interval=4, end=8)
    model = PruningWrapper(net, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # frozen, so batches alone differ
    model.attach(optimizer)
    train(model, optimizer, 3)
    assert [node.activity.count for node in model.nodes.values()] == [12, 12, 12]
    stock = copy.deepcopy(model.net)
    loss_of(model, 4)
    expected = scores_by_hand(stock, [batch(k)[0] for k in (2, 3, 4)])
    for name, score in expected.items():
        got = net.get_submodule(name).activity.mean("criticality_max")
        torch.testing.assert_close(got, score, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.5])
def test_score_is_taken_at_the_actual_threshold(threshold):
    def node():
        made = lif()
        made.v_threshold = threshold
        return made

    net = build(node=node)
    expected = scores_by_hand(copy.deepcopy(net), [batch(1)[0]], v_threshold=threshold)
    model, _ = wrapped(criticality(interval=1), net=net)
    loss_of(model, 1)
    for name, score in expected.items():
        view = layer_view(model, next(n for n, node in NEURON_OF.items() if node == name))
        got = grow_score(model.method, view).flatten()
        torch.testing.assert_close(got, score, rtol=1e-5, atol=1e-7)


def test_scores_are_divided_by_the_peak_of_the_surrogate():
    """ATan(a) peaks at a/2: layers with different surrogates compare by g'/g'(0)."""
    alphas = iter((1.0, 6.0, 2.0))
    net = build(node=lambda: lif(next(alphas)))
    for name, alpha in (("2", 1.0), ("5", 6.0), ("9", 2.0)):
        expected = scores_by_hand(copy.deepcopy(net), [batch(1)[0]], alpha=alpha, peak=alpha / 2)[
            name
        ]
        model, _ = wrapped(criticality(interval=1), net=copy.deepcopy(net))
        loss_of(model, 1)
        view = layer_view(model, next(n for n, node in NEURON_OF.items() if node == name))
        got = grow_score(model.method, view).flatten()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
        assert 0 < float(got.max()) <= 1


def test_several_neurons_behind_one_weight_are_averaged():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = layer.Linear(6, 4)
            self.a, self.b = neuron.IFNode(v_threshold=0.7), neuron.IFNode(v_threshold=2.0)
            self.out = layer.Linear(4, 3)

        def forward(self, x):
            y = self.fc(x)
            return self.out(self.a(y) + self.b(y))

    net = Fork()
    functional.set_step_mode(net, "m")
    model = PruningWrapper(net, criticality())
    model(torch.rand(3, 5, 6))
    assert model.session.run.anatomy.topology.neurons == {"fc": ("a", "b"), "out": ()}
    a, b = (node.activity.mean("criticality_max") / peak(node) for node in (net.a, net.b))
    assert not a.equal(b)
    got = grow_score(model.method, layer_view(model, "fc")).flatten()
    torch.testing.assert_close(got, (a + b) / 2)
    assert grow_score(model.method, layer_view(model, "out")) is None


def peak(node):
    """g'(0) of the default Sigmoid(4)."""
    assert isinstance(node.surrogate_function, surrogate.Sigmoid)
    return node.surrogate_function.alpha / 4


# ---- ties ----------------------------------------------------------------------------------------


def three_updates(**kwargs):
    model, optimizer = wrapped(criticality(interval=1, end=5, regrow=0.3, **kwargs))
    train(model, optimizer, 5, after=lambda k: assert_masked(model, optimizer))
    return model


def test_exact_ties_never_overshoot_and_filter_ties_do():
    targets = [round((1 - 0.8 * (1 - (1 - t / 5) ** 3)) * TOTAL) for t in range(1, 6)]
    exact = [sum(r.kept.values()) for r in three_updates().history]
    published = [sum(r.kept.values()) for r in three_updates(ties="filter").history]
    assert exact == targets
    assert all(p >= t for p, t in zip(published, targets, strict=True))
    assert any(p > t for p, t in zip(published, targets, strict=True))


def test_filter_ties_wake_whole_filters():
    """All pruned inputs of the neuron whose score is the k-th come back."""
    model, optimizer = wrapped(criticality(interval=1, end=5, regrow=0.3, ties="filter"))
    train(model, optimizer, 1)
    loss_of(model, 2).backward()
    scores = {n: layer_view(model, n).activity.mean("criticality_max") for n in NEURON_OF}
    optimizer.step()
    grown_scores = []
    for n, score in scores.items():
        full = model.masks[n].flatten(1).all(1)
        grown_scores += score[full].tolist()
    lowest = min(grown_scores)
    for n, score in scores.items():
        assert model.masks[n].flatten(1)[score >= lowest].all()


@pytest.mark.parametrize("ties", ["exact", "filter"])
def test_zero_scores_do_not_reactivate_everything(ties):
    # The derivative is 0 for |u| > 1: with this threshold no neuron comes near.
    def node():
        function = surrogate.PiecewiseQuadratic(1.0)
        return neuron.IFNode(v_threshold=1e4, surrogate_function=function)

    net = build(node=node)
    model, optimizer = wrapped(criticality(interval=1, end=3, ties=ties), net=net)
    train(model, optimizer, 3)
    kept = [sum(record.kept.values()) for record in model.history]
    target = [round((1 - 0.8 * (1 - (1 - t / 3) ** 3)) * TOTAL) for t in range(1, 4)]
    if ties == "exact":
        assert kept == target
    else:
        assert all(sum(record.grown.values()) == 0 for record in model.history)
        assert all(k <= t for k, t in zip(kept, target, strict=True))


# ---- what it needs -------------------------------------------------------------------------------


def test_records_one_statistic_in_the_window_only():
    model, optimizer = wrapped(criticality(interval=4, end=8))
    nodes = model.nodes.values()
    seen = []

    def after(k):
        seen.append([node.recording for node in nodes])

    train(model, optimizer, 9, after=after)
    assert all(node.statistics == ("criticality_max",) for node in nodes)
    # After step 3 and step 7: the batch of the next step is scored. Nothing after the last update.
    assert seen == [[k in (3, 7)] * 3 for k in range(1, 10)]
    assert all(node.activity.count == 0 for node in nodes)


def test_batches_before_the_window_do_not_count():
    """Neither what ran before attaching, nor what a wider window had left behind."""
    model = PruningWrapper(build(), criticality(interval=4, end=8))
    loss_of(model, 1)
    assert all(node.activity.count for node in model.nodes.values())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.attach(optimizer)
    train(model, optimizer, 3)
    loss_of(model, 4)
    assert [node.activity.count for node in model.nodes.values()] == [6, 6, 6]


def test_single_step_mode_is_read():
    net = build()
    functional.set_step_mode(net, "s")
    model = PruningWrapper(net, criticality(interval=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.attach(optimizer)
    sum(model(x).sum() for x in batch(1)[0]).backward()
    optimizer.step()
    assert model.history[0].sparsity > 0
    assert sum(model.history[0].grown.values()) > 0


def test_network_without_neurons_is_explained():
    model = PruningWrapper(build(spiking=False), criticality())
    with pytest.raises(RuntimeError, match="Expected neurons with .* behind some prunable layer"):
        loss_of(model, 1)
    with pytest.raises(RuntimeError, match="Expected neurons with .* behind some prunable layer"):
        model.update_masks()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"ties": "all"}, ValueError, r"Expected ties to be one of .* but got 'all'"),
        ({"aggregate": "sum"}, ValueError, r"Expected aggregate to be one of .* but got 'sum'"),
        ({"growth": "score"}, ValueError, r"Expected growth to be one of .* but got 'score'"),
        ({"drop": "none"}, ValueError, r"Expected drop to be one of .* but got 'none'"),
        ({"batches": 0}, ValueError, r"Expected batches in \[1, interval = 2\] but got 0"),
        ({"batches": 3}, ValueError, r"Expected batches in \[1, interval = 2\] but got 3"),
        ({"batches": 1.0}, TypeError, r"Expected batches to be an integer but got 1\.0"),
        ({"batches": True}, TypeError, "Expected batches to be an integer but got True"),
    ],
)
def test_wrong_settings(wrong, error, message):
    with pytest.raises(error, match=message):
        criticality(**wrong)


def test_defaults_are_the_papers():
    method = methods.Criticality(end=10_000)
    assert (method.sparsity, method.regrow, method.interval) == (0.95, 0.1, 2000)
    assert (method.ties, method.batches, method.aggregate) == ("exact", 1, "max")
    assert (method.growth, method.drop) == ("criticality", "magnitude")
