"""ADMM and RCMO against their rules, written again on a bare network in float64."""

import copy
import math
import pickle

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import build, loss_of, train, wrapped
from tests.support.reference import Bare, follows, top, top_of_all

LR = {"sgd_momentum": 0.1, "adam": 0.01}
TOTAL = 760
EVERY = pytest.mark.parametrize("optimizer", LR)


@EVERY
def test_admm(optimizer):
    """Uniform shares: 18, 54, 108 and 10 of 72, 216, 432 and 40 weights."""
    shares, rho, z, u = {"0": 18, "3": 54, "8": 108, "10": 10}, 0.7, {}, {}

    def keep_top(name, value):
        return torch.where(top(value.abs(), shares[name]), value, 0.0)

    def advance(bare: Bare, k):
        bare.backward(k)
        for n, w in bare.weights.items():
            now = w.detach().clone()
            if k == 1:
                z[n], u[n] = keep_top(n, now), torch.zeros_like(now)
            elif (k - 1) % 3 == 0 and k < 12:
                z[n] = keep_top(n, now + u[n])
                u[n] = u[n] + now - z[n]
            if k == 12:
                bare.masks[n] = top(now.abs(), shares[n])
        bare.step()
        if k < 12:
            with torch.no_grad():
                for n, w in bare.weights.items():
                    w -= LR[optimizer] * rho * (w - z[n] + u[n])

    method = methods.ADMM(sparsity=0.75, rho=rho, interval=3, end=12)
    model, _ = follows(method, optimizer, 14, advance)
    assert all(u[n].any() for n in shares)
    assert model.sparsity()["total"] == 0.75
    assert not any({"z", "u"} & kept.keys() for kept in model.session.run.memory.values())


@EVERY
def test_rcmo(optimizer):
    """Every weight of all layers in one sorted list."""
    rate, y_rate, z_rate, most = 0.5, 20.0, 3e5, 0.6 * TOTAL
    game = {"s": 0.0, "y": 0.0, "z": 0.0}
    shrunk = []

    def squares(bare):
        return torch.cat([w.detach().flatten() for w in bare.weights.values()]).square()

    @torch.no_grad()
    def play(bare):
        s, y, z = game["s"], game["y"], game["z"]
        order = squares(bare).argsort()
        flat = torch.cat([w.flatten() for w in bare.weights.values()])
        few = math.ceil(s)
        flat[order[:few]] /= 1 + 2 * LR[optimizer] * y
        shrunk.append(few if y else 0)
        parts = flat.split([w.numel() for w in bare.weights.values()])
        for w, part in zip(bare.weights.values(), parts, strict=True):
            w.copy_(part.view_as(w))
        ordered = squares(bare).sort().values
        s = s - rate * (y * float(ordered[few]) + z * (-1 / TOTAL))
        s = min(max(s, 0.0), most)
        y = y + y_rate * float(ordered[: math.ceil(s)].sum())
        z = max(0.0, z + z_rate * (1 - s / TOTAL - 0.4))
        game.update(s=s, y=y, z=z)

    def advance(bare: Bare, k):
        bare.backward(k)
        if k == 10:
            bare.masks = top_of_all(bare.size(), round(0.4 * TOTAL))
        bare.step()
        if k < 10:
            play(bare)

    method = methods.RCMO(sparsity=0.6, end=10, lr_s=rate, lr_y=y_rate, lr_z=z_rate)
    model, _ = follows(method, optimizer, 12, advance)
    for key, value in game.items():
        assert float(model.session.run.network_memory[key]) == pytest.approx(value, rel=1e-9)
    assert len({few for few in shrunk if few}) > 2  # s moved between its bounds


@pytest.mark.parametrize(
    "method",
    [
        methods.RCMO(sparsity=0.6, end=10),
        methods.SynOpsBudget(fraction=0.5),
        methods.SynOpsBudget(fraction=0.5, method=methods.RCMO(sparsity=0.6, end=10)),
    ],
)
def test_a_checkpoint_that_has_forgotten_the_game_is_refused(method):
    model, optimizer = wrapped(method)
    train(model, optimizer, 3)
    saved = copy.deepcopy(model.state_dict())
    forgotten = saved["_extra_state"]["network_memory"]
    saved["_extra_state"]["network_memory"] = {}
    for other in (model, wrapped(method, net=build(seed=1))[0]):
        before = copy.deepcopy(other.session.run.network_memory)
        with pytest.raises(ValueError, match="'_extra_state.network_memory' of the checkpoint"):
            other.load_state_dict(saved)
        assert other.session.run.network_memory == before
    saved["_extra_state"]["network_memory"] = forgotten
    other.load_state_dict(saved)
    assert other.session.run.network_memory == forgotten


