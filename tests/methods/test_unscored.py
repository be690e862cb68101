"""Layers of which the drop score says nothing: dense, and the sparsity does not count them."""

import copy
import logging

import pytest
import torch

from sj_prune import PruningWrapper, compact, prune
from sj_prune.masks import ERK, Channels, Cubic, Uniform
from sj_prune.methods import FromZeros, Growth, Plan, RandomMasks, reads
from tests.support.channel_cases import NORMS, pruner
from tests.support.own_plan import busy, own_plan
from tests.support.pruning_cases import (
    SIZES,
    assert_masked,
    batch,
    build,
    frozen,
    loss_of,
    same,
    same_state,
    snapshot,
    train,
    wrapped,
)

STATUS = "no: its drop score is None, so it stays dense and the sparsity does not count it"


def not_eight(layer):
    return None if layer.name == "8" else layer.weight.abs()


@reads("firing_rate")
def by_rate(layer):
    if layer.activity is None:
        return None
    rate = layer.activity.mean("firing_rate")
    return layer.weight.abs() + rate.view(-1, *[1] * (layer.weight.ndim - 1))


#: score -> the layer that it says nothing of
SCORES = {"by name": (not_eight, "8"), "by neurons": (by_rate, "10")}


def kept(model, without):
    masks = model.masks.masks
    return sum(int(mask.sum()) for name, mask in masks.items() if name != without)


def statuses(model):
    return {row.name: (row.prunable, row.status) for row in model.explain().rows}


