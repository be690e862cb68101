"""A surrogate and a statistic of one's own: a row of a table each, and nothing else to touch."""

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from sj_prune.engines import build
from sj_prune.methods import Growth, reads
from sj_prune.neurons import RecordingLIFNode, Tanh, observe
from sj_prune.neurons.statistics import TABLE, Statistic, bits
from sj_prune.neurons.surrogates import KNOWN, ClosedForm, lookup
from tests.support.cuda_shim import host  # noqa: F401 (a fixture)
from tests.support.engine_cases import Call, Case, assert_backward, assert_forward
from tests.support.neuron_cases import current
from tests.support.own_plan import own_plan
from tests.support.pruning_cases import assert_masked, train, wrapped

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")


class Bell(nn.Module):
    """``g'(u) = a / (1 + (a u)^2)^2``."""

    def __init__(self, alpha=2.0):
        super().__init__()
        self.alpha, self.spiking = alpha, True

    def forward(self, u):
        z = self.alpha * u
        smooth = (z / (1 + z * z) + z.atan()) / 2
        return smooth + ((u >= 0).to(u) - smooth).detach()


@pytest.fixture
def bell(monkeypatch):
    form = ClosedForm(
        lambda u, a: a / (1 + (a * u) ** 2) ** 2,
        "const A z = fused(a * u, a * u, A(1)); return ratio(a, z * z);",
    )
    monkeypatch.setitem(KNOWN, Bell, form)


@pytest.fixture
def own(monkeypatch):
    """Two statistics: a mean, and a maximum that may be negative."""
    rows = {
        "square_charge": Statistic("h", torch.square, "h * h"),
        "highest_potential": Statistic("v", None, "v", maximum=True),
    }
    for name, row in rows.items():
        monkeypatch.setitem(TABLE, name, row)
    return tuple(rows)


def traced(node, x):
    """Return V after reset, H and g' of every step, in double precision."""
    node.store_v_seq = node.trace = True
    node(x)
    return node.v_seq.double(), node.h_seq.double(), node.g_seq.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_own_surrogate_is_fused(bell, monkeypatch, dtype):
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "cpp")  # refuses what is not
    stock, ours = (
        cls(tau=1.7, step_mode="m", surrogate_function=Bell()).to(dtype)
        for cls in (neuron.LIFNode, RecordingLIFNode)
    )
    leaves = [current(4, 2, 3, 5, 7, dtype=dtype).requires_grad_() for _ in range(2)]
    weights = torch.randn(4, 2, 3, 5, 7, dtype=dtype)
    spikes = [node(leaf) for node, leaf in zip((stock, ours), leaves, strict=True)]
    assert torch.equal(*spikes)
    assert spikes[0].any()
    exact, found = (
        torch.autograd.grad((s * weights).sum(), leaf)[0]
        for s, leaf in zip(spikes, leaves, strict=True)
    )
    torch.testing.assert_close(found, exact, rtol=2e-5, atol=2e-6)
    ours.reset()
    ours.activity.clear()
    _, h, g = traced(ours, leaves[0].detach())
    torch.testing.assert_close(g, 2 / (1 + 4 * (h - 1) ** 2) ** 2, rtol=1e-5, atol=1e-6)
    criticality = g.mean(0).flatten(2).amax(-1).mean(0)
    torch.testing.assert_close(ours.activity.mean("criticality_max"), criticality)
    assert ours.peak == pytest.approx(2.0)


def test_own_surrogate_in_the_cuda_source(bell, host):  # noqa: F811
    call = Call(Case(surrogate=lookup(Bell()), store=3))
    assert_forward(call)
    assert_backward(call)


def expected(v, h):
    """Return both statistics ``[C]`` of V and H ``[T, N, C, *]``."""
    square, potential = (t.mean(0).reshape(*t.shape[1:3], -1) for t in (h.square(), v))
    return square.mean((0, 2)), potential.amax(-1).mean(0)


@pytest.mark.parametrize("shape", [(4, 2, 3, 20, 20), (4, 2, 3, 5, 7), (4, 2, 70)], ids=str)
@pytest.mark.parametrize("engine", ["cpp", "torch"])
def test_own_statistics_are_fused(own, monkeypatch, engine, shape):
    monkeypatch.setenv("SJ_PRUNE_ENGINE", engine)
    node = RecordingLIFNode(v_threshold=-0.3, v_reset=-0.7, step_mode="m")
    assert set(own).isdisjoint(node.statistics), "a new node keeps what comes with the library"
    node.statistics = ("firing_rate", *own)
    v, h, _ = traced(node, current(*shape) - 1.0)
    square, highest = expected(v, h)
    assert (highest < 0).all()
    assert node.activity.mean("firing_rate").any()
    torch.testing.assert_close(node.activity.mean("square_charge"), square)
    torch.testing.assert_close(node.activity.mean("highest_potential"), highest)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_own_statistics_in_the_cuda_source(own, host, layout):  # noqa: F811
    wanted = bits(("criticality_max", *own))
    call = Call(
        Case(statistics=wanted, store=3, v_reset=-0.7, layout=layout, shape=(4, 2, 3, 5, 7))
    )
    call.x.sub_(1.0)
    _, _, partials, v_seq, h_seq, g_seq = call.forward()
    square = h_seq.square().mean(0).flatten(2).mean(-1)
    criticality, potential = (seq.mean(0).flatten(2).amax(-1) for seq in (g_seq, v_seq))
    assert (potential < 0).any()
    torch.testing.assert_close(partials, torch.stack([criticality, square, potential], -1))


@pytest.mark.parametrize("mode", ["m", "s"])
def test_own_statistics_of_an_observed_neuron(own, mode):
    observed = neuron.LIFNode(v_reset=-0.7, step_mode=mode).double()
    (observer,) = observe(observed).values()
    observer.statistics = own
    x = current(4, 2, 3, 5, 7, dtype=torch.float64) - 1.0
    observed(x) if mode == "m" else [observed(x_t) for x_t in x]
    square, highest = expected(*traced(RecordingLIFNode(v_reset=-0.7, step_mode="m"), x)[:2])
    torch.testing.assert_close(observer.activity.mean("square_charge"), square)
    torch.testing.assert_close(observer.activity.mean("highest_potential"), highest)
    assert observer.statistics == own


def test_an_own_statistic_of_what_a_neuron_does_not_show_is_missing(own):
    class Thresholdless(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = Tanh()

        def forward(self, x_seq):
            return self.act(x_seq - 1.0)

    (observer,) = observe(Thresholdless()).values()
    observer.statistics = own
    assert observer.statistics == ("highest_potential",)
    observer.node(current(4, 2, 3))
    observer.close_pass()
    assert set(observer.missing) == {"abs_charge", *own}
    assert observer.missing["square_charge"] == observer.missing["abs_charge"]


def test_a_score_reads_an_own_statistic(own):
    @reads("square_charge")
    def charged(layer):
        if layer.activity is None:
            return None
        return layer.activity.mean("square_charge").view(-1, *[1] * (layer.weight.ndim - 1))

    model, optimizer = wrapped(own_plan(grow=Growth(charged, 0.5)))
    train(model, optimizer, 4, after=lambda step: assert_masked(model, optimizer))
    assert sum(model.history[-1].grown.values()) > 0
    assert {node.statistics for node in model.nodes.values()} == {("square_charge",)}
