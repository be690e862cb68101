"""N:M against brute force over its blocks."""

import math
from dataclasses import replace

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_prune import PruningWrapper, methods
from sj_prune.masks import ERK, NM, Global, Hidden, LayerScores, Uniform, prune_and_regrow
from sj_prune.methods import Growth, Plan
from sj_prune.methods.gradr import Rewired
from tests.support.own_plan import blocks_of, own_plan
from tests.support.pruning_cases import assert_masked, build, lif, snapshot, train, wrapped

SHAPES = ((6, 8, 3, 3), (5, 16))


def seeded():
    return torch.Generator().manual_seed(0)


def scores(n, m, levels, seed=0, growing=(True, True), alive=None):
    """Return two layers of exactly `n` of `m`, with `levels` different scores among them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for shape, grows in zip(SHAPES, growing, strict=True):
        noise = torch.rand(shape, generator=generator)
        kept = noise.unflatten(1, (-1, m)).argsort(2).flatten(1, 2) < n

        def draw(shape=shape):
            return torch.randint(levels, shape, generator=generator).double()

        mask = kept if alive is None else torch.ones_like(kept)
        found.append(LayerScores(str(shape), mask, draw(), draw() if grows else None, draw()))
    return found


def blocks(values, m):
    """Return every block with its values, by layer, output, block and kernel place."""
    found = {}
    for i, value in enumerate(values):
        flat = value.flatten(2) if value.ndim > 2 else value.unsqueeze(-1)
        for o in range(flat.shape[0]):
            for b in range(flat.shape[1] // m):
                for p in range(flat.shape[2]):
                    found[i, o, b, p] = flat[o, b * m : (b + 1) * m, p].tolist()
    return found


@pytest.mark.parametrize("levels", [10_000, 3, 1])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (4, 8)])
@pytest.mark.parametrize("across", [True, False])
def test_best_candidates_swap_with_the_lowest_kept(n, m, levels, across):
    """One swap a block, of the floor(rK) blocks with the best candidates."""
    found = scores(n, m, levels)
    total = sum(each.size for each in found)
    keep, r = total * n // m, 0.6 / n
    ranked = NM(n, m).ranked(found, seeded())
    updates = prune_and_regrow(
        ranked,
        keep,
        Global() if across else Uniform(),
        regrow=r,
        across_layers=across,
        generator=seeded(),
    )
    drop, grow = (blocks([getattr(x, kind) for x in found], m) for kind in ("drop", "grow"))
    before = blocks([x.mask for x in found], m)
    grown = blocks([u.grown for u in updates], m)
    gone = blocks([x.mask & ~u.survivors for x, u in zip(found, updates, strict=True)], m)
    best = {k: max(g for g, a in zip(grow[k], before[k], strict=True) if not a) for k in before}
    swapped = {k for k in before if any(grown[k])}
    for k in before:
        assert sum(grown[k]) == sum(gone[k]) == (k in swapped)
        if k in swapped:
            assert grow[k][grown[k].index(True)] == best[k]
            kept = [d for d, a in zip(drop[k], before[k], strict=True) if a]
            assert drop[k][gone[k].index(True)] == min(kept)
    pools = [[0, 1]] if across else [[0], [1]]
    for pool in pools:
        mine = [k for k in before if k[0] in pool]
        number = int(r * sum(found[i].size for i in pool) * n // m)
        assert abs(len(swapped & set(mine)) - number) <= 1
        worst = min((best[k] for k in mine if k in swapped), default=math.inf)
        assert all(best[k] <= worst for k in mine if k not in swapped)


def test_ties_are_broken_at_random():
    """All pruned inputs of a neuron have the same criticality: no place is better than another."""
    found = [replace(x, tie=None) for x in scores(2, 4, 1)]
    grown, free = torch.zeros(4), torch.zeros(4)

    def by_place(mask):
        return mask.transpose(0, 1).flatten(1).sum(1).view(-1, 4).sum(0)

    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        ranked = NM(2, 4).ranked(found, generator)
        updates = prune_and_regrow(ranked, 256, Uniform(), regrow=0.4, generator=generator)
        grown += sum(by_place(update.grown) for update in updates)
        free += sum(by_place(~layer.mask) for layer in found)
    share = grown / free
    assert (share / share.mean() - 1).abs().max() < 0.15


@pytest.mark.parametrize("r", [0.3, 0.7, 0.95])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 4), (4, 8)])
def test_blocks_hold_however_much_grows(n, m, r):
    found = scores(n, m, 5, growing=(True, False), alive="all")
    keep = sum(each.size for each in found) * n // m
    ranked = NM(n, m).ranked(found, seeded())
    updates = prune_and_regrow(
        ranked, keep, Global(), regrow=r, across_layers=True, generator=seeded()
    )
    for update in updates:
        assert (blocks_of(update.mask, m) == n).all()


@pytest.mark.parametrize("what", ["drop", "grow"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(what, bad):
    for place in range(8):
        found = scores(1, 2, 100)
        getattr(found[0], what)[0, place, 0, 0] = bad
        if what == "grow" and found[0].mask[0, place, 0, 0]:
            continue  # nobody asks for it
        with pytest.raises(ValueError, match=f"Expected finite {what}"):
            prune_and_regrow(NM(1, 2).ranked(found, seeded()), 256, Uniform(), regrow=0.4)


METHODS = {
    "Magnitude": lambda **k: methods.Magnitude(**k),
    "Criticality": lambda **k: methods.Criticality(regrow=0.3, **k),
    "RigL": lambda **k: methods.RigL(regrow=0.5, allocation=Uniform(), **k),
    "GraNet": methods.GraNet,
    "SET": lambda **k: methods.SET(allocation=Uniform(), **k),
}


@pytest.mark.parametrize("name", METHODS)
def test_training_ends_with_exactly_n_of_m(name):
    """And methods of one sparsity have it from the start on."""
    method = METHODS[name](sparsity=0.5, structure=NM(1, 2), interval=2, end=8)
    model, optimizer = wrapped(method)
    always = name in ("RigL", "SET")

    def after(k):
        assert_masked(model, optimizer)
        if always or k >= 8:
            assert all((blocks_of(mask, 2) == 1).all() for mask in model.masks.values())

    train(model, optimizer, 10, after=after)
    grown = sum(sum(record.grown.values()) for record in model.history)
    assert (grown > 0) == (name != "Magnitude")


def test_one_shot_keeps_the_largest_of_each_block():
    method = methods.Magnitude(sparsity=0.5, structure=NM(1, 2), interval=2, end=8)
    model = PruningWrapper(build(), method)
    before = snapshot(model.net)
    model.update_masks()
    for name, mask in model.masks.items():
        size = before[f"{name}.weight"].abs().unflatten(1, (-1, 2))
        assert mask.equal((size == size.amax(2, keepdim=True)).flatten(1, 2))


def test_layers_without_whole_blocks_stay_dense_and_say_why():
    net = nn.Sequential(layer.Conv2d(3, 8, 3), lif(), layer.Conv2d(8, 4, 3), lif(), layer.Flatten())
    functional.set_step_mode(net, "m")
    method = methods.Magnitude(sparsity=0.5, structure=NM(2, 4), interval=1, end=9)
    model = PruningWrapper(net, method)
    assert list(model.masks) == ["2"]
    assert "its 3 input channels make no blocks of 4" in str(model.explain())
    only = nn.Sequential(layer.Conv2d(3, 8, 3), lif())
    with pytest.raises(ValueError, match=r"has none; 0: its 3 input channels make no blocks of 4"):
        PruningWrapper(only, method)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"allocation": ERK()}, "gives layers densities of their own, and each keeps 2 of 4"),
        ({"allocation": Uniform(first_dense=True)}, "gives layers densities of their own"),
        ({"grow": Growth(lambda x: x.weight, 0.0, of="zero")}, "exchanges within blocks"),
    ],
)
def test_what_does_not_go_with_blocks(parts, reason):
    half = replace(own_plan().schedule, final=0.5)
    with pytest.raises(ValueError, match=reason):
        own_plan(structure=NM(2, 4), schedule=half, **parts)


def test_one_sparsity_and_no_hidden_variables():
    with pytest.raises(ValueError, match=r"ends at one sparsity, 0\.75: sparsity=0\.75"):
        own_plan(structure=NM(1, 4))
    half = replace(own_plan().schedule, final=0.5)
    with pytest.raises(ValueError, match="minds no blocks"):
        Plan(schedule=half, binding=Hidden(Rewired()), structure=NM(2, 4))


@pytest.mark.parametrize(
    ("n", "m", "error", "message"),
    [
        (0, 4, ValueError, "Expected 1 <= n < m but got n = 0, m = 4"),
        (4, 4, ValueError, "Expected 1 <= n < m"),
        (2.0, 4, TypeError, r"Expected n to be an integer but got 2\.0"),
        (1, True, TypeError, "Expected m to be an integer but got True"),
    ],
)
def test_wrong_settings(n, m, error, message):
    with pytest.raises(error, match=message):
        NM(n, m)


def test_transposed_convolutions_stay_dense():
    net = nn.Sequential(layer.ConvTranspose2d(4, 4, 3), lif(), layer.Conv2d(4, 4, 3), lif())
    functional.set_step_mode(net, "m")
    method = methods.Magnitude(sparsity=0.5, structure=NM(2, 4), interval=1, end=9)
    model = PruningWrapper(net, method)
    assert list(model.masks) == ["2"]
    assert "of a transposed convolution" in str(model.explain())