def test_pull_and_game_start_late():
    for method in (
        methods.ADMM(sparsity=0.5, interval=2, begin=4, end=8),
        methods.RCMO(sparsity=0.5, begin=4, end=8),
    ):
        model, optimizer = wrapped(method)
        optimizer.zero_grad()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.param_groups[0]["weight_decay"] = 0.0
        before = model.net[3].weight.clone()
        for _ in range(4):
            optimizer.step()
        assert model.net[3].weight.equal(before)


# ---- the penalty on spikes -----------------------------------------------------------------------


def spiking(net):
    return [m for m in net.modules() if isinstance(m, neuron.BaseNode)]


def with_activity(strength=0.7):
    return methods.ADMM(sparsity=0.5, interval=2, end=8, activity=strength)


def by_autograd(strength, scale=1.0):
    """Return the gradients of ``L + strength * sum of mean spikes`` on the network itself."""
    net, seen = build().double(), []
    for node in spiking(net):
        node.register_forward_hook(lambda _, inputs, out: seen.append(out.mean()))
    (scale * (loss_of(net, 1, torch.float64) + strength * sum(seen))).backward()
    return {n: p.grad for n, p in net.named_parameters()}


def test_activity_is_a_term_of_the_loss():
    model = PruningWrapper(build().double(), with_activity())
    loss_of(model, 1, torch.float64).backward()
    expected, without = by_autograd(0.7), by_autograd(0.0)
    for name, p in model.net.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-10, atol=1e-14)
    assert not torch.allclose(expected["0.weight"], without["0.weight"])


def test_activity_is_scaled_with_the_loss():
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    model = PruningWrapper(build().double(), with_activity())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.attach(optimizer, scaler=scaler)
    scaler.scale(loss_of(model, 1, torch.float64)).backward()
    expected = by_autograd(0.7, 64.0)
    for name, p in model.net.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-10, atol=1e-12)


def test_activity_leaves_with_its_wrapper():
    net = build().double()
    plain = by_autograd(0.0)
    PruningWrapper(net, with_activity())
    model = PruningWrapper(net, methods.Magnitude(sparsity=0.5, interval=2, end=8))  # wrapped anew
    assert not any(node._forward_hooks for node in spiking(net))
    net = PruningWrapper(model.finalize(), with_activity(0.9))
    copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    net.eval()
    loss_of(net, 1, torch.float64)
    net = net.train().finalize()
    assert not any(node._forward_hooks for node in spiking(net))
    loss_of(net, 1, torch.float64).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, plain[name], rtol=1e-10, atol=1e-14)


def test_activity_lowers_the_firing_rate():
    rates = []
    for strength in (0.0, 5.0):
        model, optimizer = wrapped(with_activity(strength), "adam")
        train(model, optimizer, 20)
        seen = []
        for node in spiking(model.net):
            node.register_forward_hook(lambda _, inputs, out, seen=seen: seen.append(out.mean()))
        with torch.no_grad():
            loss_of(model, 21)
        rates.append(float(sum(seen)))
    assert rates[1] < 0.8 * rates[0]


class Heads(nn.Module):
    """One head runs at first, the other later."""

    def __init__(self):
        super().__init__()
        self.body, self.heads, self.task = nn.Linear(4, 6), nn.ModuleList(), 0
        self.heads.extend(nn.Linear(6, 3) for _ in range(2))

    def forward(self, x):
        return self.heads[self.task](self.body(x))


def test_a_layer_that_runs_later_joins_the_game():
    torch.manual_seed(0)
    net, x = Heads(), torch.randn(5, 4)
    model = PruningWrapper(net, methods.ADMM(sparsity=0.5, interval=2, end=8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.attach(optimizer)
    for step in range(8):
        net.task = int(step >= 4)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert model.sparsity() == {"body": 0.5, "heads.0": 0.5, "heads.1": 0.5, "total": 0.5}
