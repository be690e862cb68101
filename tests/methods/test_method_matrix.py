"""What every method has to do. A new method is one row of METHODS."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import sj_prune.run.update
from sj_prune import PruningWrapper, methods
from sj_prune.masks import ERK, NM, Global, Uniform
from tests.support.pruning_cases import (
    OPTIMIZERS,
    assert_masked,
    build,
    criticality,
    frozen,
    loss_of,
    magnitude,
    rigl,
    same,
    same_state,
    snapshot,
    train,
    wrapped,
)
from tests.support.views import drop_score, grow_score, layer_view, tie_score

TOTAL = 760
STEPS = (2, 4, 6, 8)  # interval 2, end 9: the interval does not divide the end


def cubic(sparsity, initial=0.0):
    return lambda t: sparsity + (initial - sparsity) * (1 - t / 4) ** 3


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        make: builds it with interval 2 and end 9; keywords change its arguments.
        target: sparsity after update t.
        steps: of the updates.
        random: masks differ from seed to seed.
        zero_start: a unit of growth starts at 0 even if it was dropped in the same update.
        emergent: no counts are enforced.
        random_start: masks are installed when the network is wrapped.
    """

    make: Callable
    target: Callable = cubic(0.8)
    steps: tuple[int, ...] = STEPS
    random: bool = False
    zero_start: bool = True
    emergent: bool = False
    random_start: bool = False


def granet(**kwargs):
    return methods.GraNet(**{"sparsity": 0.8, "regrow": 0.4, "interval": 2, "end": 9, **kwargs})


def sets(**kwargs):
    return methods.SET(**{"sparsity": 0.7, "regrow": 0.3, "interval": 2, "end": 9, **kwargs})


def random(**kwargs):
    return methods.Random(**{"sparsity": 0.8, "interval": 2, "end": 9, **kwargs})


def lamp(**kwargs):
    return methods.LAMP(**{"sparsity": 0.8, "interval": 2, "end": 9, **kwargs})


def cqp(**kwargs):
    return methods.CQP(**{"sparsity": 0.8, "interval": 2, "end": 9, **kwargs})


def ndsnn(**kwargs):
    return methods.NDSNN(**{"sparsity": 0.8, "initial": 0.7, "interval": 2, "end": 9, **kwargs})


def gradr(**kwargs):
    return methods.GradR(**{"sparsity": 0.9, "alpha": 0.05, "interval": 2, "end": 9, **kwargs})


def stds(**kwargs):
    return methods.STDS(**{"sparsity": 0.9, "ceiling": 0.3, "interval": 2, "end": 9, **kwargs})


def deepr(**kwargs):
    return methods.DeepR(**{"sparsity": 0.7, "l1": 4.0, "interval": 2, "end": 9, **kwargs})


def admm(**kwargs):
    return methods.ADMM(**{"sparsity": 0.8, "rho": 0.5, "interval": 2, "end": 9, **kwargs})


def rcmo(**kwargs):
    rates = {"lr_s": 1.0, "lr_y": 10.0, "lr_z": 1e5}
    return methods.RCMO(**{"sparsity": 0.8, "interval": 2, "end": 9, **rates, **kwargs})


def upr(**kwargs):
    gates = {"strength": 1e-3, "initial": 0.05, "gate_lr": 0.02}
    return methods.UPR(**{"sparsity": 0.9, "interval": 2, "end": 9, **gates, **kwargs})


def synapses(**kwargs):
    return methods.DPAPSynapses(
        **{"sparsity": 0.3, "patience": 2.0, "interval": 2, "end": 9, **kwargs}
    )


def blocks(make, **settings):
    """Return a method that keeps one of two."""
    return lambda **k: make(**{"sparsity": 0.5, "structure": NM(1, 2), **settings, **k})


