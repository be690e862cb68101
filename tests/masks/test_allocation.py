"""How a total is divided: exact, within bounds, in proportion."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_prune.masks import ERK, Global, LayerScores, Uniform, apportion, prune_and_regrow


@st.composite
def divisions(draw):
    n = draw(st.integers(1, 6))
    caps = [draw(st.integers(0, 60)) for _ in range(n)]
    floors = [draw(st.integers(0, cap)) for cap in caps]
    ideal = [draw(st.floats(0.001, 1e4)) for _ in range(n)]
    return draw(st.integers(sum(floors), sum(caps))), ideal, floors, caps


@given(divisions())
def test_apportion_is_exact_within_bounds_and_proportional(division):
    total, ideal, floors, caps = division
    shares = apportion(total, ideal, floors, caps)
    assert sum(shares) == total
    assert all(f <= s <= c for f, s, c in zip(floors, shares, caps, strict=True))
    # There is one scale at which every share is its bounded ideal, up to the rounding of one unit:
    # share - 1 < scale q unless held by the floor, scale q < share + 1 unless held by the cap.
    slack = 1 + 1e-9 * total
    bounds = list(zip(shares, ideal, floors, caps, strict=True))
    low = max(((s - slack) / q for s, q, f, _ in bounds if s > f), default=-math.inf)
    high = min(((s + slack) / q for s, q, _, c in bounds if s < c), default=math.inf)
    assert low <= high


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 40))
def test_apportion_without_bounds_is_largest_remainder(ideal, total):
    """Hamilton's method, in exact fractions."""
    quotas = [(total * q, sum(ideal)) for q in ideal]
    expected = [a // b for a, b in quotas]
    order = sorted(range(len(ideal)), key=lambda i: (-(quotas[i][0] % quotas[i][1]), i))
    for i in order[: total - sum(expected)]:
        expected[i] += 1
    shares = apportion(total, [float(q) for q in ideal], [0] * len(ideal), [total] * len(ideal))
    assert sum(shares) == total
    # Equal remainders may go either way, by one.
    assert all(abs(a - b) <= 1 for a, b in zip(shares, expected, strict=True))
    ties = len({quotas[i][0] % quotas[i][1] for i in range(len(ideal))}) < len(ideal)
    assert ties or shares == expected


@pytest.mark.parametrize("total", [3, 21])
def test_apportion_refuses_an_impossible_total(total):
    with pytest.raises(ValueError, match=rf"between 4 and 20 to divide but got {total}"):
        apportion(total, [1.0, 1.0], [2, 2], [10, 10])


# ---- allocations ---------------------------------------------------------------------------------

SHAPES = ((4, 2, 3, 3), (6, 4, 3, 3), (8, 54), (5, 8))


def scores(shapes=SHAPES, seed=0, grow=True):
    generator = torch.Generator().manual_seed(seed)
    return [
        LayerScores(
            f"layer{i}",
            torch.ones(shape, dtype=torch.bool),
            torch.rand(shape, generator=generator),
            torch.rand(shape, generator=generator) if grow else None,
        )
        for i, shape in enumerate(shapes)
    ]


def kept(layers, keep, allocation, **kwargs):
    updates = prune_and_regrow(layers, keep, allocation, **kwargs)
    return [int(update.mask.sum()) for update in updates]


TOTAL = sum(math.prod(shape) for shape in SHAPES)


@given(st.floats(0.0, 0.99), st.booleans())
def test_uniform_keeps_the_same_density(sparsity, grow):
    keep = round((1 - sparsity) * TOTAL)
    got = kept(scores(grow=grow), keep, Uniform())
    assert sum(got) == keep
    for number, shape in zip(got, SHAPES, strict=True):
        # One unit of rounding, one for the floor of another layer.
        assert abs(number - keep / TOTAL * math.prod(shape)) < 2


def erk_by_the_book(keep, shapes):
    """RigL's own iteration: make layers dense until the common factor fits the rest."""
    dense = set()
    while True:
        rest = [i for i in range(len(shapes)) if i not in dense]
        left = keep - sum(math.prod(shapes[i]) for i in dense)
        scale = left / sum(sum(shapes[i]) for i in rest)
        over = {i for i in rest if scale * sum(shapes[i]) > math.prod(shapes[i])}
        if not over:
            return [math.prod(s) if i in dense else scale * sum(s) for i, s in enumerate(shapes)]
        # As published: the layer with the highest probability becomes dense first.
        dense.add(max(over, key=lambda i: sum(shapes[i]) / math.prod(shapes[i])))


@given(st.floats(0.02, 0.97))
def test_erk_follows_sum_over_product_of_the_shape(sparsity):
    keep = round((1 - sparsity) * TOTAL)
    got = kept(scores(), keep, ERK())
    assert sum(got) == keep
    for number, share in zip(got, erk_by_the_book(keep, SHAPES), strict=True):
        assert abs(number - share) < 1 + 1e-6


def test_erk_counts_of_a_known_case():
    # The sums of the shapes are 12, 16, 62 and 13; twice as many are kept here.
    assert kept(scores(), 206, ERK()) == [24, 32, 124, 26]


@pytest.mark.parametrize("grow", [True, False])
def test_first_layer_dense(grow):
    got = kept(scores(grow=grow), 200, Uniform(first_dense=True))
    assert got[0] == 72
    assert sum(got) == 200
    rest = TOTAL - 72
    for number, shape in zip(got[1:], SHAPES[1:], strict=True):
        assert abs(number - 128 * math.prod(shape) / rest) < 1
    with pytest.raises(ValueError, match=r"at least 75 units, the first layer whole"):
        kept(scores(grow=grow), 74, Uniform(first_dense=True))


@given(st.integers(len(SHAPES), TOTAL))
def test_global_ranks_over_all_layers_with_a_floor(keep):
    layers = scores(grow=False)
    # The last layer is hopeless and would be emptied.
    layers[3].drop.mul_(1e-6)
    updates = prune_and_regrow(layers, keep, Global())
    masks = [update.mask for update in updates]
    assert sum(int(m.sum()) for m in masks) == keep
    assert all(m.any() for m in masks)
    flat = torch.cat([layer.drop.flatten() for layer in layers])
    plain = torch.zeros_like(flat, dtype=torch.bool)
    plain[flat.argsort(descending=True)[:keep]] = True
    parts = plain.split([math.prod(shape) for shape in SHAPES])
    if all(part.any() for part in parts):
        assert torch.cat([m.flatten() for m in masks]).equal(plain)
    else:
        assert int(masks[3].sum()) == 1
        assert masks[3].flatten()[layers[3].drop.argmax()]


@pytest.mark.parametrize("allocation", [Global(), Uniform(), ERK()])
@pytest.mark.parametrize("grow", [True, False])
def test_no_layer_is_emptied(allocation, grow):
    layers = scores(grow=grow)
    layers[2].drop.zero_()
    assert kept(layers, 4, allocation, regrow=0.5) == [1, 1, 1, 1]


@pytest.mark.parametrize("allocation", [Global(), Uniform(), ERK()])
def test_growing_back_without_growth_is_refused(allocation):
    layers = scores(grow=False)
    for layer in layers:
        layer.mask.view(-1)[1:] = False
    with pytest.raises(ValueError, match="Expected at least 300 units alive"):
        kept(layers, 300, allocation)


@pytest.mark.parametrize("allocation", [Global(), Uniform(), ERK()])
@pytest.mark.parametrize("across", [True, False])
def test_growing_back_reaches_a_higher_count(allocation, across):
    layers = scores()
    for layer in layers:
        layer.mask.view(-1)[3:] = False
    assert sum(kept(layers, 300, allocation, across_layers=across)) == 300


def test_layers_without_growth_take_their_count_from_the_global_ranking():
    layers = scores()
    layers[3] = LayerScores("classifier", layers[3].mask, layers[3].drop, None)
    updates = prune_and_regrow(layers, 150, Global(), regrow=0.3, across_layers=True)
    flat = torch.cat([layer.drop.flatten() for layer in layers])
    threshold = flat.sort(descending=True).values[149]
    assert updates[3].mask.equal(layers[3].drop >= threshold)
    assert not updates[3].grown.any()
    rest = 150 - int(updates[3].mask.sum())
    assert sum(int(u.grown.sum()) for u in updates[:3]) == int(0.3 * rest)
    assert sum(int(u.mask.sum()) for u in updates) == 150


def test_first_dense_is_a_flag():
    with pytest.raises(TypeError, match="Expected first_dense to be True or False but got 'x'"):
        Uniform(first_dense="x")
