"""UPR: theta and gates are leaves of two optimizers, on a network that knows nothing of it."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from torch.func import functional_call

from sj_prune import methods
from tests.support.pruning_cases import batch, train, wrapped
from tests.support.reference import Bare, follows
from tests.support.views import layer_view

PLACES = {"0": 36, "3": 36, "8": 1, "10": 1}
BEGIN, END, STRENGTH, INITIAL, RATE = 2, 7, 1e-4, 0.05, 0.02


def upr(**settings):
    usual = {"begin": BEGIN, "end": END, "interval": 1, "strength": STRENGTH}
    gates = {"initial": INITIAL, "gate_lr": RATE, "sharpest": 200.0}
    return methods.UPR(**{**usual, **gates, **settings})


def sharpness(k):
    """Return beta in step k, from 1."""
    done = k - 1
    return 5.0 * 40.0 ** (max(0, done - BEGIN) / (END - BEGIN))


def effective(theta, gates, k):
    if k > END:
        return theta * (gates > 0)
    return theta * torch.sigmoid(sharpness(k) * gates)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
def test_upr(optimizer):
    """Autograd has the gradients of both, by a functional call; torch's Adam moves the gates."""
    theta, gates, made = {}, {}, {}

    def start(bare, model):
        for n, w in bare.weights.items():
            gates[n] = torch.full_like(w, INITIAL).requires_grad_()
            theta[n] = w.detach() / torch.sigmoid(5.0 * gates[n].detach())
        made["gates"] = torch.optim.Adam(gates.values(), lr=RATE)

    def advance(bare: Bare, k):
        leaves = {n: t.detach().requires_grad_() for n, t in theta.items()}
        now = {n: effective(leaves[n], gates[n], k) for n in theta}
        for optimizer in (bare.optimizer, made["gates"]):
            optimizer.zero_grad()
        x_seq, y = batch(k)
        functional.reset_net(bare.net)
        given = {f"{n}.weight": w for n, w in now.items()}
        output = functional_call(bare.net, given, (x_seq.double(),)).mean(0)
        cost = sum(PLACES[n] * torch.sigmoid(sharpness(k) * g).sum() for n, g in gates.items())
        (F.cross_entropy(output, y) + STRENGTH * cost).backward()
        with torch.no_grad():  # the network's optimizer steps on theta
            for n, w in bare.weights.items():
                w.copy_(theta[n])
                w.grad = leaves[n].grad
        bare.optimizer.step()
        if k <= END:
            made["gates"].step()
        with torch.no_grad():
            for n, w in bare.weights.items():
                theta[n] = w.detach().clone()
                w.copy_(effective(theta[n], gates[n], k + 1))
                bare.masks[n] = w != 0

    model, _ = follows(upr(), optimizer, 10, advance, start=start)
    assert 0.05 < model.sparsity()["total"] < 0.95
    assert len({round(model.sparsity()[n], 3) for n in PLACES}) > 1
    assert [record.sparsity == 0 for record in model.history] == [True] * (END - BEGIN - 1) + [
        False
    ]


def test_written_weights_are_taken_over():
    model, optimizer = wrapped(upr(), "sgd")
    for steps in (3, 6):
        train(model, optimizer, steps)
        weight = model.masks.weight("8")
        with torch.no_grad():
            weight.fill_(-0.3)
        assert model.sparsity()["8"] == 0
        state = layer_view(model, "8").state
        torch.testing.assert_close(state["theta"] * state["gate"], torch.full_like(weight, -0.3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"end": None}, "Expected end, the step in which the gates become hard"),
        ({"initial": 0}, "Expected initial to be finite and above 0"),
        ({"gate_lr": -1.0}, "Expected gate_lr to be finite and above 0"),
        ({"sharpest": 1.0}, "Expected sharpest of at least 5.0"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        upr(**wrong)