@pytest.mark.parametrize("grow", [None, Growth(busy, 0.2), Growth(busy, 0.2, across_layers=True)])
@pytest.mark.parametrize("name", SCORES)
def test_the_rest_reaches_the_sparsity_exactly(name, grow):
    drop, dense = SCORES[name]
    model, optimizer = wrapped(own_plan(drop=drop, grow=grow))
    before = model.net.get_submodule(dense).weight.detach().clone()
    total, seen = 760 - SIZES[dense], []

    def after(k):
        assert_masked(model, optimizer)
        assert model.masks[dense].all()
        seen.append(kept(model, dense))

    train(model, optimizer, 7, after=after)
    density = [1.0] + [1 - 0.7 * (1 - (1 - t / 3) ** 3) for t in (1, 2, 3)]
    targets = [round(total * d) for d in density]
    assert seen == [targets[k // 2] for k in (1, 2, 3, 4, 5, 6, 7)]
    weight = model.net.get_submodule(dense).weight
    assert (weight != before).all()  # it trains, all of it
    assert weight.all()
    sparsity = model.sparsity()
    assert sparsity[dense] == 0
    assert sparsity["total"] == model.history[-1].sparsity == 1 - seen[-1] / total
    assert all(dense not in record.kept for record in model.history)
    found = model.report(batch(1)[0])
    assert found.totals["sparsity"] == pytest.approx(sparsity["total"])
    assert (found.totals["weights"], found.totals["weights_kept"]) == (total, seen[-1])
    row = next(row for row in found.rows if row.name == dense)
    assert (row.density, row.note) == (1.0, STATUS)
    assert statuses(model)[dense] == (False, STATUS)
    assert all(prunable for n, (prunable, _) in statuses(model).items() if n != dense)


def test_explain_says_so_before_training():
    model, _ = wrapped(own_plan(drop=not_eight))
    assert statuses(model)["8"] == (False, STATUS)
    assert "8" in model.masks.layers  # which looking has not changed
    model, _ = wrapped(own_plan(drop=by_rate))
    assert statuses(model)["10"][0]  # no forward has told that no neuron follows
    model.explain(batch(1)[0])
    assert statuses(model)["10"] == (False, STATUS)
    assert model.session.run.memory == {}


def test_a_score_that_needs_more_than_there_is_can_be_explained():
    def drop(layer):
        return layer.state["later"]

    assert all(prunable for prunable, _ in statuses(wrapped(own_plan(drop=drop))[0]).values())


@pytest.mark.parametrize("name", SCORES)
def test_resumes_bit_identically_and_rewinds(name):
    drop, dense = SCORES[name]
    model, optimizer = wrapped(own_plan(drop=drop))
    saved = {}

    def after(k):
        saved[k] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    train(model, optimizer, 7, after=after)
    weights, history, end = snapshot(model.net), list(model.history), frozen(optimizer)
    for k in (1, 3, 5):
        fresh = wrapped(own_plan(drop=drop), net=build(4), seed=9)
        for other, again in (fresh, (model, optimizer)):  # the second has come further: it rewinds
            other.load_state_dict(saved[k][0])
            again.load_state_dict(copy.deepcopy(saved[k][1]))
            assert (dense in other.masks.uncounted) == (k > 1)
            train(other, again, 7 - k, start=k + 1)
            assert same(snapshot(other.net), weights)
            assert other.history == history
            assert same_state(frozen(again), end)


@pytest.mark.parametrize("names", [["nobody"], ["0"]])
def test_a_checkpoint_that_counts_wrong_is_refused(names):
    model, optimizer = wrapped(own_plan(drop=not_eight))
    train(model, optimizer, 3)
    state = copy.deepcopy(model.state_dict())
    state["_extra_state"]["uncounted"] = names
    with pytest.raises(ValueError, match=f"uncounted' of .* got '{names[0]}'"):
        wrapped(own_plan(drop=not_eight))[0].load_state_dict(state)


@pytest.mark.parametrize("allocation", [Uniform(), ERK(), Uniform(first_dense=True)])
def test_random_masks_leave_it_whole(allocation):
    plan = own_plan(drop=not_eight, start=RandomMasks(), allocation=allocation)
    model = PruningWrapper(build(), plan)
    assert model.masks["8"].all()
    assert model.net[8].weight.all()
    assert kept(model, "8") == round(0.3 * 328)
    assert model.sparsity()["total"] == pytest.approx(0.7, abs=0.002)


def test_zeros_that_are_kept_are_those_of_the_rest():
    net = build()
    with torch.no_grad():
        for name in ("3", "8"):
            net.get_submodule(name).weight.flatten()[::2] = 0.0
    model = PruningWrapper(net, own_plan(drop=not_eight, grow=None, start=FromZeros()))
    assert model.masks["8"].all()
    assert int(model.masks["3"].sum()) == 108
    assert model.sparsity()["total"] == 1 - (328 - 108) / 328


def test_what_is_pruned_keeps_its_mask_and_counts():
    """A layer that is scored at first, and of which nothing is known at an update."""
    skipped = {4}

    def drop(layer):
        return None if layer.name == "8" and layer.step in skipped else layer.weight.abs()

    model, optimizer = wrapped(own_plan(drop=drop, grow=Growth(busy, 0.2)))
    masks = {}
    train(model, optimizer, 6, after=lambda k: masks.update({k: model.masks.masks}))
    assert not masks[2]["8"].all()
    assert masks[4]["8"].equal(masks[2]["8"])
    assert not masks[6]["8"].equal(masks[4]["8"])
    for t, k in enumerate((2, 4, 6), start=1):
        target = round(760 * (1 - 0.7 * (1 - (1 - t / 3) ** 3)))
        assert sum(int(mask.sum()) for mask in masks[k].values()) == target
    second, third = model.history[1:]
    assert "8" not in second.dropped
    assert third.survived.keys() == {"0", "3", "10"}
    grown = model.history[0].grown["8"]
    assert second.survived["8"] == grown > 0


def test_nothing_scored_is_an_error():
    model, optimizer = wrapped(own_plan(drop=lambda layer: None))
    train(model, optimizer, 1)
    weights = snapshot(model.net)
    loss_of(model, 2).backward()
    message = r"Expected Plan to score some of \['0', '3', '8', '10'\] but none has"
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    weights = {k: v for k, v in weights.items() if "running" not in k and "num" not in k}
    assert same(weights, {k: v for k, v in snapshot(model.net).items() if k in weights})


def channel_plan(**parts):
    def drop(layer):
        return None if layer.name == "3" else layer.weight.abs().flatten(1).sum(1)

    schedule = Cubic(final=0.5, interval=2, begin=0, end=4)
    return Plan(
        **{"schedule": schedule, "drop": drop, "structure": Channels(), "allocation": Uniform()},
        **parts,
    )


def test_whole_groups_of_channels():
    model, optimizer = pruner(channel_plan(grow=Growth(busy, 0.2)))
    train(model, optimizer, 5)
    assert model.masks["4"].all()
    assert sum(int(model.masks[name].sum()) for name in NORMS if name != "4") == round(0.5 * 15)
    assert model.sparsity()["total"] == 1 - 8 / 15
    assert statuses(model)["3"] == (False, STATUS)
    assert [record.kept.keys() for record in model.history] == [{"1", "7"}] * 2
    x = batch(1)[0]
    totals = model.report(x).totals
    assert (totals["channels"], totals["channels_kept"]) == (15, 8)
    small = compact(model.finalize(), x)
    assert small.get_submodule("3").out_channels == 10


@pytest.mark.parametrize("budget", [{"sparsity": 0.6}, {"parameters": 0.8}])
def test_a_trained_network_at_once(budget):
    plan = own_plan(drop=not_eight, grow=None)
    net, report = prune(build(), [batch(k) for k in range(2)], plan, budget=budget)
    assert net[8].weight.all()
    rest = sum(int(net.get_submodule(n).weight.count_nonzero()) for n in ("0", "3", "10"))
    if "sparsity" in budget:
        assert rest == round(0.4 * 328)
    else:
        totals = report.totals
        assert totals["parameters_kept"] == pytest.approx(0.8 * totals["parameters"], rel=0.01)
    assert report.totals["sparsity"] == pytest.approx(1 - rest / 328)


def test_one_line_says_so_and_the_end_is_not_said_to_be_too_dense(caplog):
    model, optimizer = wrapped(own_plan(drop=not_eight))
    with caplog.at_level(logging.INFO, "sj_prune"):
        train(model, optimizer, 7)
    said = [record.getMessage() for record in caplog.records if "score" in record.getMessage()]
    assert said == ["dense and not counted, for want of a score: ['8']"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "sj_prune"):
        model.finalize()
    assert not caplog.records
