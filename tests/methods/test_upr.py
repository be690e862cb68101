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
FANS = {"2": 6 * 9, "5": 8, "9": 5}  # neuron layer -> weights that a spike meets
MAPS = {"2": (4, 6, 6), "5": (6, 6, 6), "9": (8,)}
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


@pytest.mark.parametrize(
    ("optimizer", "neurons"),
    [("sgd", None), ("nesterov", None), ("adam", None), ("sgd", 0.05), ("adam", 0.05)],
)
def test_upr(optimizer, neurons):
    """Autograd has the gradients of all, by a functional call; torch's Adam moves the gates."""
    theta, gates, made = {}, {}, {}
    closed = {n: torch.full(s, neurons or 1.0, dtype=torch.float64) for n, s in MAPS.items()}
    for a in closed.values():
        a.requires_grad_()
    step = [1]

    def start(bare, model):
        for n, w in bare.weights.items():
            gates[n] = torch.full_like(w, INITIAL).requires_grad_()
            theta[n] = w.detach() / torch.sigmoid(5.0 * gates[n].detach())
        every = [*gates.values(), *(closed.values() if neurons else ())]
        made["gates"] = torch.optim.Adam(every, lr=RATE)
        for name in MAPS if neurons else ():
            bare.net.get_submodule(name).register_forward_hook(
                lambda node, args, spikes, name=name: effective(spikes, closed[name], step[0])
            )

    def advance(bare: Bare, k):
        step[0] = k
        leaves = {n: t.detach().requires_grad_() for n, t in theta.items()}
        now = {n: effective(leaves[n], gates[n], k) for n in theta}
        for optimizer in (bare.optimizer, made["gates"]):
            optimizer.zero_grad()
        x_seq, y = batch(k)
        functional.reset_net(bare.net)
        given = {f"{n}.weight": w for n, w in now.items()}
        output = functional_call(bare.net, given, (x_seq.double(),)).mean(0)
        cost = sum(PLACES[n] * torch.sigmoid(sharpness(k) * g).sum() for n, g in gates.items())
        if neurons:
            cost += sum(FANS[n] * torch.sigmoid(sharpness(k) * a).sum() for n, a in closed.items())
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

    model, _ = follows(upr(neurons=neurons), optimizer, 10, advance, start=start)
    memory = model.session.run.network_memory
    for n, a in closed.items() if neurons else ():
        torch.testing.assert_close(memory[f"{n}: a"], a.detach(), rtol=1e-10, atol=1e-12)
        assert memory[f"{n}: gate"].equal((a > 0).double())
        assert 0 < (a > 0).sum() < a.numel()
    assert bool(memory) == bool(neurons)
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
