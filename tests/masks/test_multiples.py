"""Kept counts on multiples: against brute force over all combinations."""

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sj_prune.masks import Channels, Global, LayerScores, Uniform, prune_and_regrow
from sj_prune.masks.multiples import allowed_counts, nearest_counts

SCORES = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0])
ALLOCATIONS = st.sampled_from([Global(), Uniform(), Uniform(first_dense=True)])


def sets_of_counts():
    """Groups: size, multiple, least, exact count."""
    one = st.tuples(
        st.integers(1, 40), st.sampled_from([1, 2, 4, 7, 8]), st.integers(1, 9), st.floats(0, 1)
    )
    return st.lists(one, min_size=1, max_size=4)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 50))
def test_allowed_are_the_multiples_and_the_whole(size, multiple, least):
    found = allowed_counts(size, multiple, least)
    below = [n for n in range(1, size) if n % multiple == 0 and n >= least]
    assert found == [*below, size]


@given(sets_of_counts(), st.floats(0, 1), st.booleans())
@settings(max_examples=150)
def test_nearest_total_and_least_moved(groups, fraction, near):
    allowed = [allowed_counts(size, multiple, least) for size, multiple, least, _ in groups]
    counts = [1 + round(part * (size - 1)) for size, _, _, part in groups]
    total = sum(counts) if near else round(fraction * sum(size for size, *_ in groups))
    found = nearest_counts(counts, allowed, total)
    assert all(n in options for n, options in zip(found, allowed, strict=True))

    def moved(new):
        return sum(Fraction((b - a) ** 2, a) for a, b in zip(counts, new, strict=True))

    def rank(new):
        return abs(sum(new) - total), sum(new), moved(new)

    beside = [
        [max([o for o in options if o <= n], default=options[0]), min(o for o in options if o >= n)]
        for n, options in zip(counts, allowed, strict=True)
    ]
    best = min(map(rank, itertools.product(*beside)))
    assert rank(found)[:2] == best[:2]
    assert float(rank(found)[2]) == pytest.approx(float(best[2]))
    reached = all(n >= options[0] for n, options in zip(counts, allowed, strict=True))
    if near and reached:
        assert abs(sum(found) - total) <= max(multiple for _, multiple, *_ in groups) / 2


@given(st.lists(st.integers(1, 64), min_size=1, max_size=6))
def test_counts_that_are_allowed_stay(halves):
    counts = [2 * n for n in halves]
    allowed = [allowed_counts(200, 2) for _ in counts]
    assert nearest_counts(counts, allowed, sum(counts)) == counts


def test_thousands_of_channels_take_no_time():
    """37 groups as in a ResNet-50, 10,000 channels: rounded each, and the sum settled."""
    sizes = [64, *[128] * 8, *[256] * 16, *[512] * 8, *[1024] * 2, 2048]
    counts = [max(1, int(0.37 * size)) for size in sizes]
    found = nearest_counts(counts, [allowed_counts(size, 32) for size in sizes], sum(counts))
    assert all(n % 32 == 0 for n in found)
    assert abs(sum(found) - sum(counts)) <= 16
    assert all(abs(a - b) <= 32 for a, b in zip(found, counts, strict=True))


# ---- the mask algorithm --------------------------------------------------------------------------


@st.composite
def layer_sets(draw, growing=True):
    multiple = draw(st.sampled_from([2, 3, 4]))
    layers = []
    for i in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 14))

        def row(size=size):
            return torch.tensor(draw(st.lists(SCORES, min_size=size, max_size=size)))

        least = draw(st.integers(1, 4))
        options = allowed_counts(size, multiple, min(least, size))
        alive = draw(st.sampled_from(options))
        mask = torch.zeros(size, dtype=torch.bool)
        mask[torch.tensor(draw(st.permutations(range(size)))[:alive])] = True
        grow = row() if growing else None
        layers.append(LayerScores(f"group{i}", mask, row(), grow, None, options[0], multiple))
    return layers


