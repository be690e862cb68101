"""What every channel method has to do. A new one is one row of `CHANNEL_METHODS`."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sj_prune import methods
from sj_prune.masks import (
    ERK,
    AtUpdates,
    Channels,
    Constant,
    Cubic,
    Global,
    LayerScores,
    OneShot,
    Sleep,
    Uniform,
    Unstructured,
)
from sj_prune.masks import prune_and_regrow as update
from sj_prune.methods.identity import check_same, describe
from sj_prune.methods.parts.scores import reads_of
from tests.support.channel_cases import CHANNEL_METHODS, node, ready, sca, view
from tests.support.views import begun, choose, drop_score, grow_score, penalize

GROWTHS = ("gradient", "criticality", "random", "score")
EVERY = pytest.mark.parametrize("name", CHANNEL_METHODS)


# ---- settings ------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"sparsity": 1.3}, ValueError, r"Expected sparsity in \[0, 1\) but got 1\.3"),
        ({"sparsity": math.nan}, ValueError, r"Expected sparsity in \[0, 1\) but got nan"),
        ({"sparsity": "0.9"}, TypeError, r"Expected sparsity to be a number but got '0\.9'"),
        ({"regrow": 1.0}, ValueError, r"Expected regrow in \[0, 1\) but got 1\.0"),
        ({"regrow": -0.1}, ValueError, r"Expected regrow in \[0, 1\) but got -0\.1"),
        ({"regrow": "1"}, TypeError, "Expected regrow to be a number but got '1'"),
        ({"growth": "taylor"}, ValueError, "Expected growth to be one of .* but got 'taylor'"),
        ({"wake": "sleep"}, ValueError, "Expected wake to be one of .* but got 'sleep'"),
        ({"interval": 0}, ValueError, "Expected interval .*at least 1 but got 0"),
        ({"interval": 1.5}, TypeError, r"Expected interval to be an integer but got 1\.5"),
        ({"interval": 0, "end": None}, ValueError, "Expected interval of at least 1 but got 0"),
        ({"begin": -1}, ValueError, "Expected begin to be at least 0 but got -1"),
        ({"begin": 8}, ValueError, "Expected end - begin"),
        ({"end": "9"}, TypeError, "Expected end to be an integer but got '9'"),
        ({"batches": 0}, ValueError, r"Expected batches in \[1, \d\], .* but got 0"),
        ({"batches": 9}, ValueError, r"Expected batches in \[1, \d\], .* but got 9"),
        ({"batches": True}, TypeError, "Expected batches to be an integer but got True"),
        ({"structure": Unstructured()}, TypeError, r"to be Channels\(\) but got Unstructured\(\)"),
        ({"structure": "channels"}, TypeError, r"to be Channels\(\) but got 'channels'"),
        (
            {"allocation": "ERK"},
            TypeError,
            r"Expected allocation of \w+ to be Global\(\) or Uniform\(\) but got 'ERK'",
        ),
        (
            {"allocation": Global},
            TypeError,
            r"to be Global\(\) or Uniform\(\) but got <class .*an instance, with parentheses",
        ),
        (
            {"allocation": ERK()},
            ValueError,
            r"Expected parts of \w+ that go together but allocation=ERK\(\) gives densities by the "
            r"shape of weights, which channels do not have: Global\(\) or Uniform\(\)",
        ),
    ],
)
def test_wrong_settings(name, wrong, error, message):
    with pytest.raises(error, match=message):
        CHANNEL_METHODS[name].make(**wrong)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sca(score="v"), ValueError, "Expected score to be one of .* but got 'v'"),
        (lambda: sca(enforce="never"), ValueError, "Expected enforce to be one of"),
        (lambda: sca(l1=-1), ValueError, "Expected l1 to be finite and of at least 0 but got -1"),
        (lambda: sca(l1=None), TypeError, "Expected l1 to be a number but got None"),
        (
            lambda: sca(sparsity=0.5, regrow=0.5),
            ValueError,
            r"Expected sparsity \+ regrow < 1 but got 0\.5 \+ 0\.5.*fraction of all channels",
        ),
        (lambda: sca(sparsity=0.7, regrow=0.6), ValueError, r"sparsity \+ regrow < 1"),
        (
            lambda: methods.SCA(sparsity=0.5, regrow=0.1, end=100),
            ValueError,
            r"Expected interval.*once an epoch.*interval=len\(loader\)",
        ),
        (
            lambda: methods.NetworkSlimming(end=8, l1=math.inf),
            ValueError,
            "Expected l1 to be finite",
        ),
        (
            lambda: methods.CriticalityChannels(end=8, aggregate="sum"),
            ValueError,
            "Expected aggregate to be one of .* but got 'sum'",
        ),
        (
            lambda: methods.FilterNorm(p=3),
            ValueError,
            r"Expected p to be one of \(1, 2\) but got 3",
        ),
        (
            lambda: methods.FilterNorm(p=True),
            ValueError,
            r"Expected p to be one of \(1, 2\) but got True",
        ),
        (
            lambda: methods.FilterNorm(p="1"),
            ValueError,
            r"Expected p to be one of \(1, 2\) but got '1'",
        ),
    ],
)
def test_wrong_settings_of_one(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_published_settings():
    method = methods.SCA(sparsity=0.8, regrow=0.1, interval=390, end=390 * 300)
    assert (method.score, method.enforce, method.wake, method.growth) == (
        "code",
        "always",
        "restore",
        "gradient",
    )
    assert method.structure == Channels(linear=False)
    assert method.plan().window is None
    method = methods.CriticalityChannels(end=100)
    assert (method.sparsity, method.regrow, method.l1) == (0.512, 0.3, 1e-4)
    assert (method.growth, method.aggregate) == ("criticality", "max")
    method = methods.CriticalityChannels(sparsity=0.658, regrow=0.1, end=100)
    assert method.plan().statistics == {"criticality_max"}
    assert methods.NetworkSlimming(end=100).regrow == 0


@EVERY
def test_protocol(name):
    row = CHANNEL_METHODS[name]
    method = row.make(regrow=0.0)
    plan = method.plan()
    assert plan.statistics == frozenset(row.reads)
    assert (plan.gradient, plan.grow) == ("never", None)
    assert plan.allocation == method.allocation == row.allocation
    assert plan.needs_norm == row.needs_norm
    assert plan.scores_neurons == bool(row.reads)
    assert not plan.emergent
    updates = [step for step in range(1, 20) if plan.schedule.due(step)]
    assert updates == ([8] if row.once else [2, 4, 6, 8])
    kind = OneShot if row.once else Constant if row.constant else Cubic
    assert type(plan.schedule) is kind
    assert plan.schedule.at(8) == method.sparsity == plan.sparsity
    assert all(not row.constant or plan.schedule.at(k) == method.sparsity for k in updates)
    assert plan.binding == (AtUpdates() if name == "SCA-update" else Sleep("restore"))
    assert plan.from_scratch == (name == "SCA-update")


@EVERY
@pytest.mark.parametrize("growth", GROWTHS)
def test_growth_settings(name, growth):
    """Growing is two settings for every method; statistics and gradients follow from them."""
    row = CHANNEL_METHODS[name]
    plan = row.make(regrow=0.2, growth=growth, wake="zero").plan()
    kind = "criticality_mean" if name.endswith("-mean") else "criticality_max"
    assert plan.statistics == {*row.reads, *([kind] if growth == "criticality" else [])}
    assert plan.gradient == ("update" if growth == "gradient" else "never")
    assert reads_of(plan.grow.score).over == ("sum" if growth == "gradient" else None)
    assert plan.grow.across_layers == (not isinstance(row.allocation, Uniform))
    assert plan.grow.of == ("all" if row.of_all else "kept")
    assert plan.grow.keeps_value
    assert plan.grow.exact_ties
    assert plan.binding == (AtUpdates() if name == "SCA-update" else Sleep("zero"))
    grown = [plan.grow.at(k) for k in range(9) if plan.schedule.due(k)]
    assert grown == [0.2] * (1 if row.once else 4)


@EVERY
def test_manual(name):
    """Without `end` nothing happens by itself; the final values hold at every call."""
    method = CHANNEL_METHODS[name].make(end=None, interval=None, batches=None, regrow=0.2)
    plan = method.plan()
    assert not any(plan.schedule.due(step) for step in range(100))
    assert plan.schedule.at(0) == method.sparsity
    assert plan.grow.at(0) == 0.2


@EVERY
def test_describe_round_trip(name):
    make = CHANNEL_METHODS[name].make
    method = make()
    saved = json.loads(json.dumps(describe(method)))
    check_same(method, saved)
    check_same(make(), describe(method))
    assert set(saved) == {"name", *(f.name for f in dataclasses.fields(method))}
    for changed in ({"sparsity": 0.25}, {"regrow": 0.15}, {"wake": "zero"}, {"growth": "random"}):
        (key,) = changed
        with pytest.raises(ValueError, match=rf"method\.{key} = "):
            check_same(make(**changed), saved)
    with pytest.raises(AttributeError, match="cannot assign"):
        method.sparsity = 0.5
    with pytest.raises(TypeError, match="positional"):
        type(method)(0.5)
    assert make() == method
    assert hash(make()) == hash(method)


# ---- scores --------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("norm", [True, False])
def test_scores_are_pure_and_one_a_channel(name, norm):
    row = CHANNEL_METHODS[name]
    for growth in GROWTHS:
        seen = view(norm=norm, nodes=[node(seed=1), node(seed=2)])
        method = row.make(regrow=0.2, growth=growth)
        ready(method, begun(method, seen))
        before = held(seen)
        drop, grow = drop_score(method, seen), grow_score(method, seen)
        assert (drop is None) == (row.needs_norm and not norm)
        assert drop is None or drop.shape == (6,)
        assert grow.shape == (6,)
        assert torch.isfinite(grow).all()
        assert all(a.equal(b) for a, b in zip(before, held(seen), strict=True))


def held(seen):
    tensors = [seen.weight, seen.grad, seen.mask, *seen.state.values()]
    if seen.norm is not None:
        tensors += [p for q in seen.norm.parameters() for p in (q.detach(), q.grad)]
    return [tensor.clone() for tensor in tensors]


@EVERY
def test_penalties(name):
    """Only the methods that say so change gradients; weights are never touched."""
    row = CHANNEL_METHODS[name]
    method, seen = row.make(), view(step=3)
    for step in (1, 2, 3):
        choose(method, seen, torch.ones(6, dtype=torch.bool), step)
    before, weight = held(seen), seen.weight.clone()
    penalize(method, seen)
    changed = any(not a.equal(b) for a, b in zip(before, held(seen), strict=True))
    assert changed == row.penalizes
    assert seen.weight.equal(weight)


@pytest.mark.parametrize("name", [n for n, row in CHANNEL_METHODS.items() if not row.random])
def test_order_of_channels_does_not_matter(name):
    row = CHANNEL_METHODS[name]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    seen = view(nodes=[node(seed=1)])
    there = node(seed=1)
    for key, value in there.activity.means.items():
        there.activity.means[key] = value[order]
    moved = view(nodes=[there])
    moved.weight.copy_(seen.weight[order])
    moved.grad.copy_(seen.grad[order])
    for mine, theirs in zip(moved.norm.parameters(), seen.norm.parameters(), strict=True):
        mine.data.copy_(theirs[order])
        mine.grad.copy_(theirs.grad[order])
    method = row.make()
    ready(method, seen), ready(method, moved)
    moved.state.update({key: value[order] for key, value in seen.state.items() if value.ndim})
    a, b = drop_score(method, seen), drop_score(method, moved)
    torch.testing.assert_close(a[order], b)


# ---- counts --------------------------------------------------------------------------------------


@st.composite
def networks(draw):
    """Layers of a few channels, and scores with many ties among them."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    seed, levels = draw(st.integers(0, 10**6)), draw(st.sampled_from([1, 3, 1000]))
    return sizes, seed, levels