METHODS = {
    "Magnitude": Row(magnitude),
    "Magnitude-Uniform": Row(lambda **k: magnitude(allocation=Uniform(), **k)),
    "Magnitude-ERK": Row(lambda **k: magnitude(allocation=ERK(), **k)),
    "Random": Row(random, random=True),
    "Criticality": Row(criticality),
    "Criticality-mean": Row(lambda **k: criticality(aggregate="mean", batches=2, **k)),
    "Criticality-gradient": Row(lambda **k: criticality(growth="gradient", **k)),
    "Criticality-random": Row(lambda **k: criticality(growth="random", **k), random=True),
    "Criticality-regrow-only": Row(lambda **k: criticality(drop="random", **k), random=True),
    "SET": Row(sets, lambda t: 0.7, random=True, random_start=True),
    "RigL": Row(rigl, lambda t: 0.7, random=True, zero_start=False, random_start=True),
    "GraNet": Row(granet, zero_start=False),
    "LAMP": Row(lamp),
    "CQP": Row(cqp),
    "CQP-mean": Row(lambda **k: cqp(aggregate="mean", batches=2, **k)),
    "NDSNN": Row(ndsnn, cubic(0.8, 0.7), random=True, random_start=True),
    "DeepR": Row(deepr, lambda t: 0.7, random=True, random_start=True),
    "DeepR-noise": Row(
        lambda **k: deepr(temperature=0.05, **k), lambda t: 0.7, random=True, random_start=True
    ),
    "DeepR-soft": Row(
        lambda **k: deepr(**{"soft": True, "l1": 0.3, "temperature": 0.3, **k}),
        random=True,
        emergent=True,
    ),
    "Magnitude-NM": Row(blocks(magnitude), cubic(0.5)),
    "Criticality-NM": Row(blocks(criticality), cubic(0.5)),
    "RigL-NM": Row(
        blocks(rigl, allocation=Uniform()),
        lambda t: 0.5,
        random=True,
        zero_start=False,
        random_start=True,
    ),
    "ADMM": Row(admm, lambda t: 0.8, steps=(9,)),
    "RCMO": Row(rcmo, lambda t: 0.8, steps=(9,)),
    "DPAPSynapses": Row(synapses, emergent=True),
    "GradR": Row(gradr, emergent=True),
    "STDS": Row(stds, emergent=True),
    "UPR": Row(upr, emergent=True),
}
ENFORCED = [name for name, row in METHODS.items() if not row.emergent]


def keep_at(row, t):
    return round((1 - row.target(t)) * TOTAL)


def updates_of(monkeypatch):
    """Return the list of (masks before, result) of all updates to come, by layer name."""
    seen, original = [], sj_prune.run.update.propose

    def spied(run, layers, *args):
        before = {layer.name: layer.mask.clone() for layer in layers}
        found = original(run, layers, *args)
        seen.append((before, found))
        return found

    monkeypatch.setattr(sj_prune.run.update, "propose", spied)
    return seen


@pytest.mark.parametrize("name", ENFORCED)
def test_every_update_is_exact(name, monkeypatch):
    row = METHODS[name]
    model, optimizer = wrapped(row.make())
    seen, masks, t = updates_of(monkeypatch), model.masks.masks, 0

    def after(k):
        nonlocal masks, t
        assert_masked(model, optimizer)
        if k not in row.steps:
            assert same(masks, model.masks.masks), "masks changed between updates"
            return
        t += 1
        assert len(seen) == t
        before, found = seen[-1]
        assert same(before, masks)
        masks = model.masks.masks
        assert same(masks, {n: u.survivors | u.grown for n, u in found.items()})
        for n, update in found.items():
            assert not (update.survivors & ~before[n]).any(), "grown counted as a survivor"
            assert not (update.survivors & update.grown).any(), "a survivor was grown"
            assert masks[n].any(), f"layer {n} is empty"
        assert sum(int(m.sum()) for m in masks.values()) == keep_at(row, t)
        record = model.history[-1]
        assert record.step == k
        assert record.kept == {n: int(m.sum()) for n, m in masks.items()}
        assert record.dropped == {
            n: int((before[n] & ~u.survivors).sum()) for n, u in found.items()
        }
        assert record.grown == {n: int(u.grown.sum()) for n, u in found.items()}

    train(model, optimizer, 12, after=after)
    assert t == len(row.steps)
    assert model.sparsity()["total"] == 1 - round((1 - row.target(t)) * TOTAL) / TOTAL
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", ENFORCED)
def test_grown_weights_start_anew(name, monkeypatch):
    """A new unit is 0 and has fresh slots; one dropped and regrown too, unless the method keeps it.

    Seen through a step with learning rate 0.
    """
    row = METHODS[name]
    model = PruningWrapper(build(), row.make())
    # Adam's step counts would be None if RigL skipped the first; warm up first.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.attach(optimizer)
    last = next(k for k in row.steps if k >= 4)
    train(model, optimizer, last - 1)
    seen = updates_of(monkeypatch)
    values = snapshot(model.net)
    slots = {n: optimizer.state[model.masks.weight(n)]["exp_avg"].clone() for n in model.masks}
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1, start=last)
    ((before, found),) = seen
    for n, update in found.items():
        weight, mine = model.masks.weight(n), optimizer.state[model.masks.weight(n)]
        new = update.grown & ~before[n]
        assert not weight[new].any()
        assert not mine["exp_avg"][new].any()  # nor has the gradient of this step moved it
        again = update.grown & before[n]
        if row.zero_start:
            assert not weight[again].any()
            assert not mine["exp_avg"][again].any()
        else:
            assert weight[again].equal(values[f"{n}.weight"][again])
            if "RigL" in name:
                assert mine["exp_avg"][again].equal(slots[n][again])
        assert weight[update.survivors].equal(values[f"{n}.weight"][update.survivors])
    grown = sum(int(update.grown.sum()) for update in found.values())
    assert (grown > 0) == (row.make().plan().grow is not None)


