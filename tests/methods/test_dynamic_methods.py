"""SET, RigL and GraNet against their rules, recomputed layer by layer."""

import copy
import math

import pytest
import torch

from sj_prune import PruningWrapper, methods
from sj_prune.masks import Uniform
from sj_prune.methods.identity import describe
from tests.support.pruning_cases import (
    assert_masked,
    build,
    frozen,
    loss_of,
    rigl,
    same,
    same_state,
    snapshot,
    train,
    wrapped,
)

SHAPES = {"0": (4, 2, 3, 3), "3": (6, 4, 3, 3), "8": (8, 54), "10": (5, 8)}
TOTAL = 760


def erk_counts(keep):
    """ERK density is proportional to sum(shape)/prod(shape), capped at 1, by RigL's iteration."""
    dense = set()
    while True:
        rest = {n: s for n, s in SHAPES.items() if n not in dense}
        scale = (keep - sum(math.prod(SHAPES[n]) for n in dense)) / sum(map(sum, rest.values()))
        over = {n for n, s in rest.items() if scale * sum(s) > math.prod(s)}
        if not over:
            return {n: scale * sum(s) if n in rest else math.prod(s) for n, s in SHAPES.items()}
        dense |= over


def top(scores, k, among):
    """Return the mask of the k highest, by sorting indices."""
    flat = scores.flatten().tolist()
    order = sorted(among.flatten().nonzero().flatten().tolist(), key=lambda i: -flat[i])[:k]
    result = torch.zeros(scores.numel(), dtype=torch.bool)
    result[order] = True
    return result.view_as(scores)


def dense_gradients(model, k):
    """Return the gradients of all weights, from a copy that knows no masks."""
    net = copy.deepcopy(model).finalize()
    loss_of(net, k).backward()
    return {n: net.get_submodule(n).weight.grad for n in SHAPES}


def sets(**kwargs):
    return methods.SET(**{"sparsity": 0.7, "regrow": 0.3, "interval": 2, "end": 9, **kwargs})


# ---- the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sets, rigl])
@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.95])
def test_start_is_random_with_erk_counts(make, sparsity):
    net = build()
    weights = snapshot(net)
    model = PruningWrapper(net, make(sparsity=sparsity))
    keep = round((1 - sparsity) * TOTAL)
    kept = model.masks.kept()
    assert sum(kept.values()) == keep
    for name, share in erk_counts(keep).items():
        assert abs(kept[name] - share) < 1.001
    assert_masked(model)
    for name, mask in model.masks.items():
        assert net.get_submodule(name).weight[mask].equal(weights[f"{name}.weight"][mask])
        # Random: not the largest weights.
        if 0.1 < kept[name] / mask.numel() < 0.9:
            best = top(weights[f"{name}.weight"].abs(), kept[name], mask | ~mask)
            assert not mask.equal(best)
    assert [record.step for record in model.history] == [0]


@pytest.mark.parametrize("make", [sets, rigl])
def test_uniform_start_with_a_dense_first_layer(make):
    model, optimizer = wrapped(make(allocation=Uniform(first_dense=True), interval=2))
    before = model.net[0].weight.detach().clone()
    kept = model.masks.kept()
    assert kept["0"] == 72
    assert kept["3"] == round((228 - 72) * 216 / 688)
    loss_of(model, 1).backward()
    optimizer.step()
    changed = model.net[0].weight.detach().clone()
    assert not changed.equal(before)
    loss_of(model, 2).backward()
    optimizer.step()
    # A layer that is kept whole drops nothing, so nothing in it starts anew from 0.
    assert model.net[0].weight.all()
    assert model.history[-1].dropped["0"] == 0


# ---- SET -----------------------------------------------------------------------------------------


def test_set_drops_the_smallest_and_grows_elsewhere_at_zero():
    model, optimizer = wrapped(sets(), "adam")
    start = model.masks.kept()
    for first in (1, 3, 5, 7):
        train(model, optimizer, 1, start=first)
        masks = model.masks.masks
        weights = {n: model.masks.weight(n).detach().clone() for n in masks}
        train(model, optimizer, 1, start=first + 1)
        record = model.history[-1]
        assert model.masks.kept() == start
        for n, old in masks.items():
            alive = int(old.sum())
            drops = math.floor(0.3 * alive) if alive < old.numel() else 0
            survivors = top(weights[n].abs(), alive - drops, old)
            assert not (survivors & ~model.masks[n]).any()
            assert record.grown[n] == record.dropped[n] == drops
            new = model.masks[n] & ~survivors
            assert int(new.sum()) == drops
            assert not model.masks.weight(n)[new & ~old].any()


