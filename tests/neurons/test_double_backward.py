"""Gradients of gradients (``create_graph=True``) against the stock node's graph and differences."""

import itertools

import pytest
import torch
from spikingjelly.activation_based import surrogate

from sj_prune.neurons import Tanh
from tests.support.neuron_cases import LEGACY, RECORDING, assert_near, current, pair, settings

FUNCTIONS = {
    name: getattr(surrogate, name)
    for name in ("ATan", "Sigmoid", "SoftSign", "Erf", "PiecewiseExp", "SuperSpike", "S2NN")
    if hasattr(surrogate, name)
}


def second_order(node, *, calls, same_input):
    """Return first and second gradients of a loss that is curved in all that the node returns."""
    node.double()
    xs = [current(3, 2, 4, dtype=torch.float64, seed=i).requires_grad_() for i in range(calls)]
    v_init = current(2, 4, dtype=torch.float64, seed=9, high=0.9).requires_grad_()
    node.v = v_init
    loss = 0.0
    for i in range(calls):
        spikes = node(xs[0] if same_input else xs[i])
        for value in (spikes, node.v, *([node.v_seq] if node.store_v_seq else [])):
            weights = torch.linspace(0.3, 1.7, value.numel(), dtype=torch.float64)
            loss = loss + (value * weights.view(value.shape)).square().sum()
    leaves = [*xs[: 1 if same_input else calls], v_init, *node.parameters()]
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    return [*first, *second]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", [-0.3, None])
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_equals_the_stock_graph(kind, v_reset, detach_reset, name):
    for store_v_seq, decay_input in itertools.product((False, True), repeat=2):
        kwargs = {
            "v_reset": v_reset,
            "detach_reset": detach_reset,
            "store_v_seq": store_v_seq,
            "decay_input": decay_input,
            "surrogate_function": FUNCTIONS[name](),
        }
        stock, ours = pair(kind, **kwargs)
        found = second_order(ours, calls=1, same_input=False)
        for a, b in zip(found, second_order(stock, calls=1, same_input=False), strict=True):
            assert_near(a, b, 1e-10)


@pytest.mark.parametrize("same_input", [True, False])
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_carried_state_is_not_counted_twice(kind, same_input):
    """The potential carried into a call depends on the same w, and here on the same x."""
    stock, ours = pair(kind, surrogate_function=surrogate.ATan(), store_v_seq=True)
    found = second_order(ours, calls=3, same_input=same_input)
    for a, b in zip(found, second_order(stock, calls=3, same_input=same_input), strict=True):
        assert_near(a, b, 1e-10)


@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_creating_a_graph_changes_no_first_gradient(kind):
    node = RECORDING[kind](**settings(kind, surrogate_function=surrogate.Sigmoid()))
    gradients = []
    for create_graph in (False, True):
        node.reset()
        x = current(4, 3, 5).requires_grad_()
        loss = (node(x) * torch.linspace(-1, 1, 5)).sum() + node.v.sum()
        leaves = [x, *node.parameters()]
        gradients.append(torch.autograd.grad(loss, leaves, create_graph=create_graph))
    for a, b in zip(*gradients, strict=True):
        assert_near(a.detach(), b.detach(), 1e-5)


@pytest.mark.parametrize("function", [surrogate.ATan, surrogate.Sigmoid, surrogate.Erf, Tanh])
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_equals_finite_differences(kind, function):
    """With a detached reset and spikes that stay, the first gradient is a smooth function."""
    kwargs = settings(kind, detach_reset=True, surrogate_function=function())
    node = RECORDING[kind](**kwargs).double()
    x = current(3, 2, 4, dtype=torch.float64)
    weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(x.shape)
    direction = torch.linspace(1, -2, x.numel(), dtype=torch.float64).view(x.shape)

    def first(value):
        node.reset()
        leaf = value.clone().requires_grad_()
        spikes = node(leaf)
        loss = (spikes * weights).sum()
        return torch.autograd.grad(loss, leaf, create_graph=True)[0], leaf, spikes

    gradient, leaf, spikes = first(x)
    (second,) = torch.autograd.grad((gradient * direction).sum(), leaf)
    step, probe = 1e-5, torch.zeros_like(x)
    differences = torch.zeros_like(x)
    for i in range(x.numel()):
        probe.view(-1)[i] = step
        up, _, spikes_up = first(x + probe)
        down, _, spikes_down = first(x - probe)
        assert torch.equal(spikes_up, spikes)
        assert torch.equal(spikes_down, spikes)
        differences.view(-1)[i] = ((up - down) * direction).sum().detach() / (2 * step)
        probe.view(-1)[i] = 0.0
    assert_near(second, differences, 1e-6)
    assert second.abs().max() > 0.1


@pytest.mark.skipif(LEGACY, reason="0.0.0.0.14 has no Rect")
def test_a_flat_derivative_has_no_curvature():
    node = RECORDING["IF"](step_mode="m", detach_reset=True, surrogate_function=surrogate.Rect())
    x = current(1, 2, 4).requires_grad_()
    (first,) = torch.autograd.grad(node(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    # d/dx of 2 S g' is 2 g' g' where g' is 1 and flat.
    near = (x.detach() - 1.0).abs() < 0.5
    assert torch.equal(second, 2.0 * near.float())
    assert 0 < near.sum() < near.numel()
