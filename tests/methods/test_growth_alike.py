"""What is grown starts alike, whatever it is grown by: with gradients alive and without."""

import pytest
import torch

from sj_prune.masks import Channels, Cubic, Uniform
from sj_prune.methods import Growth, Plan, reads
from sj_prune.run.install import put
from sj_prune.run.scores import scores
from sj_prune.run.update import propose
from tests.support.channel_cases import NORMS, channel_net, pruner
from tests.support.own_plan import own_plan
from tests.support.pruning_cases import frozen, loss_of, same, same_state, snapshot, train, wrapped


def place(layer):
    """Return an order of the units, another one every step, with and without gradients."""
    order = torch.Generator().manual_seed(layer.step)
    return torch.rand(layer.mask.shape, generator=order, dtype=torch.float64)


@reads("gradient", "gamma gradient")
def place_by_gradient(layer):
    assert layer.grad is not None
    return place(layer)


def channels(score, **more):
    return Plan(
        schedule=Cubic(final=0.5, interval=2, begin=0, end=8),
        drop=lambda layer: layer.weight.abs().flatten(1).sum(1),
        grow=Growth(score, 0.4, **more),
        structure=Channels(),
        allocation=Uniform(),
    )


def weights(score, **more):
    return own_plan(grow=Growth(score, 0.4, **more), interval=2, end=8)


def trained(plan, optimizer, seed=0):
    wrap = wrapped if plan.structure != Channels() else pruner
    model, mine = wrap(plan, optimizer)
    train(model, mine, 9)
    assert sum(sum(record.grown.values()) for record in model.history) > 0
    return model, mine


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adamw", "rmsprop"])
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("plan", [weights, channels])
def test_gradients_make_no_difference(plan, keeps, optimizer):
    """Four updates that choose the same: masks, weights and slots are the same to the bit."""
    (a, mine), (b, other) = (
        trained(plan(score, keeps_value=keeps), optimizer) for score in (place, place_by_gradient)
    )
    assert same(a.masks.masks, b.masks.masks)
    assert same(snapshot(a.net), snapshot(b.net))
    assert same_state(frozen(mine), frozen(other))


@pytest.mark.parametrize("score", [place, place_by_gradient])
@pytest.mark.parametrize("keeps", [False, True])
def test_what_starts_anew_moves_from_the_next_step_on(score, keeps):
    model, optimizer = wrapped(weights(score, keeps_value=keeps), "sgd_momentum")
    train(model, optimizer, 3)
    before = model.masks.masks
    train(model, optimizer, 1, start=4)
    new = {n: mask & ~before[n] for n, mask in model.masks.items()}
    assert sum(int(mask.sum()) for mask in new.values()) > 20
    assert not any(model.masks.weight(n)[mask].any() for n, mask in new.items())
    train(model, optimizer, 1, start=5)
    moved = [model.masks.weight(n)[mask] != 0 for n, mask in new.items() if mask.any()]
    assert torch.cat(moved).float().mean() > 0.5


def test_trying_a_budget_leaves_gradients():
    """Masks that are tried and taken back do not touch the gradients that are scored later."""
    model, _ = pruner(channels(place_by_gradient), net=channel_net())
    loss_of(model, 1).backward()
    grads = {n: p.grad.clone() for n, p in model.net.named_parameters()}
    run = model.session.run
    with torch.no_grad():
        put(model.net, run, propose(run, scores(model.net, run), 15), ())
        assert not all(model.masks[n].all() for n in NORMS)
        model.masks.install({n: torch.ones_like(model.masks.alive(n)) for n in model.masks.scopes})
    assert same(grads, {n: p.grad for n, p in model.net.named_parameters()})
