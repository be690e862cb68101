"""OBC and SBC against a brute force: the least squares of every support, tried one by one."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import methods
from sj_prune.masks import NM, Channels, Uniform
from sj_prune.methods.obs import removal_losses

T, N, TAU = 3, 5, 2.0


def tiny(groups=1):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 2, 2, stride=2, padding=1, groups=groups, bias=False),
        neuron.LIFNode(tau=TAU, decay_input=False),
        layer.Flatten(),
        layer.Linear(2 * 2 * 2, 3),
    )
    functional.set_step_mode(net, "m")
    net[0].weight.data.mul_(3)
    return net.double().eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return [2 * torch.rand(T, N, 2, 3, 2, generator=generator).double() for _ in range(2)]


def filtered(x_seq, leak):
    """Return z[t] = sum over s <= t of leak^(t-s) x[s]."""
    return torch.stack(
        [sum(leak ** (t - s) * x_seq[s] for s in range(t + 1)) for t in range(len(x_seq))]
    )


def patches(x, group, groups):
    """Return what the convolution of `tiny` multiplies at every place, by loops."""
    x = torch.nn.functional.pad(x, (1, 1, 1, 1))
    channels = range(2) if groups == 1 else [group]
    return [
        torch.stack([x[n, c, i : i + 2, j : j + 2] for c in channels]).flatten()
        for n in range(len(x))
        for i in range(0, x.shape[2] - 1, 2)
        for j in range(0, x.shape[3] - 1, 2)
    ]


def hessian(rows, damp=0.01):
    found = 2 * sum(torch.outer(z, z) for z in rows)
    return found + damp * found.diagonal().mean() * torch.eye(len(found)).double()


def least_squares(w, h, support):
    """Return the weights with this support that change the output least, and by how much."""
    new = torch.zeros_like(w)
    gone = [i for i in range(len(w)) if i not in support]
    if support:
        new[support] = w[support] + torch.linalg.solve(
            h[support][:, support], h[support][:, gone] @ w[gone]
        )
    return new, float((new - w) @ h @ (new - w))


def greedy(w, h):
    """Return the loss at which each weight goes, the largest so far."""
    support, last, most, found = list(range(len(w))), 0.0, 0.0, torch.zeros_like(w)
    while support:
        costs = [least_squares(w, h, [i for i in support if i != p])[1] for p in support]
        cost = min(costs)
        p = support.pop(costs.index(cost))
        most = max(most, cost - last)
        found[p], last = most, cost
    return found


def test_losses_are_those_of_a_brute_force():
    torch.manual_seed(3)
    z, weight = torch.randn(20, 6).double(), torch.randn(4, 6).double()
    h = hessian(z)
    found = removal_losses(weight, torch.linalg.inv(h))
    expected = torch.stack([greedy(w, h) for w in weight])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("method", "leak"),
    [
        (methods.OBC(sparsity=0.5), 0.0),
        (methods.SBC(sparsity=0.5, tau=TAU), 0.5),
        (methods.SBC(sparsity=0.5, tau=None), 1.0),
    ],
)
def test_masks_and_weights_of_a_network(method, leak, groups):
    """Masks on inputs of the dense network, weights on inputs of the layers before, rewritten."""
    net = tiny(groups)
    dense = copy.deepcopy(net)
    net, _ = sj_prune.prune(net, inputs(), method, renormalize=False)
    seen = [filtered(x, leak) for x in inputs()]
    for group in range(groups):
        h = hessian([z for x in seen for step in x for z in patches(step, group, groups)])
        mine = slice(group, group + 1) if groups == 2 else slice(None)
        check(dense[0].weight[mine], net[0].weight[mine], h, h)
        if groups == 1:
            assert int(net[0].weight.count_nonzero()) == net[0].weight.numel() // 2
    both = []
    for each in (dense, net):
        rows = []
        for x in inputs():
            functional.reset_net(each)
            rows += list(filtered(each[:3](x).detach(), leak).flatten(0, 1))
        both.append(hessian(rows))
    assert int(net[3].weight.count_nonzero()) == net[3].weight.numel() // 2
    check(dense[3].weight, net[3].weight, *both)


def check(before, after, chosen_by, rewritten_by):
    before, after = before.detach().flatten(1), after.detach().flatten(1)
    losses = torch.stack([greedy(w, chosen_by) for w in before])
    kept = after != 0
    assert losses[kept].min() >= losses[~kept].max() - 1e-9
    for w, new, where in zip(before, after, kept, strict=True):
        expected, _ = least_squares(w, rewritten_by, where.nonzero().flatten().tolist())
        torch.testing.assert_close(new, expected, rtol=1e-8, atol=1e-10)


def test_membranes_change_less_than_by_magnitude():
    errors = {}
    for method in (
        methods.Magnitude(sparsity=0.5, allocation=Uniform()),
        methods.SBC(sparsity=0.5, tau=TAU),
    ):
        net = tiny()
        dense = copy.deepcopy(net)
        sj_prune.prune(net, inputs(), method, renormalize=False)
        errors[type(method)] = sum(
            filtered(net[0](x) - dense[0](x), 0.5).square().sum().item() for x in inputs()
        )
    assert errors[methods.SBC] < errors[methods.Magnitude]


def test_blocks_and_budgets():
    """Losses are ranked within blocks too, and a budget is met by trial before weights change."""
    net, _ = sj_prune.prune(
        tiny(), inputs(), methods.OBC(sparsity=0.5, structure=NM(2, 4)), renormalize=False
    )
    assert (net[3].weight.view(3, 2, 4).count_nonzero(2) == 2).all()
    net, dense = tiny(), tiny()
    net, report = sj_prune.prune(
        net, inputs(), methods.SBC(tau=TAU), budget={"parameters": 0.5}, renormalize=False
    )
    assert abs(report.totals["weights_kept"] + 3 - 0.5 * 43) < 1  # with the biases
    h = hessian([z for x in inputs() for s in filtered(x, 0.5) for z in patches(s, 0, 1)])
    check(dense[0].weight, net[0].weight, h, h)


def test_refused():
    with pytest.raises(ValueError, match="tau above 1"):
        methods.SBC(tau=0.5)
    with pytest.raises(ValueError, match="damp"):
        methods.OBC(damp=0.0)
    with pytest.raises(ValueError, match="single weights"):
        methods.OBC(structure=Channels())
    with pytest.raises(ValueError, match="rewrite"):
        sj_prune.PruningWrapper(tiny(), methods.OBC())
    net = tiny()
    functional.set_step_mode(net, "s")
    with pytest.raises(ValueError, match="'0'.*multi-step"):
        sj_prune.prune(net, [x[0] for x in inputs()], methods.OBC())
