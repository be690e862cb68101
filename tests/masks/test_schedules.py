"""Schedules against their formulas, and the promise that the n-th update is the last word."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sj_prune.masks import Constant, Cosine, Cubic, CubicHold, Linear, OneShot

# METHODS, written again: value after the t-th of n updates, from a to b.
FORMULAS = {
    Linear: lambda t, n, a, b: a * (n - t) / n + b * t / n,
    Cubic: lambda t, n, a, b: b + (a - b) * ((n - t) / n) ** 3,
    Cosine: lambda t, n, a, b: b + (a - b) / 2 * (1 + math.cos(math.pi * t / n)),
    Constant: lambda t, n, a, b: b,
}
fractions = st.floats(0, 0.999)


@st.composite
def timings(draw):
    interval = draw(st.integers(1, 9))
    begin = draw(st.integers(0, 12))
    end = begin + interval + draw(st.integers(0, 40))
    return {"interval": interval, "begin": begin, "end": end}


@pytest.mark.parametrize("kind", FORMULAS)
@given(timing=timings(), a=fractions, b=fractions)
def test_value_after_every_update(kind, timing, a, b):
    schedule = kind(final=b, initial=a, **timing)
    begin, end, interval = timing["begin"], timing["end"], timing["interval"]
    steps = [k for k in range(end + 20) if begin < k <= end and (k - begin) % interval == 0]
    assert schedule.updates == len(steps)
    assert schedule.updates >= 1
    for t, step in enumerate(steps, start=1):
        assert schedule.at(step) == pytest.approx(FORMULAS[kind](t, len(steps), a, b), abs=1e-12)
        assert schedule.index(step) == t
    # Exactly, not within rounding, and for good.
    assert schedule.at(steps[-1]) == b
    assert schedule.at(end + 1000) == b
    if kind is not Constant:
        assert schedule.at(begin) == pytest.approx(a, abs=1e-12)


@given(timing=timings(), more=st.integers(0, 30), a=fractions, b=fractions)
def test_a_cubic_that_holds(timing, more, a, b):
    """The values of the cubic, and then its last at further updates."""
    end = timing["end"] + more
    schedule = CubicHold(final=b, initial=a, until=timing["end"], **{**timing, "end": end})
    rise = Cubic(final=b, initial=a, **timing)
    for step in range(end + 5):
        assert schedule.at(step) == rise.at(step)
        inside = timing["begin"] < step <= end
        assert schedule.due(step) == (inside and (step - timing["begin"]) % timing["interval"] == 0)
    assert schedule.updates == sum(map(schedule.due, range(end + 1)))


@pytest.mark.parametrize("until", [11, 1, "5"])
def test_a_hold_outside_of_the_run(until):
    with pytest.raises((TypeError, ValueError), match="Expected "):
        CubicHold(final=0.5, interval=2, begin=0, end=10, until=until)


@given(timing=timings())
def test_due_next_due_and_index_agree(timing):
    schedule = Linear(final=1.0, **timing)
    steps = range(timing["end"] + 15)
    due = [k for k in steps if schedule.due(k)]
    for k in steps:
        later = [d for d in due if d > k]
        assert schedule.next_due(k) == (later[0] if later else None)
        assert schedule.index(k) == len([d for d in due if d <= k])
        # Between updates the value stands still.
        if k and k not in due:
            assert schedule.at(k) == schedule.at(k - 1)


@given(st.integers(0, 30), st.integers(1, 30), fractions)
def test_one_shot_updates_once_at_the_end(begin, length, final):
    end = begin + length
    schedule = OneShot(final=final, initial=0.25, begin=begin, end=end)
    assert [k for k in range(end + 40) if schedule.due(k)] == [end]
    assert schedule.updates == 1
    assert schedule.at(end - 1) == 0.25
    assert schedule.at(end) == final


@pytest.mark.parametrize("kind", [*FORMULAS, OneShot])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"end": 0}, ValueError, "end to be at least 1 but got 0"),
        ({"begin": -1}, ValueError, "begin to be at least 0 but got -1"),
        ({"end": 10.0}, TypeError, "end to be an integer but got 10.0"),
        ({"begin": True}, TypeError, "begin to be an integer but got True"),
        ({"final": math.nan}, ValueError, "final to be finite but got nan"),
        ({"final": "0.9"}, TypeError, "final to be a number but got '0.9'"),
        ({"begin": 20}, ValueError, "Expected end - begin >= interval"),
    ],
)
def test_wrong_arguments(kind, wrong, error, message):
    timing = {} if kind is OneShot else {"interval": 2}
    with pytest.raises(error, match=message):
        kind(**{"final": 0.9, "end": 10, **timing, **wrong})


@pytest.mark.parametrize(
    ("interval", "error", "message"),
    [
        (0, ValueError, "interval to be at least 1 but got 0"),
        (11, ValueError, "begin=0, end=10, interval=11"),
        (2.0, TypeError, "interval to be an integer"),
    ],
)
def test_wrong_interval(interval, error, message):
    with pytest.raises(error, match=message):
        Cubic(final=0.9, interval=interval, end=10)
