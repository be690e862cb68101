"""Two plain functions and a `Plan` are a method: exact, resumable, the same on all ranks."""

import copy

import pytest
import torch

from sj_prune import PruningWrapper, methods
from sj_prune.masks import AtUpdates, Channels, Cubic, Hidden, Sleep
from sj_prune.methods import FILL, Growth, Penalty, Plan, RandomMasks, reads
from sj_prune.methods.gradr import Rewired
from sj_prune.methods.identity import check_same, describe
from tests.support.own_plan import busy, own_plan, size
from tests.support.processes import run_in_ranks
from tests.support.pruning_cases import (
    assert_masked,
    build,
    resumed,
    same,
    snapshot,
    train,
    wrapped,
)

TOTAL = 760  # weights of `build()`


def kept(model):
    return sum(int(mask.sum()) for mask in model.masks.masks.values())


def test_prunes_exactly_and_grows_by_the_second_function():
    model, optimizer = wrapped(own_plan())
    seen = []

    def after(step):
        assert_masked(model, optimizer)
        seen.append(kept(model))

    train(model, optimizer, 7, after=after)
    density = [1.0] + [1 - 0.7 * (1 - (1 - t / 3) ** 3) for t in (1, 2, 3)]
    targets = [round(TOTAL * d) for d in density]
    assert seen == [targets[k // 2] for k in (1, 2, 3, 4, 5, 6, 7)]
    assert all(sum(record.grown.values()) > 0 for record in model.history)
    assert all(record.grown["10"] == 0 for record in model.history)  # no neuron follows


def test_what_is_grown_feeds_the_busiest_neurons():
    model, _ = wrapped(own_plan(grow=Growth(busy, 0.5)))
    with model.recording():
        train(model, [], 1)
    rates = {n: model.nodes[n].activity.mean("firing_rate") for n in model.nodes}
    before = {n: model.net.get_submodule(n).weight.detach().clone() for n in ("0", "3", "8")}
    model.update_masks(0.5)
    for name, node in (("0", "2"), ("3", "5"), ("8", "9")):
        weight, mask = before[name], model.masks[name]
        number = int(mask.sum())
        survivors = number - number // 2
        order = weight.abs().flatten().argsort(descending=True)
        survived = torch.zeros(weight.numel(), dtype=torch.bool)
        survived[order[:survivors]] = True
        score = rates[node].view(-1, *[1] * (weight.ndim - 1)).expand_as(weight).flatten()
        grown = mask.flatten() & ~survived
        left_out = ~mask.flatten() & ~survived
        assert survived[~mask.flatten()].sum() == 0
        assert score[grown].min() >= score[left_out].max()


def test_resumes_bit_identically():
    model, other = resumed(own_plan)
    assert same(snapshot(model.net), snapshot(other.net))
    assert same(model.masks.masks, other.masks.masks)


def test_runs_on_two_ranks(tmp_path):
    first, second = run_in_ranks(2, "own_plan", "trained_in_ranks", tmp_path)
    assert first == second
    assert len(set(first["hashes"])) == 7
    assert [record["step"] for record in first["history"]] == [2, 4, 6]


# ---- identity -----------------------------------------------------------------------------------


def plan_with(drop=size, fraction=0.2, offset=0.0):
    schedule = Cubic(final=0.7, interval=2, begin=0, end=6)
    return Plan(
        schedule=schedule, drop=drop or (lambda x: x.weight + offset), grow=Growth(busy, fraction)
    )


def test_a_plan_is_known_by_names_code_and_values():
    assert describe(plan_with()) == describe(plan_with())
    assert describe(plan_with(None, offset=1.0)) == describe(plan_with(None, offset=1.0))
    different = (plan_with(fraction=0.1), plan_with(None), plan_with(drop=methods.LayerView))
    for other in different:
        with pytest.raises(ValueError, match=r"Expected a checkpoint with method\."):
            check_same(plan_with(), describe(other))
    with pytest.raises(ValueError, match=r"method\.drop\.values"):
        check_same(plan_with(None, offset=1.0), describe(plan_with(None, offset=2.0)))


def test_another_plan_does_not_load():
    model, optimizer = wrapped(own_plan())
    train(model, optimizer, 3)
    other, _ = wrapped(own_plan(grow=Growth(busy, 0.3)))
    before = snapshot(other.net)
    with pytest.raises(ValueError, match=r"method\.grow\.fraction = 0\.3 but it has 0\.2"):
        other.load_state_dict(model.state_dict())
    assert same(before, snapshot(other.net))


# ---- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"drop": None, "grow": None}, "nothing says what is dropped"),
        ({"binding": Sleep()}, "single weights neither sleep"),
        ({"binding": AtUpdates()}, "single weights neither sleep"),
        (
            {"structure": Channels(), "binding": Hidden(Rewired()), "drop": None, "grow": None},
            "a channel has none",
        ),
        ({"binding": Hidden(Rewired()), "drop": None}, "leave grow= out"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, reason):
    with pytest.raises(ValueError, match=f"Expected parts of Plan that go together but .*{reason}"):
        own_plan(**parts)


def test_grad_r_on_channels_is_refused():
    with pytest.raises(ValueError, match="Expected parts of GradR .* a channel has none"):
        methods.GradR(sparsity=0.8, structure=Channels())


@reads("no_such")
def unknown(layer):
    return layer.weight


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: own_plan(schedule=0.5), TypeError),
        (lambda: own_plan(drop=3), TypeError),
        (lambda: own_plan(grow=busy), TypeError),
        (lambda: own_plan(penalties=[Penalty()]), TypeError),
        (lambda: own_plan(start=RandomMasks), TypeError),
        (lambda: own_plan(structure=Channels), TypeError),
        (lambda: Growth(busy, 1.0), ValueError),
        (lambda: Growth(busy, 0.1, of="some"), ValueError),
        (lambda: Growth(busy, 0.1, ties="some"), ValueError),
        (lambda: Growth(3, 0.1), TypeError),
        (lambda: Penalty(of="beta"), ValueError),
        (lambda: Penalty(gradient=1), TypeError),
        (lambda: RandomMasks(1.5), ValueError),
        (lambda: reads(busy), TypeError),
        (lambda: reads("firing_rate", batches=0), ValueError),
        (
            lambda: PruningWrapper(build(), own_plan(drop=reads("no_such")(lambda x: x.weight))),
            ValueError,
        ),
        (lambda: PruningWrapper(build(), Plan), TypeError),
        (lambda: PruningWrapper(build(), size), TypeError),
    ],
)
def test_wrong_parts(make, error):
    with pytest.raises(error, match=r"Expected "):
        make()


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (
            lambda x: torch.rand(3),
            ValueError,
            r"score of layer '0' to be .* that broadcasts .* got \(3,\)",
        ),
        (lambda x: 1.0, TypeError, "score of layer '0' to be .* but got float"),
        (lambda x: x.dense_grad().abs(), RuntimeError, r'mark the score with @reads\("gradient"\)'),
        (lambda x: x.activity.mean("abs_charge"), RuntimeError, r'@reads\("abs_charge"\)'),
        (lambda x: x.activity.mean("no_such"), ValueError, "Expected statistics among"),
    ],
)
def test_a_score_that_says_something_else_than_it_reads(score, error, message):
    """The masked gradient of a pruned weight is 0: a score must not take it for the dense one."""
    model, optimizer = wrapped(own_plan(drop=score, grow=None))
    before = model.masks.masks
    with pytest.raises(error, match=message):
        train(model, optimizer, 2)
    assert same(before, model.masks.masks)


