"""SynOps in the loss, against autograd and against convolutions of the test's own."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from torch import nn

from sj_prune import PruningWrapper, cost, methods
from tests.support.pruning_cases import (
    OPTIMIZERS,
    N,
    batch,
    build,
    frozen,
    loss_of,
    same,
    same_state,
    snapshot,
    train,
    wrapped,
)

SPIKE_FED = ("3", "10")  # behind a neuron; "0" takes the image, "8" averages of spikes


def fill(model, multiplier, budget):
    memory = model.session.run.network_memory
    memory["synops_multiplier"] = torch.tensor(multiplier, dtype=torch.float64)
    memory["synops_budget"] = torch.tensor(budget, dtype=torch.float64)


def synops_of(net, x_seq, y):
    """Return loss and SynOps a sample of a bare network, differentiable by its spikes.

    A spike meets as many weights as the convolution of a map of spikes with a kernel of ones where
    weights are not 0 adds up to.
    """
    found = {}
    handles = [
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, x, n=name: found.update({n: x[0]})
        )
        for name in SPIKE_FED
    ]
    functional.reset_net(net)
    loss = F.cross_entropy(net(x_seq).mean(0), y)
    for handle in handles:
        handle.remove()
    conv = F.conv2d(found["3"].flatten(0, 1), (net[3].weight != 0).to(x_seq), padding=1).sum()
    linear = F.linear(found["10"], (net[10].weight != 0).to(x_seq)).sum()
    return loss, (conv + linear) / x_seq.shape[1]


def test_gradient_is_that_of_the_lagrangian():
    """dL/dw + lambda/B dS/dw by autograd on a bare network, in float64, half of it pruned."""
    net = build().double()
    with torch.no_grad():
        for name in ("0", "3", "8", "10"):
            weight = net.get_submodule(name).weight
            weight[weight.abs() < weight.abs().median()] = 0.0
    method = methods.SynOpsBudget(
        fraction=0.5,
        damping=0.0,
        method=methods.Magnitude(sparsity=0.5, end=2000, start=methods.FromZeros()),
    )
    bare = copy.deepcopy(net)
    model = PruningWrapper(net, method)
    fill(model, 3.0, 70.0)
    loss_of(model, 1, torch.float64).backward()
    x_seq, y = batch(1)
    loss, synops = synops_of(bare, x_seq.double(), y)
    alone = torch.autograd.grad(loss, list(bare.parameters()), retain_graph=True)
    (loss + 3.0 * (synops / 70.0 - 1)).backward()
    masks = model.masks
    for (name, mine), (_, theirs), plain in zip(
        model.net.named_parameters(), bare.named_parameters(), alone, strict=True
    ):
        kept = masks[name[:-7]] if name.endswith("weight") and name[:-7] in masks else True
        torch.testing.assert_close(mine.grad, theirs.grad * kept, rtol=1e-10, atol=1e-13)
        if name == "0.weight":
            assert not torch.allclose(theirs.grad, plain)
    measured = model.session.run.meter.mean()
    assert float(measured[0]) == pytest.approx(synops.item(), rel=1e-12)
    assert float(measured[1]) > float(measured[0])


def test_meter_counts_as_the_report():
    model, _ = wrapped(methods.SynOpsBudget(fraction=0.5))
    x_seq, y = batch(1)
    for node in model.net.modules():  # the report measures in eval mode
        if isinstance(node, nn.BatchNorm2d):
            node.momentum = None
            node.reset_running_stats()
            node.eval()
    functional.reset_net(model)
    model(x_seq)
    found = cost.measure(model.net, x_seq)
    total = sum(each.synops for each in found.values())
    assert total > 0
    assert model.session.run.meter.mean().tolist() == pytest.approx([total, total])


@pytest.mark.parametrize(("damping", "begin"), [(0.0, 0), (2.0, 0), (2.0, 3)])
@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam"])
def test_multiplier_follows_its_rule(optimizer, damping, begin):
    """A bare network beside it, whose loss has the term by autograd."""
    method = methods.SynOpsBudget(fraction=0.6, rate=0.5, damping=damping, begin=begin)
    model, mine = wrapped(method, optimizer, net=build().double())
    bare = build().double()
    other = OPTIMIZERS[optimizer](bare.parameters())
    multiplier, budget, seen, seen_excess = 0.0, None, [], []
    for k in range(1, 6 + begin):
        train(model, mine, 1, start=k, dtype=torch.float64)
        x_seq, y = batch(k)
        loss, synops = synops_of(bare, x_seq.double(), y)
        other.zero_grad()
        if k <= begin:
            assert model.session.run.network_memory == {"synops_multiplier": 0.0}
            loss.backward()
            other.step()
            continue
        excess = 0.0 if budget is None else synops.item() / budget - 1
        seen_excess.append(excess)
        pull = multiplier + damping * max(-0.1, min(0.1, excess))
        budget = 0.6 * synops.item() if budget is None else budget
        (loss + max(0.0, pull) * (synops / budget - 1)).backward()
        other.step()
        multiplier = max(0.0, multiplier + 0.5 * (synops.item() / budget - 1))
        seen.append(multiplier)
        memory = model.session.run.network_memory
        assert float(memory["synops_multiplier"]) == pytest.approx(multiplier, rel=1e-9)
        for p, q in zip(model.net.parameters(), bare.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert len(set(seen)) == 5
    assert max(map(abs, seen_excess)) > 0.1  # where damping counts no more


def share_of(net, budget, batches):
    """Return the SynOps of training batches over the budget, by a bare copy of a network."""
    bare = build()
    bare.load_state_dict(net.state_dict())
    found = [synops_of(bare, *batch(k))[1].item() for k in range(batches)]
    return sum(found) / batches / budget


@pytest.mark.parametrize(
    ("fraction", "method"),
    [(0.5, None), (0.22, methods.Magnitude(sparsity=0.5, interval=10, end=20))],
)
def test_budget_is_met_at_the_end(fraction, method):
    """Where the term is at work to the end: with fewer SynOps than the budget it is 0."""
    steps, batches = 200, 10
    budgeted = methods.SynOpsBudget(fraction=fraction, method=method)
    model, optimizer = wrapped(budgeted, "adam")
    for k in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - k / steps)
        train(model, optimizer, 1, start=k % batches)
    assert model.sparsity()["total"] == (0.0 if method is None else 0.5)
    budget = model.session.run.network_memory["synops_budget"].item()
    assert share_of(model.finalize(), budget, batches) == pytest.approx(1.0, abs=0.02)


def test_resumes_bit_identically_in_the_middle():
    method = methods.SynOpsBudget(
        fraction=0.1, method=methods.RigL(sparsity=0.5, interval=2, end=9)
    )
    model, optimizer = wrapped(method)
    train(model, optimizer, 4)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 4, start=5)
    other, again = wrapped(method, net=build(seed=1))
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(other, again, 4, start=5)
    assert same(model.net.state_dict(), other.net.state_dict())
    assert same(model.session.run.network_memory, other.session.run.network_memory)
    assert model.session.run.network_memory["synops_multiplier"] > 0


def test_scaled_with_the_loss():
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=64.0)):
        model = PruningWrapper(build().double(), methods.SynOpsBudget(fraction=0.5))
        model.attach(torch.optim.SGD(model.parameters(), lr=0.1), scaler=scaler)
        fill(model, 3.0, 70.0)
        loss = loss_of(model, 1, torch.float64)
        (loss if scaler is None else scaler.scale(loss)).backward()
        found.append([p.grad / (1 if scaler is None else 64) for p in model.parameters()])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-13)


class Loop(nn.Module):
    """A network of single steps with the loop over time inside."""

    def __init__(self):
        super().__init__()
        self.net = build()
        functional.set_step_mode(self.net, "s")

    def forward(self, x_seq):
        return torch.stack([self.net(x) for x in x_seq])


@pytest.mark.parametrize("inside", [True, False])
def test_samples_of_single_steps(inside):
    """Each batch counts once, however many calls its steps are."""
    net = Loop() if inside else build()
    functional.set_step_mode(net, "s")
    model, _ = wrapped(methods.SynOpsBudget(fraction=0.5), net=net)
    for k in range(1, 3 if inside else 2):
        x_seq, _ = batch(k)
        functional.reset_net(model)
        model(x_seq) if inside else [model(x) for x in x_seq]
    assert model.session.run.meter.samples == N * (2 if inside else 1)


def test_leaves_with_its_wrapper():
    net = build()
    model, optimizer = wrapped(methods.SynOpsBudget(fraction=0.5), net=net)
    train(model, optimizer, 2)
    other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert same(other.session.run.network_memory, model.session.run.network_memory)
    loss_of(other, 3).backward()  # a copy hears itself alone
    assert other.session.run.meter.samples == N
    assert model.session.run.meter.samples == 0
    net = model.finalize()
    assert not any(m._forward_hooks for m in net.modules())
    loss_of(net, 3).backward()


def test_channels_that_sleep_cost_nothing():
    """Counted by element masks, as in the report: filters that sleep need not be 0."""
    method = methods.SynOpsBudget(fraction=0.5, method=methods.FilterNorm(sparsity=0.5, end=1))
    model, optimizer = wrapped(method)
    train(model, optimizer, 1)
    seen = {}
    for name in SPIKE_FED:
        layer = model.net.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, x, n=name: seen.update({n: x[0].detach()}))
    loss_of(model, 2)
    masks = model.session.run.masks.element_masks()
    assert not masks["3"].all()
    conv = F.conv2d(seen["3"].flatten(0, 1), masks["3"].float(), padding=1).sum()
    linear = F.linear(seen["10"], masks["10"].float()).sum()
    assert model.session.run.meter.mean()[0].item() == pytest.approx(((conv + linear) / N).item())


@pytest.mark.parametrize("begin", [0, 2])
def test_a_first_batch_without_synops_is_no_budget(begin):
    """Nothing over nothing would write nan into every weight."""
    net = build()
    with torch.no_grad():
        for norm in (net[1], net[4]):
            norm.bias.fill_(-9.0)  # all neurons are silent, and stay so
        net[8].bias.fill_(-9.0)
    model, optimizer = wrapped(methods.SynOpsBudget(fraction=0.5, begin=begin), net=net)
    train(model, optimizer, begin)
    loss_of(model, 9).backward()
    before = snapshot(net), frozen(optimizer)
    with pytest.raises(ValueError, match=f"Expected SynOps in the first batch after step {begin}"):
        optimizer.step()
    assert same_state(before, (snapshot(net), frozen(optimizer)))
    given, optimizer = wrapped(methods.SynOpsBudget(fraction=0.5, dense=9.0), net=model.finalize())
    train(given, optimizer, 2)
    assert all(p.isfinite().all() for p in given.parameters())


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": 0.5, "rate": 0.0}, "rate"),
        ({"fraction": 0.5, "dense": -1.0}, "dense"),
        ({"fraction": 0.5, "method": methods.RigL}, "parentheses|write RigL"),
    ],
)
def test_refused(settings, error):
    with pytest.raises((TypeError, ValueError), match=error):
        methods.SynOpsBudget(**settings)
