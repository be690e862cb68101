"""Every score of the channel methods, computed a second time in loops over Python floats."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from sj_prune import methods
from tests.support.channel_cases import CHANNEL_METHODS, FakeNode, greg, node, ready, sca, view
from tests.support.views import drop_score, forget, grow_score, observe, penalize, sums

C = 6


def means(of, name):
    return of.activity.means[name].tolist()


def average(*lists):
    return [sum(values) / len(values) for values in zip(*lists, strict=True)]


def filters(seen):
    return [w.flatten().tolist() for w in seen.weight]


def close(got, expected):
    assert got.shape == (len(expected),)
    torch.testing.assert_close(
        got.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )


# ---- activity ------------------------------------------------------------------------------------

ACTIVITY = {
    "code": lambda n: [v + s for v, s in zip(means(n, "abs_potential"), rate(n), strict=True)],
    "paper": lambda n: means(n, "abs_potential"),
    "abs_charge": lambda n: means(n, "abs_charge"),
    "firing_rate": lambda n: rate(n),
    "criticality": lambda n: [v / n.peak for v in means(n, "criticality_max")],
}


def rate(of):
    return means(of, "firing_rate")


@pytest.mark.parametrize("score", ACTIVITY)
def test_sca_scores(score):
    """METHODS section 3, with one neuron layer and with two of different surrogates."""
    a, b = node(seed=1, peak=0.5), node(seed=2, peak=2.0)
    method = sca(score=score)
    close(drop_score(method, view(nodes=[a])), ACTIVITY[score](a))
    close(drop_score(method, view(nodes=[a, b])), average(ACTIVITY[score](a), ACTIVITY[score](b)))


def test_sca_reads_only_what_it_needs():
    for score in ACTIVITY:
        a = node()
        drop_score(sca(score=score), view(nodes=[a]))
        assert set(a.activity.asked) == sca(score=score).plan().statistics


def test_a_spike_makes_up_for_the_hard_reset():
    """A neuron that fires at every step has V = 0: silent for the paper's score alone."""
    busy = {"abs_potential": torch.tensor([0.0, 0.3]), "firing_rate": torch.tensor([1.0, 0.0])}
    seen = view(channels=2, nodes=[FakeNode(busy)])
    assert drop_score(sca(), seen).tolist() == pytest.approx([1.0, 0.3])
    assert drop_score(sca(score="paper"), seen).tolist() == pytest.approx([0.0, 0.3])


def test_criticality_without_a_derivative_at_threshold():
    """A peak of 0 divides nothing: such layers score as they are, 0 in fact."""
    flat = node(peak=0.0)
    close(drop_score(sca(score="criticality"), view(nodes=[flat])), means(flat, "criticality_max"))


def test_apoz_is_the_firing_rate():
    a, b = node(seed=3), node(seed=4)
    close(drop_score(methods.APoZ(end=1), view(nodes=[a, b])), average(rate(a), rate(b)))


@pytest.mark.parametrize("name", [n for n, row in CHANNEL_METHODS.items() if row.reads])
def test_a_layer_without_neurons_has_no_activity(name):
    assert drop_score(CHANNEL_METHODS[name].make(), view(nodes=[])) is None


def test_activity_of_channels_that_are_spread_over_a_neuron_layer():
    """Behind a flatten, and behind a concatenation, the neurons count other channels."""
    rates = torch.rand(10, dtype=torch.float64)
    wide = FakeNode({"firing_rate": rates})
    other = FakeNode({"firing_rate": torch.tensor([0.25, 0.75], dtype=torch.float64)})
    where = torch.tensor([[4, 5, 6], [7, 8, 9]])
    method = methods.APoZ(end=1)
    got = drop_score(method, view(channels=2, nodes=[wide], node_channels=[where]))
    close(got, [sum(rates[4:7].tolist()) / 3, sum(rates[7:10].tolist()) / 3])
    both = drop_score(method, view(channels=2, nodes=[wide, other], node_channels=[where, None]))
    close(both, average(got.tolist(), [0.25, 0.75]))


# ---- gamma and filters ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [methods.NetworkSlimming, methods.CriticalityChannels])
def test_slimming_scores_gamma(kind):
    seen = view()
    close(drop_score(kind(end=1), seen), [abs(g) for g in seen.norm.weight.tolist()])
    assert drop_score(kind(end=1), view(norm=False)) is None
    assert drop_score(kind(end=1), with_norm(nn.BatchNorm2d(C, affine=False))) is None


def with_norm(norm, **more):
    return dataclasses.replace(view(), norm=norm, **more)


def test_slimming_scores_its_channels_of_a_shared_norm():
    norm = nn.BatchNorm2d(10).double()
    norm.weight.data.normal_()
    mine = torch.tensor([9, 1, 2, 5, 4, 3])
    got = drop_score(methods.NetworkSlimming(end=1), with_norm(norm, norm_channels=mine))
    close(got, [abs(norm.weight[i].item()) for i in mine.tolist()])


