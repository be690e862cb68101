"""Kinds of fault that a review of plans found: identity, sums, penalties, ages, choices."""

import copy
import functools
import os
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch

from sj_prune import methods, prune
from sj_prune.masks import Channels, Constant, Cubic, Hidden, Uniform
from sj_prune.methods import Growth, Penalty, Plan, RandomMasks
from sj_prune.methods.gradr import Rewired
from sj_prune.methods.identity import check_same, describe
from sj_prune.methods.parts import Reads, awake_score, magnitude
from tests.support.own_plan import busy, own_plan, size
from tests.support.processes import environment
from tests.support.pruning_cases import batch, build, loss_of, same, snapshot, train, wrapped

SCRIPT = """
from sj_prune.methods.identity import describe
from tests.support.own_plan import own_plan
print(describe(own_plan(drop=lambda l: l.weight if l.name in {"0", "7", "a", "b"} else None)))
print(describe(own_plan(drop=(lambda known: lambda l: known)({"0", "7", "a", "b"}))))
"""


def test_identity_is_that_of_another_process(capsys):
    """Sets are in another order there."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment(PYTHONHASHSEED=seed),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exec(compile(SCRIPT, "<string>", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == said
    assert "own_plan" in said or "lambda" in said


def scaled(factor, layer):
    return factor * layer.weight


def with_drop(drop):
    return own_plan(drop=drop)


def closing_over(value):
    return lambda layer: layer.weight * value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (methods.GReg(delta=0.5, end=10**6).plan(), methods.GReg(delta=0.9, end=10**6).plan()),
        (with_drop(functools.partial(scaled, 1.0)), with_drop(functools.partial(scaled, 2.0))),
        (with_drop(closing_over(torch.ones(2))), with_drop(closing_over(torch.zeros(2)))),
    ],
)
def test_what_a_score_holds_is_part_of_its_identity(one, other):
    check_same(one, describe(one))
    with pytest.raises(ValueError, match="Expected a checkpoint with method"):
        check_same(one, describe(other))


@dataclass(frozen=True)
class Summed:
    """|gradient|, added up; counts its calls."""

    key: str = "total"

    @property
    def reads(self):
        return Reads(frozenset({"gradient"}))

    def sums(self, layer):
        return {self.key: torch.zeros_like(layer.weight)}

    def add(self, layer):
        layer.state[self.key] += torch.ones_like(layer.weight)

    def __call__(self, layer):
        return layer.state[self.key] + layer.weight.abs()


def test_a_score_of_both_kinds_is_added_once():
    score = Summed()
    model, optimizer = wrapped(own_plan(drop=score, grow=Growth(score, 0.2), interval=5, end=5))
    train(model, optimizer, 3)
    assert (model.session.run.memory["0"]["total"] == 3).all()


def test_sums_of_one_name_are_refused():
    class Other(Summed):
        pass

    plan = own_plan(drop=Summed(), grow=Growth(Other(), 0.2), interval=5, end=5)
    model, optimizer = wrapped(plan)
    with pytest.raises(ValueError, match="Expected sums of different names .*'total'"):
        train(model, optimizer, 1)


def test_proximal_terms_reach_channels_that_sleep_without_a_norm():
    def halve(layer, lr):
        layer.weight.mul_(0.5)

    plan = Plan(
        schedule=Cubic(final=0.4, interval=1, begin=0, end=1),
        drop=lambda layer: layer.weight.abs().flatten(1).sum(1),
        structure=Channels(),
        allocation=Uniform(),
        penalties=(Penalty(proximal=halve),),
    )
    net = build()
    model, _ = wrapped(plan, net=net, example_input=batch(1)[0])
    optimizer = model.optimizers[0]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 2)
    assert not model.masks["8"].all()  # no norm behind it
    alive = net[8].weight.detach()[model.masks["8"]].clone()
    assert not net[8].weight[~model.masks["8"]].any()
    train(model, optimizer, 1, start=3)
    torch.testing.assert_close(net[8].weight.detach()[model.masks["8"]], 0.5 * alive)
    assert not net[8].weight[~model.masks["8"]].any()


def test_trying_a_budget_ages_nothing():
    """What a search for a budget has grown on trial is not protected in the update itself."""
    found = []
    for grace in (0, 2):
        plan = own_plan(grow=Growth(busy, 0.3, grace=grace))
        net, _ = prune(build(), [batch(k) for k in range(2)], plan, budget={"parameters": 0.5})
        found.append(snapshot(net))
    assert same(*found)


def test_a_choice_by_another_score_changes_nothing():
    def prepare(net):
        net.would_drop(lambda layer: torch.full_like(layer.weight, 77.0))

    plan = Plan(
        schedule=Cubic(final=0.4, interval=2, begin=0, end=2),
        drop=magnitude,
        structure=Channels(),
        penalties=(Penalty(prepare=prepare),),
    )
    model, optimizer = wrapped(plan)
    train(model, optimizer, 1)
    kept = (memory.get("awake") for memory in model.session.run.memory.values())
    assert all(score is None for score in kept)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"binding": Hidden(Rewired()), "grow": None}, "leave drop= out"),
        (
            {"binding": Hidden(Rewired()), "drop": None, "grow": None, "start": RandomMasks()},
            "start=Dense",
        ),
        ({"structure": Channels(), "grow": Growth(busy, 0.1, initial=0.5)}, "leave initial= out"),
        ({"grow": Growth(awake_score, 0.1)}, "only channels sleep"),
    ],
)
def test_senseless_pairs(parts, reason):
    with pytest.raises(ValueError, match=f"Expected parts of Plan that go together but .*{reason}"):
        own_plan(**parts)


@pytest.mark.parametrize(
    "make",
    [
        lambda: own_plan(schedule=Cubic(final=1.3, interval=1, end=2)),
        lambda: own_plan(rewrite=3),
        lambda: Growth(busy, Constant(final=1.5, interval=1, end=2)),
        lambda: Growth(busy, 0.1, ties=3),
    ],
)
def test_wrong_values(make):
    with pytest.raises((TypeError, ValueError), match="Expected "):
        make()


def test_a_rewrite_is_looked_at():
    data = [batch(k) for k in range(2)]
    plan = own_plan(rewrite=lambda layer: None)
    net = build()
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"Expected rewrite= .* a weight of shape \(4, 2, 3, 3\)"):
        prune(net, data, plan)
    assert same(before, snapshot(net))
    doubled, _ = prune(build(), data, replace(plan, rewrite=lambda layer: 2 * layer.weight))
    plain, _ = prune(build(), data, replace(plan, rewrite=None))
    for name in ("0", "3", "8", "10"):
        a, b = doubled.get_submodule(name).weight, plain.get_submodule(name).weight
        assert torch.equal(a, 2 * b)


def test_a_copy_is_in_no_block():
    model, _ = wrapped(own_plan())
    with model.recording(), model.dense_gradients():
        twin = copy.deepcopy(model)
    assert not twin.session.recorder.now
    assert not twin.session.hooks.forced_dense


def test_a_refused_checkpoint_leaves_channels_unknown():
    plan = Plan(schedule=Cubic(final=0.4, interval=2, end=4), drop=size, structure=Channels())
    model, optimizer = wrapped(plan)
    train(model, optimizer, 3)
    state = copy.deepcopy(model.state_dict())
    masks = state["_extra_state"]["masks"]
    name = next(iter(masks))
    masks[name] = masks[name][:-1]
    other, _ = wrapped(plan)
    with pytest.raises(ValueError, match="Expected a mask of shape"):
        other.load_state_dict(state)
    assert len(other.masks) == 0
    assert other.session.run.anatomy.topology is None
    loss_of(other, 1).backward()  # and it goes on
