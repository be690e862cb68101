"""What a plan is said to be: never an error, never two plans alike, safe to load."""

import decimal
import enum
import functools
import io
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sj_prune.methods import Growth, reads
from sj_prune.methods.identity import describe
from tests.support.own_plan import busy, own_plan, size
from tests.support.pruning_cases import train, wrapped


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Callable:
    def __init__(self, value):
        self.value = value

    def __call__(self, layer):
        return layer.weight.abs() * self.value

    def method(self, layer):
        return layer.weight.abs() * self.value


class Kind(str, enum.Enum):
    A = "a"
    B = "b"


def closing_over(value):
    return lambda layer: (layer.weight.abs(), value)[0]


PAIRS = [
    (torch.ones(2), torch.zeros(2)),
    (np.ones(2), np.zeros(2)),
    (np.bool_(True), np.bool_(False)),
    (torch.float32, torch.float64),
    (torch.device("cpu"), torch.device("meta")),
    (Slotted(1), Slotted(2)),
    (1 + 2j, 1 + 3j),
    (b"a", b"b"),
    (decimal.Decimal("0.1"), decimal.Decimal("0.2")),
    (range(3), range(4)),
    (slice(1), slice(2)),
    ({"a", "b"}, {"a", "c"}),
    ({"a": [1, (2,)]}, {"a": [1, (3,)]}),
    (Kind.A, Kind.B),
    (math, np),
    (functools.partial(size), functools.partial(busy)),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_values_that_a_score_closes_over_count(one, other):
    same, again, different = (describe(own_plan(drop=closing_over(v))) for v in (one, one, other))
    assert same == again
    assert same != different


def test_bound_methods_and_callables_count():
    for make in (Callable, lambda v: Callable(v).method):
        found = [describe(own_plan(drop=make(value))) for value in (1.0, 1.0, 2.0)]
        assert found[0] == found[1] != found[2]


def itself():
    found = []
    found.append(found)
    return found


class Self:
    def __init__(self):
        self.me = self
        self.func = 3


def recursive():
    def score(layer):
        return layer.weight.abs() if layer else score(layer)

    return score


@pytest.mark.parametrize("drop", [closing_over(itself()), closing_over(Self()), recursive()])
def test_what_refers_to_itself_is_described(drop):
    assert describe(own_plan(drop=drop)) == describe(own_plan(drop=drop))


@pytest.mark.parametrize(
    "value", [Kind.A, np.str_("a"), np.float32(0.5), np.int64(3), torch.ones(3)]
)
def test_checkpoints_stay_safe_to_load(value):
    model, _ = wrapped(own_plan(drop=closing_over(value)))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True))


def test_a_score_that_changes_itself_does_not_lock_the_checkpoint_out():
    class Counting(Callable):
        def __call__(self, layer):
            self.value += 1
            return layer.weight.abs()

    model, optimizer = wrapped(own_plan(drop=Counting(0)))
    train(model, optimizer, 3)
    model.load_state_dict(model.state_dict())


@reads("firing_rate")
def rate(layer, factor):
    return None if layer.activity is None else factor * layer.activity.mean("firing_rate")


class Rate:
    @reads("firing_rate")
    def __call__(self, layer):
        return rate(layer, 2.0)


@pytest.mark.parametrize("score", [functools.partial(rate, factor=2.0), Rate()])
def test_reads_is_found_behind_partials_and_calls(score):
    plan = own_plan(grow=Growth(score, 0.2))
    assert plan.statistics == {"firing_rate"}
    model, optimizer = wrapped(plan)
    train(model, optimizer, 3)
    assert sum(model.history[-1].grown.values()) > 0


@dataclass(frozen=True)
class Odd:
    value: object

    def __call__(self, layer):
        return self.value


@pytest.mark.parametrize(
    "value", [1.5, np.ones(3), torch.ones(7), torch.ones(1, dtype=torch.complex64)]
)
def test_odd_scores_are_named(value):
    model, optimizer = wrapped(own_plan(drop=Odd(value), grow=None, interval=1))
    with pytest.raises((TypeError, ValueError), match="Expected a score of layer '0' to be"):
        train(model, optimizer, 1)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float16])
def test_scores_of_other_types(kind):
    def drop(layer):
        return (100 * layer.weight.abs()).to(kind)

    model, optimizer = wrapped(own_plan(drop=drop, grow=Growth(size, 0.2, grace=1)))
    train(model, optimizer, 6)
    assert model.sparsity()["total"] == pytest.approx(0.7, abs=1e-3)
