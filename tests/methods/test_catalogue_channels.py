"""FPGM against its definition."""

import pytest
import torch

from sj_prune import methods
from sj_prune.methods.fpgm import distance_to_others
from tests.support.channel_cases import CONVS, NORMS, pruner, view
from tests.support.pruning_cases import train


def distances(filters, kept):
    """Return the sum of Euclidean distances to the kept filters, pair by pair."""
    rows = filters.double().flatten(1).tolist()
    return [
        sum(sum((a - b) ** 2 for a, b in zip(row, rows[j], strict=True)) ** 0.5 for j in kept)
        for row in rows
    ]


@pytest.mark.parametrize("asleep", [[], [1, 4]])
def test_distance_to_others(asleep):
    mask = torch.ones(6, dtype=torch.bool)
    mask[asleep] = False
    layer = view(mask=mask)
    expected = distances(layer.weight, mask.nonzero().flatten().tolist())
    got = distance_to_others(layer)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam"])
def test_fpgm_drops_what_lies_nearest_to_the_geometric_median(optimizer):
    model, opt = pruner(methods.FPGM(sparsity=0.6, interval=2, end=6), optimizer)
    for t, k in enumerate((2, 4, 6), start=1):
        train(model, opt, 1, start=k - 1)
        before = {n: model.masks[n] for n in NORMS}
        filters = {n: model.masks.scored(c) for n, c in zip(NORMS, CONVS, strict=True)}
        filters = {n: w.clone() for n, w in filters.items()}
        train(model, opt, 1, start=k)
        left = round(25 * (1 - 0.6 * (1 - (1 - t / 3) ** 3)))
        assert sum(int(model.masks[n].sum()) for n in NORMS) == left
        for n, mask in before.items():
            kept = mask.nonzero().flatten().tolist()
            score = distances(filters[n], kept)
            number = int(model.masks[n].sum())
            best = sorted(kept, key=lambda c: -score[c])[:number]
            assert model.masks[n].nonzero().flatten().tolist() == sorted(best)
