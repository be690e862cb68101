"""The one mask algorithm against brute force, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_prune.masks import ERK, Global, LayerScores, Uniform, prune_and_regrow

few = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0])


@st.composite
def layer_sets(draw):
    layers = []
    for i in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 14))

        def row(elements, size=size):
            return torch.tensor(draw(st.lists(elements, min_size=size, max_size=size)))

        mask = row(st.booleans())
        mask[draw(st.integers(0, size - 1))] = True  # a layer is never empty
        layers.append(LayerScores(f"layer{i}", mask, row(few), row(few), row(few)))
    return layers


@given(
    layer_sets(),
    st.data(),
    st.sampled_from([Global(), Uniform(), ERK()]),
    st.booleans(),
    st.floats(0, 0.99),
)
def test_counts_are_exact_under_any_ties(layers, data, allocation, across, regrow):
    total = sum(layer.size for layer in layers)
    keep = data.draw(st.integers(len(layers), total))
    generator = torch.Generator().manual_seed(0)
    updates = prune_and_regrow(
        layers, keep, allocation, regrow=regrow, across_layers=across, generator=generator
    )
    for layer, update in zip(layers, updates, strict=True):
        assert not (update.survivors & ~layer.mask).any()  # the dropped lie within the old mask
        assert not (update.survivors & update.grown).any()
        assert update.mask.any()
    assert sum(int(u.survivors.sum() + u.grown.sum()) for u in updates) == keep


@given(layer_sets(), st.data(), st.floats(0, 0.99))
def test_one_layer_is_ranked_as_the_docstring_says(layers, data, regrow):
    (layer, *_) = layers
    keep = data.draw(st.integers(1, layer.size))
    (update,) = prune_and_regrow([layer], keep, Uniform(), regrow=regrow)
    if keep == layer.size:
        return  # a layer that is kept whole has its own test
    alive = int(layer.mask.sum())
    survive = min(max(keep - math.floor(regrow * keep), 1), alive)
    ranked = sorted(layer.drop[layer.mask].tolist(), reverse=True)
    assert sorted(layer.drop[update.survivors].tolist(), reverse=True) == ranked[:survive]
    pairs = list(zip(layer.grow.tolist(), layer.tie.tolist(), strict=True))
    rest = sorted((p for p, s in zip(pairs, update.survivors, strict=True) if not s), reverse=True)
    grown = sorted((p for p, g in zip(pairs, update.grown, strict=True) if g), reverse=True)
    assert grown == rest[: keep - survive]


@pytest.mark.parametrize("value", [0.0, 3.5])
@pytest.mark.parametrize("allocation", [Global(), Uniform(), ERK()])
def test_all_equal_scores(value, allocation):
    shapes = ((5, 3, 3, 3), (7, 5))
    layers = [
        LayerScores(str(i), torch.ones(s, dtype=torch.bool), *[torch.full(s, value)] * 3)
        for i, s in enumerate(shapes)
    ]
    updates = prune_and_regrow(layers, 51, allocation, regrow=0.3, across_layers=True)
    assert sum(int(u.mask.sum()) for u in updates) == 51
    again = prune_and_regrow(layers, 51, allocation, regrow=0.3, across_layers=True)
    assert not all(u.mask.equal(a.mask) for u, a in zip(updates, again, strict=True))
    seeded = [
        prune_and_regrow(layers, 51, allocation, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    assert all(u.mask.equal(a.mask) for u, a in zip(*seeded, strict=True))


def test_inexact_ties_overshoot_but_zeros_do_not():
    mask = torch.tensor([True] * 4 + [False] * 8)
    drop = torch.arange(12.0)
    tied = torch.tensor([0.0] * 4 + [1.0] * 4 + [0.0] * 4)
    (update,) = prune_and_regrow(
        [LayerScores("a", mask, drop, tied)], 4, Global(), regrow=0.5, exact_ties=False
    )
    assert update.survivors.nonzero().flatten().tolist() == [2, 3]
    assert update.grown.nonzero().flatten().tolist() == [4, 5, 6, 7]  # 4 for the 2 asked
    (update,) = prune_and_regrow(
        [LayerScores("a", mask, drop, torch.zeros(12))],
        4,
        Global(),
        regrow=0.5,
        exact_ties=False,
    )
    assert not update.grown.any()


@pytest.mark.parametrize("kind", ["drop", "grow", "tie"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_refused_with_the_layers_name(kind, value):
    def layer(name, **scores):
        ones = {k: torch.ones(3) for k in ("drop", "grow", "tie")}
        return LayerScores(name, torch.ones(3, dtype=torch.bool), **(ones | scores))

    broken = layer("features.3", **{kind: torch.tensor([1.0, value, 2.0])})
    with pytest.raises(ValueError, match=r"layer 'features\.3' but found NaN or inf"):
        prune_and_regrow([layer("features.0"), broken], 3, Global())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_finite_scores_of_any_size_are_taken(dtype):
    """The span of the scores may overflow although each is finite."""
    huge = torch.finfo(dtype).max
    drop = torch.tensor([-huge, 0.0, huge], dtype=dtype)
    layer = LayerScores("a", torch.ones(3, dtype=torch.bool), drop)
    (update,) = prune_and_regrow([layer], 1, Global())
    assert update.mask.tolist() == [False, False, True]


def test_wrong_shape_of_scores_names_the_layer():
    layer = LayerScores("conv", torch.ones(4, 3, dtype=torch.bool), torch.ones(4))
    with pytest.raises(ValueError, match=r"drop scores of layer 'conv' in the shape \(4, 3\)"):
        prune_and_regrow([layer], 3, Global())


@pytest.mark.parametrize("keep", [1, 25])
def test_unreachable_total_states_the_reachable_maximum(keep):
    layers = [LayerScores(name, torch.ones(12, dtype=torch.bool), torch.rand(12)) for name in "ab"]
    # 22 of 24 may go.
    with pytest.raises(ValueError, match=r"between 2 .* and 24 units .* at most 0\.916667"):
        prune_and_regrow(layers, keep, Global())


def test_layer_that_is_kept_whole_is_left_alone():
    """Dropping weights of a dense layer to grow the same ones from 0 would only damage it."""
    shape = (4, 3)
    dense = LayerScores(
        "dense", torch.ones(shape, dtype=torch.bool), torch.rand(shape), torch.rand(shape)
    )
    (update,) = prune_and_regrow([dense], 12, Uniform(), regrow=0.5)
    assert update.survivors.all()
    assert not update.grown.any()


def test_nothing_is_modified():
    layer = LayerScores("a", torch.rand(20) > 0.4, torch.rand(20), torch.rand(20), torch.rand(20))
    before = [t.clone() for t in (layer.mask, layer.drop, layer.grow, layer.tie)]
    updates = prune_and_regrow([layer], 6, Global(), regrow=0.4)
    updates[0].mask.fill_(True)
    for old, new in zip(before, (layer.mask, layer.drop, layer.grow, layer.tie), strict=True):
        assert old.equal(new)