def masks_after(row, seed, steps=9):
    model, optimizer = wrapped(row.make(), seed=seed)
    train(model, optimizer, steps)
    return model.masks.masks


@pytest.mark.parametrize("name", METHODS)
def test_seed_decides_every_random_choice(name):
    row = METHODS[name]
    first = masks_after(row, seed=1)
    torch.manual_seed(99)  # the global generator has no say
    assert same(first, masks_after(row, seed=1))
    if row.random:
        assert not same(first, masks_after(row, seed=2))


@pytest.mark.parametrize("name", METHODS)
def test_global_generator_is_left_alone(name):
    model, optimizer = wrapped(METHODS[name].make())
    for k in range(1, METHODS[name].steps[0] + 1):
        loss_of(model, k).backward()
        state = torch.get_rng_state()
        optimizer.step()
        assert torch.get_rng_state().equal(state)
    assert model.history


def permuted(net, order):
    """Return the same network with the first block's channels in another order."""
    with torch.no_grad():
        for tensor in (net[0].weight, net[1].weight, net[1].bias):
            tensor.copy_(tensor[order].clone())
        net[3].weight.copy_(net[3].weight[:, order].clone())
    return net


def permuted_masks(masks, order):
    return {**masks, "0": masks["0"][order], "3": masks["3"][:, order]}


# Whose noise, or whose blocks, go by position.
NOISY = (
    *("Random", "SET", "Criticality-random", "Criticality-regrow-only"),
    *("DeepR", "DeepR-noise", "DeepR-soft"),
)
BLOCKS = ("Magnitude-NM", "Criticality-NM", "RigL-NM")


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NOISY + BLOCKS])
def test_order_of_channels_does_not_matter(name):
    row = METHODS[name]
    order = torch.tensor([2, 0, 3, 1])
    models = []
    for net in (build().double(), permuted(build(), order).double()):
        model, optimizer = wrapped(row.make(), "sgd", net=net)
        models.append((model, optimizer))
    (a, opt_a), (b, opt_b) = models
    if row.random_start:
        b.masks.install(permuted_masks(a.masks.masks, order))
        with torch.no_grad():  # weights that only b's own masks had pruned
            b.net.load_state_dict(permuted(a.net, order).state_dict())
        permuted(a.net, order.argsort())
    steps = (
        9 if row.emergent else row.steps[0]
    )  # the first update has no ties between pruned weights
    train(a, opt_a, steps, dtype=torch.float64)
    train(b, opt_b, steps, dtype=torch.float64)
    assert a.history
    assert 0 < a.sparsity()["total"] < 1
    assert same(permuted_masks(a.masks.masks, order), b.masks.masks)