def run_updates(method, network, min_keep=1):
    """Run the method's updates on random scores; yield the step and what was found."""
    sizes, seed, levels = network
    plan = method.plan()
    generator = torch.Generator().manual_seed(seed)

    def noise(size):
        return torch.randint(levels, (size,), generator=generator).double()

    masks = [torch.ones(n, dtype=torch.bool) for n in sizes]
    for step in (k for k in range(1, 20) if plan.schedule.due(k)):
        layers = [
            LayerScores(
                f"group{i}",
                torch.ones_like(mask) if plan.from_scratch else mask,
                noise(len(mask)),
                noise(len(mask)) if plan.grow else None,
                floor=min(min_keep, len(mask)),
            )
            for i, mask in enumerate(masks)
        ]
        keep = round((1 - plan.schedule.at(step)) * sum(sizes))
        found = update(
            layers,
            keep,
            plan.allocation,
            regrow=plan.grow.at(step) if plan.grow else 0.0,
            of=plan.grow.of if plan.grow else "kept",
            across_layers=plan.grow is not None and plan.grow.across_layers,
            exact_ties=plan.grow is None or plan.grow.exact_ties,
            generator=generator,
        )
        yield layers, keep, found
        masks = [one.mask for one in found]


@given(
    networks(),
    st.floats(0, 0.95),
    st.floats(0, 0.95),
    st.sampled_from(["always", "update"]),
    st.integers(1, 3),
)
@settings(max_examples=150)
def test_sca_counts_are_exact_at_every_update(network, p, q, enforce, min_keep):
    """Kept: round((1 - p) units). Grown: round(q units), as long as no layer is emptied."""
    sizes = network[0]
    units, floors = sum(sizes), sum(min(min_keep, n) for n in sizes)
    if p + q >= 1 or round((1 - p) * units) < floors:
        return
    method = sca(sparsity=p, regrow=q, enforce=enforce)
    count = 0
    for layers, keep, found in run_updates(method, network, min_keep):
        count += 1
        masks = [one.mask for one in found]
        grown = sum(int(one.grown.sum()) for one in found)
        assert sum(int(mask.sum()) for mask in masks) == keep == round((1 - p) * units)
        survivors = max(keep - round(q * units), floors)
        assert grown == (0 if keep == units or not q else keep - survivors)
        for mask, layer in zip(masks, layers, strict=True):
            assert int(mask.sum()) >= layer.floor
        for one, layer in zip(found, layers, strict=True):
            assert not (one.survivors & ~layer.mask).any()
            assert not (one.survivors & one.grown).any()
    assert count == 4