def test_what_a_score_may_read_is_named():
    plan = own_plan(drop=reads("grad")(lambda x: x.weight))
    with pytest.raises(ValueError, match=r"'grad'.* a score of Plan.* 'gradient'"):
        PruningWrapper(build(), plan)


def test_growth_reads_the_dense_gradient_or_none():
    def grown_by(score):
        model, optimizer = wrapped(own_plan(grow=Growth(score, 0.2)))
        train(model, optimizer, 6)

    seen = []

    def gradient(layer):
        seen.append(bool(layer.dense_grad()[~layer.mask].any()))
        return layer.dense_grad().abs()

    with pytest.raises(RuntimeError, match="Expected a gradient of layer"):
        grown_by(lambda layer: layer.dense_grad().abs())
    grown_by(reads("gradient")(gradient))
    assert any(seen)


def test_initial_value_and_fill():
    """Nothing is exchanged; a manual update to a lower sparsity grows what is missing."""
    model, _ = wrapped(own_plan(grow=Growth(size, FILL, initial=0.25)))
    model.update_masks(0.5)
    before = model.masks.masks
    model.update_masks(0.3)
    for name, mask in model.masks.items():
        grown = mask & ~before[name]
        assert not (before[name] & ~mask).any()
        assert (model.net.get_submodule(name).weight[grown] == 0.25).all()
    assert kept(model) == round(0.7 * TOTAL)