@pytest.mark.parametrize("name", METHODS)
def test_state_round_trip(name):
    row = METHODS[name]
    model, optimizer = wrapped(row.make())
    train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = PruningWrapper(build(seed=3), row.make(), seed=11)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(other.masks.masks, model.masks.masks)
    assert (other.step, other.seed, other.history) == (5, 0, model.history)
    assert same_state(dict(other.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("name", METHODS)
def test_scores_leave_weights_and_gradients_alone(name):
    """Drop and growth scores are pure: what the optimizer sees is the loss gradient alone."""
    row = METHODS[name]
    model = PruningWrapper(build(), row.make())
    with model.dense_gradients():
        loss_of(model, 1).backward()
    weights = snapshot(model.net)
    grads = {n: model.masks.weight(n).grad.clone() for n in model.masks}
    for n in model.masks:
        view = layer_view(model, n)
        if not row.emergent:
            drop_score(model.method, view)
            grow_score(model.method, view)
            tie_score(model.method, view)
    assert same(weights, snapshot(model.net))
    assert same(grads, {n: model.masks.weight(n).grad for n in model.masks})


@pytest.mark.parametrize("name", ENFORCED)
def test_update_now_reaches_any_sparsity(name):
    row = METHODS[name]
    model, optimizer = wrapped(row.make())
    train(model, optimizer, 1)
    if name not in ("Criticality-mean", "CQP-mean"):  # which records from the first step on
        loss_of(model, 2)
    with model.dense_gradients():
        loss_of(model, 2).backward()
    model.update_masks(0.9)
    assert sum(model.masks.kept().values()) == 76
    assert model.step == 1
    assert_masked(model, optimizer)
    assert model.history[-1].target == 0.9


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"sparsity": 1.3}, ValueError, r"Expected sparsity in [\[(].*, 1\) but got 1\.3"),
        ({"sparsity": 1.0}, ValueError, r"Expected sparsity in .* but got 1\.0"),
        ({"sparsity": -0.1}, ValueError, r"Expected sparsity in .* but got -0\.1"),
        ({"sparsity": math.nan}, ValueError, r"Expected sparsity in .* but got nan"),
        ({"sparsity": "0.9"}, TypeError, r"Expected sparsity to be a number but got '0\.9'"),
        ({"sparsity": True}, TypeError, "Expected sparsity to be a number but got True"),
        ({"interval": 0}, ValueError, "Expected interval to be at least 1 but got 0"),
        ({"interval": 1.5}, TypeError, r"Expected interval to be an integer but got 1\.5"),
        ({"begin": -1}, ValueError, "Expected begin to be at least 0 but got -1"),
        ({"begin": 8}, ValueError, "Expected end - begin >= interval"),
        ({"end": "9"}, TypeError, "Expected end to be an integer but got '9'"),
        ({"structure": "channels"}, TypeError, "Expected structure to be Unstructured"),
    ],
)
def test_wrong_settings(name, wrong, error, message):
    with pytest.raises(error, match=message):
        METHODS[name].make(**wrong)


@pytest.mark.parametrize("make", [random, sets, rigl, magnitude])
@pytest.mark.parametrize("allocation", ["ERK", ERK, None, 3])
def test_wrong_allocation(make, allocation):
    wanted = r"Expected allocation of \w+ to be Global\(\), Uniform\(\) or ERK\(\) but got "
    with pytest.raises(TypeError, match=wanted):
        make(allocation=allocation)
    for accepted in (Global(), Uniform(), ERK()):
        assert make(allocation=accepted).allocation == accepted


@pytest.mark.parametrize("make", [criticality, sets, rigl, granet])
@pytest.mark.parametrize(
    ("value", "error"), [(1.0, ValueError), (-0.1, ValueError), ("1", TypeError)]
)
def test_wrong_regrow(make, value, error):
    with pytest.raises(error, match="Expected regrow"):
        make(regrow=value)


def test_methods_are_frozen():
    for row in METHODS.values():
        with pytest.raises(AttributeError, match="cannot assign"):
            row.make().sparsity = 0.5


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        pytest.param(name, optimizer, marks=pytest.mark.slow if (i + j) % 3 else [])
        for i, name in enumerate(METHODS)
        for j, optimizer in enumerate(OPTIMIZERS)
    ],
)
def test_training_is_reproducible_to_the_bit(name, optimizer):
    def run():
        model, opt = wrapped(METHODS[name].make(), optimizer)
        train(model, opt, 4)
        return snapshot(model.net), frozen(opt)

    (a, state_a), (b, state_b) = run(), run()
    assert same(a, b)
    assert same_state(state_a, state_b)
