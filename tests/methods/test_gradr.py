"""Grad R: the weight follows a hidden theta that the test keeps by its own arithmetic."""

import math

import pytest
import torch
from torch import nn

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import build, loss_of, same, train, wrapped
from tests.support.views import layer_view

ALPHA, P = 0.02, 0.8
MU = math.log(2 * (1 - P)) / ALPHA


def gradr(**kwargs):
    return methods.GradR(**{"sparsity": P, "alpha": ALPHA, "interval": 5, "end": 40, **kwargs})


class Sgd:
    """SGD with momentum, written again: returns the change of the weight."""

    def __init__(self, lr=0.05, momentum=0.9, weight_decay=0.0):
        self.lr, self.momentum, self.decay = lr, momentum, weight_decay
        self.kwargs = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.buffer = 0.0

    torch = torch.optim.SGD

    def change(self, w, g):
        self.buffer = self.momentum * self.buffer + g + self.decay * w
        return -self.lr * self.buffer


class Adam:
    """Adam; `decoupled` makes it AdamW."""

    decoupled = False
    torch = torch.optim.Adam

    def __init__(self, lr=0.02, weight_decay=0.0):
        self.lr, self.decay = lr, weight_decay
        self.kwargs = {"lr": lr, "weight_decay": weight_decay}
        self.m = self.v = 0.0
        self.t = 0

    def change(self, w, g):
        self.t += 1
        shrink = self.lr * self.decay * w if self.decoupled else 0.0
        g = g if self.decoupled else g + self.decay * w
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g * g
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return -shrink - self.lr * m / (v.sqrt() + 1e-8)


class AdamW(Adam):
    decoupled = True
    torch = torch.optim.AdamW


@pytest.mark.parametrize("alpha", [10**30, 1e30, 1001])
def test_a_prior_that_drowns_the_gradient_is_refused(alpha):
    with pytest.raises(ValueError, match="Expected alpha of at most 1000 but got"):
        gradr(alpha=alpha)


def linear(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 5))
    with torch.no_grad():
        net[0].weight.uniform_(-0.3, 0.3)
    return net


@pytest.mark.parametrize(
    "rule",
    [
        Sgd(momentum=0.0),
        Sgd(),
        Sgd(weight_decay=0.05),
        Adam(),
        Adam(weight_decay=0.05),
        AdamW(weight_decay=0.2),
    ],
    ids=["sgd", "momentum", "sgd_decay", "adam", "adam_decay", "adamw"],
)
def test_change_of_the_weight_is_the_change_of_theta(rule):
    net = linear()
    model = PruningWrapper(net, gradr())
    optimizer = rule.torch(net[0].parameters(), **rule.kwargs)
    model.attach(optimizer)
    weight = net[0].weight
    w = weight.detach().double()
    sign, theta = torch.where(w < 0, -1.0, 1.0).double(), w.abs()
    woke = slept = 0
    generator = torch.Generator().manual_seed(1)
    # A gradient that turns round, so that connections sleep and wake.
    directions = torch.randn(5, 6, generator=generator)
    for k in range(60):
        c = directions * math.cos(k / 4) + 0.3 * torch.randn(5, 6, generator=generator)
        optimizer.zero_grad()
        (weight * c).sum().backward()  # dL/dw = c
        optimizer.step()
        w = sign * theta.clamp(min=0)
        before, theta = theta, theta + sign * rule.change(w, c.double())
        theta = theta - rule.lr * ALPHA * torch.sign(theta - MU)  # outside of the moments
        woke += int(((before <= 0) & (theta > 0)).sum())
        slept += int(((before > 0) & (theta <= 0)).sum())
        torch.testing.assert_close(
            weight.detach().double(), sign * theta.clamp(min=0), rtol=1e-4, atol=2e-6
        )
        hidden = model.session.run.memory["0"]["theta"].double()
        torch.testing.assert_close(hidden, theta, rtol=1e-4, atol=2e-6)
        assert model.masks["0"].equal(weight != 0)
    assert slept > 3
    assert woke > 3


def test_prior_pulls_towards_mu():
    """Without a loss every theta moves by lr alpha towards ln(2(1-p))/alpha, in both directions."""
    net = linear()
    method = methods.GradR(sparsity=0.6, alpha=0.9, end=10_000)
    assert method.mu == pytest.approx(math.log(0.8) / 0.9)
    model = PruningWrapper(net, method)
    hidden = layer_view(model, "0").state["theta"]
    hidden.view(-1)[::2] = -0.5  # below mu = -0.248
    with torch.no_grad():
        net[0].weight.view(-1)[::2] = 0.0
    before = hidden.clone()
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    model.attach(optimizer)
    (net[0].weight * 0.0).sum().backward()
    optimizer.step()
    moved = model.session.run.memory["0"]["theta"] - before
    expected = torch.full_like(moved, -0.09)
    expected.view(-1)[::2] = 0.09
    torch.testing.assert_close(moved, expected)