def test_set_grows_at_random_everywhere():
    """Over many seeds every pruned place is grown about as often as another."""
    hits = torch.zeros(8, 54)
    for seed in range(60):
        model = PruningWrapper(build(), sets(), seed=seed)
        old = model.masks["8"]
        model.update_masks()
        hits += model.masks["8"] & ~old
    share = hits / hits.mean()
    assert share.max() < 4
    assert (share == 0).float().mean() < 0.02


# ---- RigL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adamw"])
def test_rigl_update_by_hand(optimizer):
    # Two steps between updates: after one, Adam has moved all new weights by the same amount.
    model, opt = wrapped(rigl(interval=3, end=12), optimizer)
    start = model.masks.kept()
    for t, k in enumerate((3, 6, 9, 12), start=1):
        train(model, opt, 2, start=k - 2)
        masks, weights = model.masks.masks, snapshot(model.net)
        slots = {n: frozen_slots(opt, model.masks.weight(n)) for n in masks}
        grads = dense_gradients(model, k)
        opt.zero_grad()
        loss_of(model, k).backward()
        buffers = {key: v.clone() for key, v in model.net.named_buffers()}
        steps = frozen(opt)["state"]
        opt.step()
        share = 0.4 / 2 * (1 + math.cos(math.pi * t / 4))
        again_somewhere = False
        for n, old in masks.items():
            weight, old_weight = model.masks.weight(n), weights[f"{n}.weight"]
            alive = int(old.sum())
            drops = math.floor(share * alive) if alive < old.numel() else 0
            survivors = top(old_weight.abs(), alive - drops, old)
            grown = top(grads[n].abs(), drops, ~survivors)
            assert model.masks[n].equal(survivors | grown)
            # What was alive and is again keeps value and slots; what is new starts at 0.
            stays, new = model.masks[n] & old, grown & ~old
            again_somewhere |= bool((grown & old).any())
            assert weight[stays].equal(old_weight[stays])
            assert not weight[new].any()
            for key, value in frozen_slots(opt, weight).items():
                assert value[stays].equal(slots[n][key][stays])
                assert not value[~stays].any()
        assert again_somewhere == (t < 4)
        assert model.masks.kept() == start
        # The optimizer's step is skipped for all, norms and biases too.
        for key, value in model.net.named_parameters():
            if key.removesuffix(".weight") not in masks:
                assert value.equal(weights[key]), key
        assert same(buffers, dict(model.net.named_buffers()))
        assert all(p.grad is None for p in model.parameters())
        assert [s.get("step") for s in frozen(opt)["state"].values()] == [
            s.get("step") for s in steps.values()
        ]
        assert model.step == k  # but the step counts


def frozen_slots(optimizer, weight):
    return {
        key: value.clone()
        for key, value in optimizer.state[weight].items()
        if isinstance(value, torch.Tensor) and value.shape == weight.shape
    }


def test_rigl_sees_dense_gradients_at_updates_only():
    model, optimizer = wrapped(rigl(interval=3, end=9))
    for k in range(1, 10):
        optimizer.zero_grad()
        loss_of(model, k).backward()
        for n, mask in model.masks.items():
            if not mask.all():
                assert bool(model.masks.weight(n).grad[~mask].any()) == (k % 3 == 0)
        optimizer.step()


def test_rigl_outside_its_schedule_wants_dense_gradients_said():
    model, optimizer = wrapped(rigl())
    loss_of(model, 1).backward()
    before = model.masks.masks
    with pytest.raises(RuntimeError, match=r"dense gradient of layer '\d+'.*dense_gradients"):
        model.update_masks()
    assert same(before, model.masks.masks)
    optimizer.zero_grad()
    with model.dense_gradients():
        loss_of(model, 1).backward()
    model.update_masks()
    assert not same(before, model.masks.masks)


def test_rigl_without_any_gradient_names_the_layer():
    model = PruningWrapper(build(), rigl())
    with pytest.raises(RuntimeError, match=r"Expected a gradient of layer '0'.*backward"):
        model.update_masks()


