"""UPR: theta and gates are leaves of two optimizers, on a network that knows nothing of it."""

import copy
import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from torch import nn
from torch.func import functional_call

import sj_prune
from sj_prune import PruningWrapper, methods
from sj_prune.methods.parts import Gates
from sj_prune.neurons import SpikeGate
from tests.support.pruning_cases import T, batch, build, same, snapshot, train, wrapped
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
    theta, gates, made, step = {}, {}, {}, [1]
    places = MAPS if neurons else {}
    closed = {n: torch.full(s, neurons, dtype=torch.float64) for n, s in places.items()}

    def start(bare, model):
        for n, w in bare.weights.items():
            gates[n] = torch.full_like(w, INITIAL).requires_grad_()
            theta[n] = w.detach() / torch.sigmoid(5.0 * gates[n].detach())
        every = [*gates.values(), *(a.requires_grad_() for a in closed.values())]
        made["gates"] = torch.optim.Adam(every, lr=RATE)
        for name in closed:
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
    for n, a in closed.items():
        torch.testing.assert_close(memory[f"{n}: a"], a.detach(), rtol=1e-10, atol=1e-12)
        assert memory[f"{n}: gate"].equal((a > 0).double())
        assert 0 < (a > 0).sum() < a.numel()
    assert len(memory) == 6 * len(closed)
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
        ({"neurons": -1.0}, "Expected neurons to be finite and above 0"),
        ({"gate_lr": -1.0}, "Expected gate_lr to be finite and above 0"),
        ({"sharpest": 1.0}, "Expected sharpest of at least 5.0"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        upr(**wrong)


def learned():
    """Return a wrapper whose gates are hard, and an input."""
    model, optimizer = wrapped(upr(neurons=0.05), "adam")
    train(model, optimizer, END + 2)
    return model.eval(), batch(3)[0]


def output(net, x_seq):
    functional.reset_net(net)
    return net(x_seq).detach()


def test_gates_of_neurons_stay_in_the_finished_network():
    model, x_seq = learned()
    expected = output(model, x_seq)
    memory = model.session.run.network_memory
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    net = model.finalize()
    assert output(net, x_seq).equal(expected)
    assert output(twin, x_seq).equal(expected)
    assert not any(module._forward_hooks for module in net.modules())
    gates = {n: m.gate for n, m in net.named_modules() if isinstance(m, SpikeGate)}
    assert {n: tuple(gate.shape) for n, gate in gates.items()} == {
        f"{n}.1": shape for n, shape in MAPS.items()
    }
    for name in MAPS:
        assert gates[f"{name}.1"].equal((memory[f"{name}: a"] > 0).float())
        assert net.state_dict()[f"{name}.1.gate"].equal(gates[f"{name}.1"])
    assert f"open: {int(gates['9.1'].sum())}" in repr(net[9])
    small = sj_prune.compact(net, x_seq)
    torch.testing.assert_close(output(small, x_seq), expected)
    with pytest.raises(ValueError, match=r"deploy but 2\.1 \(SpikeGate\)"):
        sj_prune.deploy(net, x_seq)
    with pytest.raises(ValueError, match=r"spikes to end in \(4, 6, 6\), .* one size of inputs"):
        output(net, torch.rand(T, 2, 2, 8, 8))


def test_gates_that_are_all_open_leave_nothing():
    model, optimizer = wrapped(upr(neurons=1.0, strength=0.0, gate_lr=1e-5), "sgd")
    train(model, optimizer, 1)
    with pytest.raises(ValueError, match="Expected 2 to end in"):
        output(model, torch.rand(T, 2, 2, 8, 8))
    train(model, optimizer, END, start=2)
    stock = {type(m) for m in build().modules()}
    assert {type(m) for m in model.finalize().modules()} == stock


def test_a_wrapper_that_is_discarded_takes_its_gates_along():
    model, _ = learned()
    net = model.net
    model.discard()
    assert not any(module._forward_hooks for module in net.modules())


class Loop(nn.Module):
    """Single steps, with the loop over time inside."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x_seq):
        return torch.stack([self.net(x) for x in x_seq])


def norm_free():
    net = build().double()
    net[1], net[4] = nn.Identity(), nn.Identity()
    return net


@pytest.mark.parametrize("how", ["steps", "compiled"])
def test_gates_learn_alike(how):
    """In single steps, and where torch compiles what is around the neurons."""
    model, optimizer = wrapped(upr(neurons=0.05), "sgd", net=norm_free())
    train(model, optimizer, 3, dtype=torch.float64)
    net = norm_free()
    if how == "steps":
        functional.set_step_mode(net, "s")
    other, again = wrapped(upr(neurons=0.05), "sgd", net=Loop(net) if how == "steps" else net)
    called = torch.compile(other, backend="eager") if how == "compiled" else other
    train(called, again, 3, dtype=torch.float64)
    prefix = "net." if how == "steps" else ""
    expected = model.session.run.network_memory
    assert len(expected) == 6 * len(MAPS)
    assert expected["2: a"].unique().numel() > 2
    for key, value in expected.items():
        found = other.session.run.network_memory[prefix + key]
        torch.testing.assert_close(found, value, rtol=1e-8, atol=1e-10)


def test_gates_are_refused_where_they_cannot_be_right():
    model, _ = wrapped(upr(neurons=1.0))
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="Expected scaler=None for UPR"):
        model.attach(other, scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="behind gates spikes are real numbers"):
        methods.SynOpsBudget(fraction=0.5, method=upr(neurons=1.0))
    with pytest.raises(TypeError, match="Expected gates of mine to be Gates"):
        dataclasses.replace(upr().plan(), gates=1, name="mine")
    with pytest.raises(TypeError, match="Expected learn of gates to be a function"):
        Gates(start=upr().open, learn=None)


def test_a_compiled_forward_tells_no_places():
    """Or each weight of a map would cost one accumulation."""
    x_seq, y = batch(0)
    for example, places in ((None, {}), (x_seq, PLACES)):
        model = PruningWrapper(build(), upr(), example_input=example)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.attach(optimizer)
        functional.reset_net(model)
        F.cross_entropy(torch.compile(model, backend="eager")(x_seq).mean(0), y).backward()
        assert model.session.run.anatomy.places == places
        if example is None:
            before = snapshot(model.net)
            with pytest.raises(RuntimeError, match="Expected a forward that tells the map"):
                optimizer.step()
            assert same(before, snapshot(model.net))
        else:
            optimizer.step()
