"""FPGM and SVS against their definitions."""

import numpy as np
import pytest
import torch

from sj_prune import methods
from sj_prune.methods.fpgm import distance_to_others
from sj_prune.methods.svs import of_mean, of_steps
from tests.support.channel_cases import CONVS, NODES, NORMS, pruner, view
from tests.support.pruning_cases import loss_of, train


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


# ---- SVS -----------------------------------------------------------------------------------------


def spikes_of(model, k):
    """Return the spikes of all neuron layers in batch k, in train mode, by the norm before."""
    seen, kept = {}, {name: b.clone() for name, b in model.net.named_buffers()}
    handles = [
        model.net.get_submodule(node).register_forward_hook(
            lambda _, inputs, out, norm=norm: seen.update({norm: out.detach().numpy()})
        )
        for norm, node in zip(NORMS, NODES, strict=True)
    ]
    with torch.no_grad():
        loss_of(model.net, k)
        for name, buffer in model.net.named_buffers():
            buffer.copy_(kept[name])
    for handle in handles:
        handle.remove()
    for node in model.nodes.values():
        node.activity.clear()
    return seen


def singular(spikes, of):
    """Return the mean over samples and steps, map by map."""
    steps, samples, channels = spikes.shape[:3]
    maps = spikes if of == "steps" else spikes.mean(0, keepdims=True)
    found = np.zeros(channels)
    for c in range(channels):
        values = [
            np.linalg.svd(maps[t, n, c].astype(float), compute_uv=False).sum()
            for t in range(len(maps))
            for n in range(samples)
        ]
        found[c] = np.mean(values)
    return found


@pytest.mark.parametrize("of", ["steps", "mean"])
@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam"])
def test_svs_drops_maps_of_small_singular_values(optimizer, of):
    method = methods.SVS(sparsity=0.6, interval=2, end=6, batches=1, of=of)
    model, opt = pruner(method, optimizer)
    train(model, opt, 1)
    for k in (2, 4, 6):
        if k > 2:
            train(model, opt, 1, start=k - 1)
        before = {n: model.masks[n] for n in NORMS}
        score = {n: singular(s, of) for n, s in spikes_of(model, k).items()}
        train(model, opt, 1, start=k)
        for n, mask in before.items():
            kept = mask.nonzero().flatten().tolist()
            best = sorted(kept, key=lambda c: -score[n][c])[: int(model.masks[n].sum())]
            assert model.masks[n].nonzero().flatten().tolist() == sorted(best)
    assert sum(int(model.masks[n].sum()) for n in NORMS) == 10


def test_features_without_a_map_go_by_the_firing_rate():
    spikes = (torch.rand(3, 5, 7) < 0.4).float()
    for function in (of_steps, of_mean):
        torch.testing.assert_close(function(spikes), spikes.mean(0))
    rows = (torch.rand(3, 5, 7, 4) < 0.4).double()
    torch.testing.assert_close(of_steps(rows), rows.norm(dim=-1).mean(0))