@pytest.mark.parametrize("kernel", [(3, 3), (1,), ()])
def test_filter_norms(kernel):
    seen = view(kernel=kernel)
    l1 = [sum(abs(w) for w in row) for row in filters(seen)]
    l2 = [math.sqrt(sum(w * w for w in row)) for row in filters(seen)]
    close(drop_score(methods.FilterNorm(end=1), seen), l1)
    close(drop_score(methods.FilterNorm(end=1, p=2), seen), l2)
    close(drop_score(greg(), seen), [total / len(filters(seen)[0]) for total in l1])


def test_random_scores_are_seeded():
    method = methods.RandomChannels(end=1)
    first, again, other = (drop_score(method, view(seed=s)) for s in (1, 1, 2))
    assert first.shape == (C,)
    assert first.equal(again)
    assert not first.equal(other)


# ---- Taylor --------------------------------------------------------------------------------------


def gate_by_hand(seen):
    """Derivative of the loss by a factor on every channel, behind the norm or the layer."""
    if seen.norm is not None:
        gamma, beta = seen.norm.weight, seen.norm.bias
        return [
            gamma.grad[c].item() * gamma[c].item() + beta.grad[c].item() * beta[c].item()
            for c in range(len(gamma))
        ]
    gates = []
    for c, row in enumerate(filters(seen)):
        grads = seen.grad[c].flatten().tolist()
        gate = sum(g * w for g, w in zip(grads, row, strict=True))
        if seen.bias is not None:
            gate += seen.bias_grad[c].item() * seen.bias[c].item()
        gates.append(gate)
    return gates


LAYERS = {"norm": {}, "bare": {"norm": False}, "bias": {"norm": False, "bias": True}}


@pytest.mark.parametrize("kind", LAYERS)
def test_taylor_is_the_mean_square_of_the_gate_gradient(kind):
    method = methods.TaylorChannels(end=8)
    seen = [view(seed=s, **LAYERS[kind]) for s in (1, 2, 3)]
    state = sums(method, seen[0])
    for one in seen:
        one = dataclasses.replace(one, state=state)
        observe(method, one)
    squares = [[g * g for g in gate_by_hand(one)] for one in seen]
    close(drop_score(method, one), average(*squares))
    assert drop_score(method, one).equal(drop_score(method, one))
    forget(method, one)
    observe(method, dataclasses.replace(seen[1], state=state))
    close(drop_score(method, one), squares[1])


