"""STDS: a second optimizer moves theta itself, on a network that knows nothing of the library."""

import math

import pytest
import torch

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import build, train, wrapped
from tests.support.reference import Bare, follows
from tests.support.views import layer_view

D, END = 0.4, 6


def stds(**kwargs):
    return methods.STDS(**{"ceiling": D, "interval": 2, "end": END, **kwargs})


def soft(theta, d):
    return theta.sign() * (theta.abs() - d).clamp(min=0)


@pytest.mark.parametrize("rise", ["linear", "sine"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_stds(optimizer, rise):
    """The optimizer holds theta, and the network's weight is written before every forward."""
    hidden = {}
    flips = []

    def start(bare, model):
        hidden.update({n: w.detach().clone() for n, w in bare.weights.items()})

    def advance(bare: Bare, k):
        bare.backward(k, hidden=False)
        with torch.no_grad():  # dL/dtheta = dL/dw: the optimizer steps on theta
            for n, w in bare.weights.items():
                w.copy_(hidden[n])
        bare.optimizer.step()
        part = min(k, END) / END
        d = D * part if rise == "linear" else D * (1 + math.sin(math.pi * (part - 0.5))) / 2
        with torch.no_grad():
            for n, w in bare.weights.items():
                flips.append(int(((w > 0) != (hidden[n] > 0)).sum()))
                hidden[n] = w.detach().clone()
                w.copy_(soft(hidden[n], d))
                bare.masks[n] = w != 0

    model, _ = follows(stds(rise=rise), optimizer, 9, advance, start=start)
    assert sum(flips) > 0
    assert 0.2 < model.sparsity()["total"] < 0.95
    assert [record.step for record in model.history] == [2, 4, 6]


def test_gradients_of_dormant_weights_are_alive_and_bring_them_back():
    model, optimizer = wrapped(stds(end=4), "sgd")
    seen = []
    train(model, optimizer, 12, after=lambda k: seen.append(model.masks.masks))
    woke = sum(int((b[n] & ~a[n]).sum()) for a, b in zip(seen, seen[1:], strict=False) for n in a)
    assert woke > 0


def test_written_weights_are_taken_over_under_the_present_threshold():
    model, optimizer = wrapped(stds(), "sgd")
    train(model, optimizer, 8)
    weight = model.masks.weight("8")
    with torch.no_grad():
        weight.fill_(-0.3)
    assert model.sparsity()["8"] == 0
    theta = model.session.run.memory["8"]["theta"]
    torch.testing.assert_close(theta, torch.full_like(theta, -0.3 - D))
    assert weight.eq(-0.3).all()


def test_threshold_needs_an_end():
    with pytest.raises(ValueError, match="Expected end, the step in which the threshold"):
        methods.STDS(end=None)


def test_half_precision_hides_float32():
    model = PruningWrapper(build().to(torch.bfloat16), stds())
    assert layer_view(model, "0").state["theta"].dtype == torch.float32