def test_grace_protects_what_was_grown():
    def run(grace):
        model, optimizer = wrapped(own_plan(interval=1, grow=Growth(busy, 0.3, grace=grace)))
        masks = []
        train(model, optimizer, 6, after=lambda _: masks.append(model.masks.masks))
        lost = []
        for first, second, third in zip(masks, masks[1:], masks[2:], strict=False):
            for name in first:
                new = second[name] & ~first[name]
                lost.append(int((new & ~third[name]).sum()))
        return sum(lost)

    assert run(0) > 0
    assert run(1) == 0


def test_of_before_drops_a_fraction_of_what_was_alive():
    model, optimizer = wrapped(own_plan(grow=Growth(size, 0.25, of="before", across_layers=True)))
    alive = [TOTAL]
    train(model, optimizer, 6, after=lambda _: alive.append(kept(model)))
    for record, before in zip(model.history, (alive[1], alive[3], alive[5]), strict=True):
        survivors = before - int(0.25 * before)
        now = sum(record.kept.values())
        assert sum(record.grown.values()) == max(0, now - survivors)


def test_proximal_term_is_outside_of_the_moments():
    """The weight shrinks by ``lr * 0.5 * w`` after the step, and momentum knows nothing of it."""
    seen = []

    def shrink(layer, lr):
        seen.append(lr)
        layer.weight.mul_(1 - 0.5 * lr)

    plain, first = wrapped(own_plan(interval=50, end=50))
    model, second = wrapped(own_plan(interval=50, end=50, penalties=(Penalty(proximal=shrink),)))
    train(plain, first, 1)
    train(model, second, 1)
    assert seen == [0.1] * 4
    for name in ("0", "3", "8", "10"):
        a, b = plain.net.get_submodule(name).weight, model.net.get_submodule(name).weight
        torch.testing.assert_close(b, a * 0.95)
        buffers = (o.state[w]["momentum_buffer"] for o, w in ((first, a), (second, b)))
        assert torch.equal(*buffers)


def test_prepare_sees_the_network_and_keeps_memory():
    def prepare(net):
        net.memory["steps"] = net.memory.get("steps", torch.zeros(())) + 1
        dropped = net.would_drop(keep=380)
        assert sum(int(d.sum()) for d in dropped.values()) == TOTAL - 380
        assert net.learning_rate("0") == 0.1
        assert set(net.layers) == {"0", "3", "8", "10"}

    plan = own_plan(interval=50, end=50, grow=None, penalties=(Penalty(prepare=prepare),))
    model, optimizer = wrapped(plan)
    train(model, optimizer, 3)
    saved = copy.deepcopy(model.state_dict())
    other, again = wrapped(plan, net=build(3))
    other.load_state_dict(saved)
    train(other, again, 2)
    assert int(other.session.run.network_memory["steps"]) == 5