@pytest.mark.parametrize("kind", LAYERS)
def test_taylor_is_what_the_loss_changes_by(kind):
    """The gate's derivative, from a real forward with a factor of 1 on every channel."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, C, 3, bias=kind == "bias").double()
    norm = nn.BatchNorm2d(C).double() if kind == "norm" else None
    gate = torch.ones(C, dtype=torch.float64, requires_grad=True)
    y = conv(torch.randn(5, 4, 8, 8, dtype=torch.float64))
    if norm is not None:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        y = norm(y)
    (gate.view(1, -1, 1, 1) * y).tanh().pow(2).sum().backward()
    seen = dataclasses.replace(
        view(norm=False),
        weight=conv.weight.detach(),
        grad=conv.weight.grad,
        norm=norm,
        bias=None if conv.bias is None else conv.bias.detach(),
        bias_grad=None if conv.bias is None else conv.bias.grad,
    )
    method = methods.TaylorChannels(end=8)
    ready(method, seen)
    torch.testing.assert_close(drop_score(method, seen), gate.grad.square(), rtol=1e-9, atol=1e-12)
    if norm is None:  # growth: exact because the output is linear in filter and bias
        grown = grow_score(methods.FilterNorm(end=8, regrow=0.2), seen)
        torch.testing.assert_close(grown, gate.grad.abs(), rtol=1e-9, atol=1e-12)


def test_taylor_without_gradients():
    method = methods.TaylorChannels(end=8)
    for changed in ({"norm": False}, {}):
        seen = ready(method, dataclasses.replace(view(**changed), grad=None))
        if seen.norm is not None:
            seen.norm.zero_grad()
        observe(method, seen)  # adds nothing
        with pytest.raises(RuntimeError, match=r"Expected gradients of layer 'conv'.*backward"):
            drop_score(method, seen)
    plain = ready(method, with_norm(nn.BatchNorm2d(C, affine=False)))
    observe(method, plain)
    assert drop_score(method, plain) is None


def test_taylor_with_half_gradients_does_not_overflow():
    """Squares are taken in float64: 300 * 300 squared is no float16."""
    seen = view(norm=False, dtype=torch.float16)
    seen.weight.fill_(300.0)
    seen.grad.fill_(300.0)
    method = methods.TaylorChannels(end=8)
    ready(method, seen)
    observe(method, seen)
    close(drop_score(method, seen), [(36 * 9e4) ** 2] * C)


# ---- growth --------------------------------------------------------------------------------------

REGROWING = {name: row.make(regrow=0.2, growth="gradient") for name, row in CHANNEL_METHODS.items()}


@pytest.mark.parametrize("name", CHANNEL_METHODS)
def test_growth_scores(name):
    """All methods grow by any of the four scores, in the same way."""
    row = CHANNEL_METHODS[name]
    a, b = node(seed=5, peak=0.5), node(seed=6, peak=2.0)

    def grown(growth, seen):
        method = row.make(regrow=0.2, growth=growth)
        return grow_score(method, ready(method, seen))

    seen = view(nodes=[a, b])
    close(grown("gradient", seen), [abs(g) for g in seen.norm.weight.grad.tolist()])
    bare = view(norm=False)
    gates = [
        abs(sum(g * w for g, w in zip(gs, ws, strict=True)))
        for gs, ws in zip([g.flatten().tolist() for g in bare.grad], filters(bare), strict=True)
    ]
    close(grown("gradient", bare), gates)
    kind = "criticality_mean" if name.endswith("-mean") else "criticality_max"
    critical = [[v / n.peak for v in means(n, kind)] for n in (a, b)]
    close(grown("criticality", view(nodes=[a, b])), average(*critical))
    assert grown("criticality", view(nodes=[])) is None
    assert grown("score", seen).equal(seen.state["awake"])
    first, again, other = (grown("random", view(seed=s)) for s in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    assert grow_score(row.make(regrow=0.0), seen) is None


def test_random_growth_is_independent_of_random_pruning():
    method = methods.RandomChannels(end=8, regrow=0.2, growth="random")
    seen = view()
    assert not drop_score(method, seen).equal(grow_score(method, seen))


@pytest.mark.parametrize("name", REGROWING)
def test_growth_without_a_gradient_names_the_layer(name):
    method = REGROWING[name]
    seen = view()
    seen.norm.zero_grad()
    with pytest.raises(RuntimeError, match="gradient of the norm behind layer 'conv'"):
        grow_score(method, seen)
    with pytest.raises(RuntimeError, match="gradient of layer 'conv'"):
        grow_score(method, dataclasses.replace(view(norm=False), grad=None))


# ---- penalties -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "touched"), [((3, 3), True), ((1, 1), False), ((5, 3), False), ((), False)]
)
def test_sca_penalizes_3x3_convolutions(kernel, touched):
    seen = view(kernel=kernel)
    seen.weight.view(-1)[::5] = 0.0
    before = seen.grad.clone()
    penalize(sca(l1=0.25), seen)
    weights, grads = seen.weight.flatten().tolist(), before.flatten().tolist()
    expected = [
        g + touched * 0.25 * ((w > 0) - (w < 0)) for g, w in zip(grads, weights, strict=True)
    ]
    close(seen.grad.flatten(), expected)


def test_sca_l1_is_the_papers():
    assert sca().l1 == 3e-5
    penalize(sca(), dataclasses.replace(view(), grad=None))  # nothing to add to


@pytest.mark.parametrize("kind", [methods.NetworkSlimming, methods.CriticalityChannels])
@pytest.mark.parametrize(
    ("step", "on"), [(2, False), (3, True), (9, True), (10, False), (11, False)]
)
def test_slimming_penalizes_gamma_until_the_update(kind, step, on):
    """Begin 2, end 10: the step of the update, which comes before penalties, is free already."""
    seen = view(step=step)
    gamma = seen.norm.weight
    gamma.data[0] = 0.0
    before, weights = gamma.grad.clone(), seen.grad.clone()
    penalize(kind(begin=2, end=10, l1=0.5), seen)
    expected = [
        g + on * 0.5 * ((w > 0) - (w < 0))
        for g, w in zip(before.tolist(), gamma.tolist(), strict=True)
    ]
    close(gamma.grad, expected)
    assert seen.grad.equal(weights)


def test_slimming_penalizes_its_own_channels_of_a_norm():
    """A norm behind a concatenation: two layers add to it, each for its own channels."""
    norm = nn.BatchNorm2d(10).double()
    norm.weight.data.normal_()
    norm.weight.grad = torch.zeros(10, dtype=torch.float64)
    method = methods.NetworkSlimming(end=10, l1=0.5)
    penalize(method, with_norm(norm, norm_channels=torch.tensor([7, 1, 3, 5, 9, 8])))
    sign = norm.weight.detach().sign()
    sign[[0, 2, 4, 6]] = 0
    assert norm.weight.grad.equal(0.5 * sign)


def test_slimming_leaves_alone_what_has_no_gamma():
    method = methods.NetworkSlimming(end=10)
    penalize(method, view(norm=False))
    penalize(method, with_norm(nn.BatchNorm2d(C, affine=False)))
    penalize(method, with_norm(nn.BatchNorm2d(C)))  # no gradient yet
    by_hand = view()
    before = by_hand.norm.weight.grad.clone()
    penalize(methods.NetworkSlimming(), by_hand)  # end=None: masks are the caller's
    assert by_hand.norm.weight.grad.equal(before)