@pytest.mark.parametrize("keeps", [rigl, lambda: methods.GraNet(sparsity=0.8, interval=2, end=8)])
def test_new_weights_have_fresh_slots_after_a_dense_optimizer_state_was_loaded(keeps):
    """Momentum of a dense run must not come back with a weight that is grown."""
    dense_net = build()
    dense = torch.optim.SGD(dense_net.parameters(), lr=0.1, momentum=0.9)
    train(dense_net, dense, 2)
    model, optimizer = wrapped(keeps(), "sgd_momentum")
    train(model, optimizer, 3)
    masks = model.masks.masks
    optimizer.load_state_dict(dense.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1, start=4)
    grown = 0
    for n, old in masks.items():
        new = model.masks[n] & ~old
        grown += int(new.sum())
        assert not model.masks.weight(n)[new].any()
        momentum = optimizer.state[model.masks.weight(n)]["momentum_buffer"]
        grad = model.masks.weight(n).grad
        fresh = 0.0 if grad is None else grad[new]
        assert torch.all(momentum[new] == fresh)
    assert grown > 0


# ---- GraNet --------------------------------------------------------------------------------------


@pytest.mark.parametrize("until", [None, 13])
def test_granet_update_by_hand(until):
    """Global magnitude to (15), then per layer r_t of the kept by |w|, as many by |gradient|.

    As in the released code drop and growth may go on at the final sparsity.
    """
    method = methods.GraNet(
        sparsity=0.8, regrow=0.5, regrow_final=0.1, interval=2, end=8, regrow_until=until
    )
    model, optimizer = wrapped(method)
    steps = (2, 4, 6, 8) if until is None else (2, 4, 6, 8, 10, 12)
    for t, k in enumerate(steps, start=1):
        train(model, optimizer, 1, start=k - 1)
        masks, weights = model.masks.masks, snapshot(model.net)
        grads = dense_gradients(model, k)
        train(model, optimizer, 1, start=k)
        keep = round((1 - 0.8 * (1 - (1 - min(t, 4) / 4) ** 3)) * TOTAL)
        r = 0.1 + (0.5 - 0.1) / 2 * (1 + math.cos(math.pi * t / len(steps)))
        alive = torch.cat([masks[n].flatten() for n in SHAPES])
        flat = torch.cat([weights[f"{n}.weight"].abs().flatten() for n in SHAPES])
        chosen = top(flat, keep, alive).split([math.prod(s) for s in SHAPES.values()])
        for (n, shape), pruned_to in zip(SHAPES.items(), chosen, strict=True):
            kept = int(pruned_to.sum())
            drops = math.floor(r * kept) if kept < math.prod(shape) else 0
            w = weights[f"{n}.weight"].abs()
            survivors = top(w, kept - drops, pruned_to.view(shape))
            grown = top(grads[n].abs(), drops, ~survivors)
            assert model.masks[n].equal(survivors | grown), (t, n)
    masks = model.masks.masks
    train(model, optimizer, 4, start=steps[-1] + 1)
    assert same(masks, model.masks.masks)
    assert [record.step for record in model.history] == list(steps)


@pytest.mark.parametrize(
    "wrong", [{"regrow_until": 7}, {"regrow_until": 10, "end": None}, {"regrow_until": "9"}]
)
def test_granet_wrong_until(wrong):
    with pytest.raises((TypeError, ValueError), match="Expected regrow_until"):
        methods.GraNet(**{"interval": 2, "end": 8, **wrong})


def test_granet_moves_grown_weights_from_the_next_step_on():
    """Its step is not skipped: what survives moves, and what has been dropped and regrown."""
    method = methods.GraNet(sparsity=0.8, regrow=0.5, interval=2, end=8)
    model, optimizer = wrapped(method, "sgd")
    train(model, optimizer, 3)
    masks = model.masks.masks
    grads = dense_gradients(model, 4)
    weights = {n: model.masks.weight(n).detach().clone() for n in masks}
    train(model, optimizer, 1, start=4)
    new = {n: model.masks[n] & ~m for n, m in masks.items()}
    assert any(m.any() for m in new.values())
    for n, mask in new.items():
        weight, old = model.masks.weight(n), model.masks[n] & ~mask
        assert not weight[mask].any()
        torch.testing.assert_close(weight[old], (weights[n] - 0.1 * grads[n])[old])


def test_wrong_final_ratio():
    with pytest.raises(ValueError, match=r"Expected regrow_final in \[0, 1\) but got 2"):
        methods.GraNet(end=10_000, regrow_final=2)


def test_schedules_have_the_papers_defaults():
    assert (methods.SET(end=100).regrow, methods.SET(end=100).sparsity) == (0.3, 0.95)
    assert (methods.RigL(end=100).interval, methods.RigL(end=100).regrow) == (100, 0.3)
    granet = methods.GraNet(end=10_000)
    assert (granet.regrow, granet.regrow_final) == (0.5, 0.005)
    assert same_state(describe(granet)["interval"], 1000)
