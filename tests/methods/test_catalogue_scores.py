"""LAMP, CQP and NDSNN against their equations, written again on a bare network in float64."""

import math

import pytest
import torch

from sj_prune import methods
from sj_prune.methods.lamp import adaptive_magnitude
from tests.support.channel_cases import view
from tests.support.reference import Bare, cosine, cubic, follows, potentials, top, top_of_all

TOTAL, N = 760, 4
UPDATES = {2: 1, 4: 2, 6: 3, 8: 4}
EVERY = pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam"])


def lamp_by_hand(weight):
    values = weight.flatten().tolist()
    return torch.tensor(
        [w * w / sum(v * v for v in values if v * v >= w * w) if w else 0.0 for w in values],
        dtype=torch.float64,
    ).view_as(weight)


@EVERY
def test_lamp(optimizer):
    def advance(bare: Bare, k):
        bare.backward(k)
        if k in UPDATES:
            keep = round((1 - cubic(0.8, UPDATES[k], N)) * TOTAL)
            scores = {n: lamp_by_hand(w.detach()) for n, w in bare.weights.items()}
            bare.masks = top_of_all(scores, keep)
        bare.step()

    follows(methods.LAMP(sparsity=0.8, interval=2, end=9), optimizer, 9, advance)


def test_lamp_of_equal_weights_and_of_zeros():
    layer = view()
    layer.weight.copy_(torch.randint(-2, 3, layer.weight.shape))
    torch.testing.assert_close(adaptive_magnitude(layer), lamp_by_hand(layer.weight))
    layer.weight.zero_()
    assert not adaptive_magnitude(layer).any()


@EVERY
@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_cqp(optimizer, aggregate):
    """Neuron layers 2, 5 and 9 follow layers 0, 3 and 8; nothing follows layer 10."""

    def criticality(h):
        rate = (1 / (1 + (math.pi * (h - 1)) ** 2)).mean(0)
        rate = rate.view(*rate.shape[:2], -1)
        return (rate.amax(-1) if aggregate == "max" else rate.mean(-1)).mean(0)

    def advance(bare: Bare, k):
        bare.backward(k)
        if k in UPDATES:
            keep = round((1 - cubic(0.5, UPDATES[k], N)) * TOTAL)
            found = potentials(bare.net, k)
            scores = bare.size()
            for name, node in {"0": "2", "3": "5", "8": "9"}.items():
                factor = criticality(found[node][0])
                scores[name] = torch.einsum("o...,o->o...", scores[name], factor)
            bare.masks = top_of_all(scores, keep)
        bare.step()

    method = methods.CQP(sparsity=0.5, interval=2, end=9, aggregate=aggregate)
    model, _ = follows(method, optimizer, 9, advance)
    assert model.sparsity()["total"] == pytest.approx(0.5)


@EVERY
def test_ndsnn(optimizer):
    """Layer 10 is whole at no time, so each layer's share is that of its own cubic."""
    shapes = {"0": (4, 2, 3, 3), "3": (6, 4, 3, 3), "8": (8, 54), "10": (5, 8)}

    def share(name, sparsity):
        scale = (1 - sparsity) * TOTAL / sum(map(sum, shapes.values()))
        return scale * sum(shapes[name])

    def start(bare, model):
        bare.masks = model.masks.masks
        bare.hold()
        for name, mask in bare.masks.items():
            assert abs(int(mask.sum()) - share(name, 0.8)) < 1
        assert sum(int(m.sum()) for m in bare.masks.values()) == round(0.2 * TOTAL)

    woke = []

    def advance(bare: Bare, k):
        bare.backward(k, hidden=k not in UPDATES)
        if k in UPDATES:
            t = UPDATES[k]
            sparsity, d = cubic(0.9, t, N, 0.8), cosine(0.05, 0.5, t, N)
            left = round((1 - sparsity) * TOTAL)
            exact = {n: share(n, sparsity) for n in shapes}
            counts = {n: int(x) for n, x in exact.items()}
            for n in sorted(exact, key=lambda n: counts[n] - exact[n])[
                : left - sum(counts.values())
            ]:
                counts[n] += 1  # the largest remainders
            for n, mask in bare.masks.items():
                weight = bare.weights[n]
                alive = int(mask.sum())
                kept = min(alive - int(d * alive), counts[n])
                survivors = top(weight.detach().abs(), kept, mask)
                grown = top(weight.grad.abs(), counts[n] - kept, ~survivors)
                woke.append(int(grown.sum()))
                bare.masks[n] = survivors | grown
                weight.grad[grown] = 0.0  # it moves from the next step on
                with torch.no_grad():
                    weight[grown] = 0.0
                for value in bare.optimizer.state[weight].values():
                    if value.shape == weight.shape:
                        value[grown] = 0.0
        bare.step()

    method = methods.NDSNN(sparsity=0.9, initial=0.8, interval=2, end=9)
    follows(method, optimizer, 9, advance, start=start)
    assert sum(n > 0 for n in woke) > 4
    assert 0 in woke  # the schedule asked for more than was dropped


def test_ndsnn_becomes_no_denser():
    with pytest.raises(ValueError, match=r"Expected initial <= sparsity = 0\.6 but got 0\.7"):
        methods.NDSNN(sparsity=0.6, end=10_000)
