"""`Activity`: mergeable sums of per-sample statistics."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sj_prune.neurons import STATISTICS, Activity


def filled(*sizes, channels=3, names=STATISTICS, seed=0):
    """Return an activity and the ``[N, C, k]`` values of all its samples."""
    generator = torch.Generator().manual_seed(seed)
    activity = Activity(names)
    values = [torch.rand(n, channels, len(names), generator=generator) for n in sizes]
    for value in values:
        activity.update(value)
    return activity, torch.cat(values)


def test_mean_over_samples():
    activity, values = filled(3, 1, 4)
    assert activity.count == 8
    assert activity.channels == 3
    for i, name in enumerate(STATISTICS):
        mean = activity.mean(name)
        assert mean.shape == (3,)
        torch.testing.assert_close(mean, values[..., i].double().mean(0), rtol=1e-12, atol=0.0)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    cut=st.integers(0, 6),
    seed=st.integers(0, 999),
    order=st.booleans(),
)
def test_merging_is_one_pass(sizes, cut, seed, order):
    whole, values = filled(*sizes, seed=seed)
    parts, start = [Activity(), Activity()], 0
    for i, n in enumerate(sizes):
        parts[i >= cut].update(values[start : start + n])
        start += n
    first, second = parts if order else reversed(parts)
    untouched = copy.deepcopy(second)
    first.merge(second)
    assert first.count == whole.count
    torch.testing.assert_close(first.sums, whole.sums, rtol=1e-13, atol=1e-13)
    assert second.count == untouched.count  # the other one is only read
    if second.sums is not None:
        assert torch.equal(second.sums, untouched.sums)


def test_sums_do_not_lose_small_addends():
    """In float32 a sum of 2^24 stops growing when 1 is added to it."""
    activity = Activity(["firing_rate"])
    activity.update(torch.full((1, 1, 1), 2.0**24))
    for _ in range(8):
        activity.update(torch.ones(1, 1, 1))
    assert activity.mean("firing_rate").item() * 9 == 2.0**24 + 8


def test_merge_refuses_what_does_not_match():
    activity, _ = filled(2)
    with pytest.raises(ValueError, match="Expected statistics .* to merge but got"):
        activity.merge(Activity(["firing_rate"]))
    with pytest.raises(ValueError, match="Expected 3 channels to merge but got 2"):
        activity.merge(filled(1, channels=2)[0])
    activity.merge(Activity())
    assert activity.count == 2


def test_update_refuses_what_does_not_match():
    activity, _ = filled(2)
    with pytest.raises(ValueError, match="Expected 5 statistics .* but got 4"):
        activity.update(torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match="Expected 3 channels as recorded before but got 7"):
        activity.update(torch.rand(2, 7, 5))
    assert activity.count == 2


def test_reading_errors():
    with pytest.raises(RuntimeError, match="'firing_rate' but nothing was recorded"):
        Activity().mean("firing_rate")
    activity, _ = filled(2)
    with pytest.raises(ValueError, match=r"Expected statistics among .* but got \['rate'\]"):
        activity.mean("rate")
    activity.clear()
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        activity.mean("firing_rate")
    with pytest.raises(ValueError, match="Expected statistics among"):
        Activity(["firing_rate", "nonsense"])
    assert Activity(["criticality_max", "firing_rate"]).names == ("firing_rate", "criticality_max")


def test_clear_keeps_the_memory():
    """A captured graph adds to the same address after it."""
    activity, _ = filled(2)
    address = activity.sums.data_ptr()
    activity.clear()
    activity.update(torch.ones(1, 3, 5))
    assert activity.sums.data_ptr() == address
    assert torch.equal(activity.mean("abs_charge"), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [(), (2, 3)], ids=["empty", "filled"])
def test_state_dict_round_trip(sizes):
    activity = filled(*sizes)[0] if sizes else Activity(["firing_rate"])
    file = io.BytesIO()
    torch.save(activity.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = filled(1, channels=8)[0]
    other.load_state_dict(state)
    assert other.names == activity.names
    assert other.count == activity.count
    assert other.channels == activity.channels
    if sizes:
        assert torch.equal(other.sums, activity.sums)
        other.update(torch.ones(1, 3, 5))
        assert activity.count == 5  # loaded state is a copy
        assert not torch.equal(other.sums, state["sums"])


def test_repr_says_how_much_was_recorded():
    assert "channels=3, count=5" in repr(filled(2, 3)[0])
    assert "channels=None, count=0" in repr(Activity())