@EVERY
@given(networks(), st.floats(0, 0.9), st.floats(0, 0.9))
@settings(max_examples=20)
def test_counts_are_exact(name, network, sparsity, regrow):
    row = CHANNEL_METHODS[name]
    sizes = network[0]
    if (row.of_all and sparsity + regrow >= 1) or round((1 - sparsity) * sum(sizes)) < len(sizes):
        return
    for layers, keep, found in run_updates(row.make(sparsity=sparsity, regrow=regrow), network):
        assert sum(int(one.mask.sum()) for one in found) == keep
        assert all(one.mask.any() for one in found)
        grown = sum(int(one.grown.sum()) for one in found)
        if not regrow:
            assert grown == 0
        elif isinstance(row.allocation, Global) and not row.of_all:
            assert grown == (keep < sum(sizes)) * min(int(regrow * keep), keep - len(layers))


@pytest.mark.parametrize("allocation", [Global(), Uniform()])
def test_sca_with_any_allocation_keeps_its_total(allocation):
    method = sca(sparsity=0.5, regrow=0.2, allocation=allocation)
    for _, keep, found in run_updates(method, ([8, 10, 7], 3, 1000)):
        assert keep == sum(int(one.mask.sum()) for one in found) == 12
        assert sum(int(one.grown.sum()) for one in found) == 5