@given(layer_sets(), st.data(), ALLOCATIONS, st.booleans(), st.floats(0, 0.9), st.booleans())
@settings(max_examples=150)
def test_drop_and_grow_keeps_multiples(layers, data, allocation, across, regrow, of_all):
    sizes, floors = [x.size for x in layers], [x.floor for x in layers]
    keep = data.draw(st.integers(allocation.least(sizes, floors), sum(sizes)))
    updates = prune_and_regrow(
        layers,
        keep,
        allocation,
        regrow=regrow,
        of="all" if of_all else "kept",
        across_layers=across,
        generator=torch.Generator().manual_seed(0),
    )
    for layer, update in zip(layers, updates, strict=True):
        kept = int(update.mask.sum())
        assert kept in allowed_counts(layer.size, layer.multiple, layer.floor)
        assert not (update.survivors & ~layer.mask).any()
        assert not (update.survivors & update.grown).any()
        out = layer.mask & ~update.survivors  # the best survive
        if out.any() and update.survivors.any():
            assert layer.drop[update.survivors].min() >= layer.drop[out].max()
        rest = ~update.survivors & ~update.grown
        if rest.any() and update.grown.any():
            assert layer.grow[update.grown].min() >= layer.grow[rest].max()
    total = sum(int(update.mask.sum()) for update in updates)
    assert abs(total - keep) <= max(layer.multiple for layer in layers) / 2


@given(layer_sets(growing=False), st.data(), st.sampled_from([Global(), Uniform()]))
@settings(max_examples=100)
def test_pruning_alone_keeps_multiples_and_wakes_nothing(layers, data, allocation):
    least, alive = sum(x.floor for x in layers), sum(int(x.mask.sum()) for x in layers)
    if least > alive:
        return
    keep = data.draw(st.integers(least, alive))
    updates = prune_and_regrow(layers, keep, allocation)
    for layer, update in zip(layers, updates, strict=True):
        assert not update.grown.any()
        assert not (update.mask & ~layer.mask).any()
        assert int(update.mask.sum()) in allowed_counts(layer.size, layer.multiple, layer.floor)
    total = sum(int(update.mask.sum()) for update in updates)
    assert abs(total - keep) <= max(layer.multiple for layer in layers) / 2


def halves(alive, *, growing=True, sizes=(16, 8), multiple=4):
    """Groups of which the first channels are alive; the later a channel, the higher its scores."""
    layers = []
    for i, (n, size) in enumerate(zip(alive, sizes, strict=True)):
        score = torch.arange(float(size))
        grow = score if growing else None
        layers.append(LayerScores(str(i), score < n, score, grow, None, multiple, multiple))
    return layers


@pytest.mark.parametrize("allocation", [Global(), Uniform()])
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("keep", [12, 13, 14])
def test_what_rounding_took_is_not_grown_in_exchange(allocation, across, keep):
    """8 and 4 are the counts nearest to 12, 13 and 14: without regrowth nothing changes."""
    updates = prune_and_regrow(halves((8, 4)), keep, allocation, across_layers=across)
    assert [int(u.mask.sum()) for u in updates] == [8, 4]
    assert [int(u.grown.sum()) for u in updates] == [0, 0]
    regrown = prune_and_regrow(halves((8, 4)), keep, allocation, regrow=0.25, across_layers=across)
    grown, kept = zip(*[(int(u.grown.sum()), int(u.mask.sum())) for u in regrown], strict=True)
    assert sum(kept) == 12
    assert sum(grown) <= 0.25 * 14


@pytest.mark.parametrize("allocation", [Global(), Uniform(), Uniform(first_dense=True)])
def test_rounding_is_no_step_back_where_nothing_regrows(allocation):
    """Counts that a sparsity was rounded to meet it again; a lower one is refused as ever."""
    alive = (16, 4) if getattr(allocation, "first_dense", False) else (8, 4)
    for beyond in (0, 1, 2):
        updates = prune_and_regrow(halves(alive, growing=False), sum(alive) + beyond, allocation)
        assert [int(u.mask.sum()) for u in updates] == list(alive)
    with pytest.raises(ValueError, match="no lower than the present one"):
        prune_and_regrow(halves(alive, growing=False), sum(alive) + 3, allocation)


def test_a_group_that_somebody_emptied():
    """As without multiples, nothing comes back where nothing regrows."""
    updates = prune_and_regrow(halves((0, 12), growing=False), 8, Global())
    assert [int(u.mask.sum()) for u in updates] == [0, 8]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (0, ValueError, "Expected multiple of at least 1 but got 0"),
        (8.0, TypeError, r"Expected multiple to be an integer but got 8\.0"),
        (True, TypeError, "Expected multiple to be an integer but got True"),
    ],
)
def test_wrong_multiple(wrong, error, message):
    with pytest.raises(error, match=message):
        Channels(multiple=wrong)
