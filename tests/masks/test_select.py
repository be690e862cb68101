"""Exact top-k against sorting, under ties, negatives, several tensors and more than a million."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sj_prune.masks import select
from sj_prune.masks.select import count, kth_largest, top_k

# Few distinct values, so that most draws are full of ties; zeros and negatives among them.
numbers = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5]),
    st.floats(-(2.0**90), 2.0**90, width=32, allow_subnormal=False),
)


@st.composite
def tensors(draw, elements=numbers, least=1):
    lists = draw(st.lists(st.lists(elements, min_size=least, max_size=12), min_size=1, max_size=4))
    return [torch.tensor(values) for values in lists]


@st.composite
def problems(draw):
    """Scores, candidates, second scores, k."""
    scores = draw(tensors())
    rows = [draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s))) for s in scores]
    ties = [
        torch.tensor(
            draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=len(s), max_size=len(s)))
        )
        for s in scores
    ]
    k = draw(st.integers(-1, sum(map(len, scores)) + 1))
    return scores, [torch.tensor(row, dtype=torch.bool) for row in rows], ties, k


@given(problems())
def test_top_k_takes_exactly_the_k_highest_candidates(problem):
    scores, among, _, k = problem
    chosen = top_k(scores, k, among, generator=torch.Generator().manual_seed(1))
    values, mine = torch.cat(scores), torch.cat(chosen)
    candidates = torch.cat(among)
    assert not (mine & ~candidates).any()
    wanted = max(0, min(k, int(candidates.sum())))
    assert int(mine.sum()) == wanted
    # Multisets are equal, so ties do not matter.
    best = sorted(values[candidates].tolist(), reverse=True)[:wanted]
    assert sorted(values[mine].tolist(), reverse=True) == best


@given(problems())
def test_second_score_decides_between_equal_ones(problem):
    scores, among, ties, k = problem
    chosen = top_k(scores, k, among, ties=ties, generator=torch.Generator().manual_seed(1))
    candidates, mine = torch.cat(among), torch.cat(chosen)
    pairs = list(zip(torch.cat(scores).tolist(), torch.cat(ties).tolist(), strict=True))
    wanted = max(0, min(k, int(candidates.sum())))
    ranked = sorted((p for p, c in zip(pairs, candidates, strict=True) if c), reverse=True)
    assert (
        sorted((p for p, m in zip(pairs, mine, strict=True) if m), reverse=True)
        == (ranked[:wanted])
    )


@given(problems())
def test_inexact_takes_all_that_tie_with_the_last_unless_it_is_zero(problem):
    scores, among, _, k = problem
    scores = [s.abs() for s in scores]
    chosen = torch.cat(top_k(scores, k, among, exact=False))
    values, candidates = torch.cat(scores), torch.cat(among)
    ranked = sorted(values[candidates].tolist(), reverse=True)
    if k <= 0:
        expected = torch.zeros_like(candidates)
    elif k >= len(ranked):
        expected = candidates
    else:
        last = ranked[k - 1]
        expected = candidates & ((values >= last) if last > 0 else (values > last))
    assert chosen.equal(expected)


@given(tensors(), st.data())
def test_kth_largest_is_the_kth_of_the_sorted(values, data):
    flat = torch.cat(values)
    k = data.draw(st.integers(1, len(flat)))
    assert kth_largest(values, k) == flat.sort(descending=True).values[k - 1]


@given(tensors(), st.data())
def test_kth_largest_through_a_bracket(values, data):
    """The path for large inputs, made to run on small ones."""
    flat = torch.cat(values)
    k = data.draw(st.integers(1, len(flat)))
    old = select._SMALL, select._SAMPLE
    select._SMALL, select._SAMPLE = 0, data.draw(st.integers(1, len(flat)))
    try:
        assert kth_largest(values, k) == flat.sort(descending=True).values[k - 1]
    finally:
        select._SMALL, select._SAMPLE = old


@given(problems(), st.integers(1, 48))
def test_kth_candidate_through_a_bracket(problem, places):
    """What is no candidate enters neither the sample nor the pool."""
    scores, among, _, k = problem
    ordered = torch.cat(scores)[torch.cat(among)].sort(descending=True).values
    if not 1 <= k <= len(ordered):
        return
    old = select._SMALL, select._SAMPLE
    select._SMALL, select._SAMPLE = 0, places
    try:
        assert kth_largest(scores, k, among) == ordered[k - 1]
    finally:
        select._SMALL, select._SAMPLE = old


@pytest.mark.parametrize("kept", [0.9, 0.01])
def test_large_tensors_of_any_strides(kept, monkeypatch):
    """Weights in channels-last, and scores of channels, expanded."""
    monkeypatch.setattr(select, "_SMALL", 100)
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(64, 32, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    channels = torch.randn(70, 1, generator=generator).expand(70, 900)
    among = [torch.rand(s.shape, generator=generator) < kept for s in (weights, channels)]
    before = [mask.clone() for mask in among]
    k = sum(count(among)) // 3
    answers = spy_bracket(monkeypatch)
    chosen = top_k([weights, channels], k, among, generator=torch.Generator().manual_seed(0))
    assert answers[0] is not None or kept < 0.5
    candidates = torch.cat([weights[among[0]], channels[among[1]]])
    expected = candidates.sort(descending=True).values[:k]
    mine = torch.cat([weights[chosen[0]], channels[chosen[1]]])
    assert mine.sort(descending=True).values.equal(expected)
    assert all(not (c & ~m).any() for c, m in zip(chosen, before, strict=True))
    assert all(m.equal(b) for m, b in zip(among, before, strict=True))


def spy_bracket(monkeypatch):
    """Return the list of what `_bracketed` answers."""
    answers, original = [], select._bracketed

    def spied(*args):
        answers.append(original(*args))
        return answers[-1]

    monkeypatch.setattr(select, "_bracketed", spied)
    return answers


@pytest.mark.parametrize("k", [1, 2, 1000, 700_000, 1_299_000, 1_300_000])
def test_more_than_a_million_values(monkeypatch, k):
    generator = torch.Generator().manual_seed(k)
    sizes = (900_000, 1, 399_999)
    values = [torch.randn(n, generator=generator) for n in sizes]
    answers = spy_bracket(monkeypatch)
    expected = torch.cat(values).sort(descending=True).values[k - 1]
    assert kth_largest(values, k) == expected
    assert len(answers) == 1
    # The sample need not hold the very ends; a miss there costs time alone.
    assert answers[0] is not None or k in (1, 2, 1_300_000)


@pytest.mark.parametrize("k", [1, 400_000, 1_190_000])
def test_bracket_that_misses_falls_back_to_the_whole(monkeypatch, k):
    # The strided sample sees zeros alone.
    values = torch.rand(1_200_000, generator=torch.Generator().manual_seed(0)) + 1.0
    values[:: values.numel() // select._SAMPLE] = 0.0
    answers = spy_bracket(monkeypatch)
    assert kth_largest([values], k) == values.sort(descending=True).values[k - 1]
    assert (answers[0] is None) == (k == 400_000)  # above the first all is looked at


def test_millions_of_ties_are_counted_exactly():
    scores = [torch.zeros(1_000_000), torch.zeros(200_000)]
    among = [torch.ones(1_000_000, dtype=torch.bool), torch.ones(200_000, dtype=torch.bool)]
    assert sum(count(top_k(scores, 123_457, among))) == 123_457


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_of_weights(dtype):
    scores = torch.arange(50).to(dtype)
    (chosen,) = top_k([scores], 7, [torch.ones(50, dtype=torch.bool)])
    assert chosen.nonzero().flatten().tolist() == list(range(43, 50))


def test_seeded_order_of_ties():
    def draw(seed):
        scores, among = torch.zeros(6, 7), torch.ones(6, 7, dtype=torch.bool)
        return top_k([scores], 20, [among], generator=torch.Generator().manual_seed(seed))[0]

    assert draw(3).equal(draw(3))
    assert not draw(3).equal(draw(4))
    # It is an order, not a place: early and late units get their share.
    share = torch.stack([draw(seed) for seed in range(200)]).float().mean(0)
    assert share.min() > 0.3
    assert share.max() < 0.65


def test_seeded_order_does_not_depend_on_strides():
    def draw(layout):
        among = torch.ones(6, 5, 3, 3, dtype=torch.bool).to(memory_format=layout)
        scores = torch.zeros(6, 5, 3, 3).to(memory_format=layout)
        return top_k([scores], 100, [among], generator=torch.Generator().manual_seed(0))[0]

    assert draw(torch.channels_last).equal(draw(torch.contiguous_format))
    among = torch.ones(7, 9, dtype=torch.bool).t()
    (chosen,) = top_k([torch.zeros(9, 7)], 20, [among])
    assert int(chosen.sum()) == 20


def test_scores_are_not_changed():
    scores, among = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, True, False])
    (chosen,) = top_k([scores], 5, [among])
    chosen.fill_(False)
    assert among.tolist() == [True, True, False]
    assert scores.tolist() == [3.0, 1.0, 2.0]


@settings(max_examples=20)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), max_size=4))
def test_count(rows):
    assert count([torch.tensor(row) for row in rows]) == [sum(row) for row in rows]


@pytest.mark.parametrize("kept", [0.5, 0.05, 0.001])
def test_kth_largest_among_weights_already_pruned(kept, monkeypatch):
    """As many as are not zero: the zeros at the end of the bracket are not selected from."""
    values = torch.rand((1 << 20) + 12345, generator=torch.Generator().manual_seed(3)) + 0.1
    values[torch.rand(values.shape, generator=torch.Generator().manual_seed(4)) > kept] = 0.0
    alive = int(values.count_nonzero())
    pools, full = [], select._select
    monkeypatch.setattr(select, "_select", lambda x, k: pools.append(x.numel()) or full(x, k))
    parts, ordered = list(values.split(400_000)), values.sort(descending=True).values
    for k in (alive, alive + 1, alive - 1):
        assert kth_largest(parts, k) == ordered[k - 1]
    assert max(pools) < values.numel() // 20


class Questions(TorchDispatchMode):
    """Counts what makes the host wait where tensors lie on a device."""

    def __init__(self):
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func is torch.ops.aten.index.Tensor and args[1][-1].dtype == torch.bool
        self.found += masked or func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_questions_do_not_grow_with_the_number_of_tensors(monkeypatch):
    """Samples are taken, and ties broken, with one question for all of them."""
    found = []
    for number in (2, 7):
        alike = [torch.ones(50) for _ in range(number)]
        every = [torch.ones(50, dtype=torch.bool)] * number
        candidates = select._Candidates(every)
        with Questions() as questions:
            select._sample(alike, candidates)
            chosen = [torch.zeros(50, dtype=torch.bool) for _ in range(number)]
            select._random(chosen, candidates, 50 * number, 30, torch.Generator())
        assert sum(mask.sum() for mask in chosen) == 30
        found.append(questions.found)
    assert found[0] == found[1]