def test_layer_absent_from_a_step_is_left_alone():
    net = linear()
    model = PruningWrapper(net, gradr())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    model.attach(optimizer)
    before = net[0].weight.detach().clone()
    net[0].bias.sum().backward()  # no gradient of the weight
    optimizer.step()
    assert net[0].weight.equal(before)


def test_dormant_connection_wakes():
    net = nn.Sequential(nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(-0.1)
    model = PruningWrapper(net, gradr(alpha=1e-6))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    model.attach(optimizer)

    def step(gradient):
        optimizer.zero_grad()
        (net[0].weight * gradient).sum().backward()
        optimizer.step()
        return net[0].weight.item(), model.masks["0"].item()

    assert step(-0.4) == (0.0, False)  # theta = 0.1 - 0.4
    assert model.session.run.memory["0"]["theta"].item() == pytest.approx(-0.3, abs=1e-5)
    assert step(0.2) == (0.0, False)  # still asleep, yet it moved
    assert model.session.run.memory["0"]["theta"].item() == pytest.approx(-0.1, abs=1e-5)
    value, alive = step(0.3)
    assert alive
    assert value == pytest.approx(-0.2, abs=1e-5)  # with its old sign


def test_sparsity_emerges_and_is_recorded():
    model, optimizer = wrapped(gradr(alpha=0.05, interval=2, end=9), "sgd")
    zeros = []

    def after(k):
        masks = {n: model.masks.weight(n) != 0 for n in model.masks}
        assert same(model.masks.masks, masks)
        zeros.append(masks)

    train(model, optimizer, 9, after=after)
    assert [record.step for record in model.history] == [2, 4, 6, 8]
    assert model.sparsity()["total"] > 0.03
    now, then = zeros[7], zeros[5]
    assert model.history[-1].dropped == {n: int((then[n] & ~now[n]).sum()) for n in now}
    assert model.history[-1].grown == {n: int((now[n] & ~then[n]).sum()) for n in now}


def test_finalize_leaves_the_weights():
    model, optimizer = wrapped(gradr(alpha=0.05), "sgd")
    train(model, optimizer, 5)
    before = {n: model.masks.weight(n).detach().clone() for n in model.masks}
    net = model.finalize()
    assert same(before, {n: net.get_submodule(n).weight.detach() for n in before})
    assert any((w == 0).any() for w in before.values())


def test_gradients_of_dormant_connections_stay_alive():
    model, optimizer = wrapped(gradr(alpha=0.05), "adam")
    train(model, optimizer, 6)
    loss_of(model, 7).backward()
    for name, mask in model.masks.items():
        if not mask.all():
            assert model.masks.weight(name).grad[~mask].any()
            assert optimizer.state[model.masks.weight(name)]["exp_avg"][~mask].any()


def test_sparsity_cannot_be_asked_for():
    model = PruningWrapper(build(), gradr())
    with pytest.raises(ValueError, match="Expected sparsity=None for GradR"):
        model.update_masks(0.9)
    model.update_masks()
    assert len(model.history) == 1


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"sparsity": 0.5}, ValueError, r"Expected sparsity in \(0\.5, 1\) but got 0\.5"),
        ({"alpha": 0.0}, ValueError, "Expected alpha to be finite and above 0 but got 0"),
        ({"alpha": math.inf}, ValueError, "Expected alpha to be finite and above 0 but got inf"),
        ({"alpha": "1"}, TypeError, "Expected alpha to be a number but got '1'"),
        ({"alpha": True}, TypeError, "Expected alpha to be a number but got True"),
    ],
)
def test_wrong_settings(wrong, error, message):
    with pytest.raises(error, match=message):
        gradr(**wrong)


@pytest.mark.parametrize("attached", [False, True])
def test_weights_may_be_loaded_after_wrapping(attached):
    """Signs and theta are those of the weights that training starts from."""
    model = PruningWrapper(build(), gradr(alpha=1e-6))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    if attached:
        model.attach(optimizer)
    pretrained = build(seed=1)
    model.net.load_state_dict(pretrained.state_dict())
    model.attach(optimizer)
    train(model, optimizer, 1)
    for name in model.masks:
        weight = pretrained.get_submodule(name).weight
        torch.testing.assert_close(model.masks.weight(name), weight, rtol=1e-4, atol=1e-6)
