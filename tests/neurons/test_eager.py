"""The way past torch's dispatcher in plain eager mode, against the custom op; when it is taken."""

import pytest
import torch
from spikingjelly.activation_based import functional
from torch._subclasses.fake_tensor import FakeTensorMode

from sj_prune.engines import cupy_engine
from sj_prune.neurons import (
    RecordingIFNode,
    RecordingLIFNode,
    RecordingParametricLIFNode,
    activity,
    op,
)
from sj_prune.neurons.activity import Activity
from tests.support.cuda_shim import host  # noqa: F401 (a fixture)
from tests.support.neuron_cases import current

NODES = [RecordingIFNode, RecordingLIFNode, RecordingParametricLIFNode]


def run(node_class, plain, monkeypatch, **settings):
    """Return spikes, potentials, gradients and statistics of two calls that share their state."""
    with monkeypatch.context() as patch:
        taken, original = [], op._Eager.apply
        patch.setattr(op._Eager, "apply", lambda *a: taken.append(1) or original(*a))
        if not plain:
            patch.setattr(op, "_plain", lambda x: False)
        node = node_class(step_mode="m", **settings)
        xs = [current(4, 3, 2, 5, 6, seed=seed).requires_grad_() for seed in (1, 2)]
        outputs = [node(x) for x in xs]
        loss = sum((y * torch.arange(y.numel()).view(y.shape)).sum() for y in outputs)
        (loss + node.v.sum() + (node.v_seq.sum() if node.store_v_seq else 0.0)).backward()
        assert len(taken) == (2 if plain else 0)
    grads = [t.grad for t in (*xs, *node.parameters())]
    return [*outputs, node.v, *grads, node.activity.sums, node.activity.samples]


@pytest.mark.parametrize("store_v_seq", [False, True])
@pytest.mark.parametrize("node_class", NODES)
def test_equals_the_custom_op(node_class, store_v_seq, monkeypatch):
    found, expected = (
        run(node_class, plain, monkeypatch, store_v_seq=store_v_seq) for plain in (True, False)
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_watching_mode_sees_the_custom_op(monkeypatch):
    """Under a fake-tensor mode nothing may be computed: the op has a fake implementation."""
    monkeypatch.setattr(op, "choose", lambda *_: pytest.fail("an engine was called"))
    with FakeTensorMode() as mode:
        node = RecordingLIFNode(step_mode="m")
        x = mode.from_tensor(torch.rand(4, 3, 2, 5))
        assert node(x).shape == (4, 3, 2, 5)
    functional.reset_net(node)


def test_a_transform_that_maps_over_samples_sees_the_custom_op():
    node = RecordingLIFNode(step_mode="m")
    node.recording = False
    xs = torch.stack([current(4, 3, 2, 5), current(4, 3, 2, 5, seed=1)])

    def run_once(x):
        node.reset()
        return node(x)

    mapped = torch.vmap(run_once)(xs)
    for found, x in zip(mapped, xs, strict=True):
        assert torch.equal(found, run_once(x))


def test_forward_mode_is_refused_and_not_answered_with_zeros():
    """The host's surrogates have no rule for it; torch takes that of a custom op as zero."""
    x = current(4, 3, 2, 5)
    for carried in (False, True):
        node = RecordingLIFNode(step_mode="m")
        node.recording = False
        if carried:  # the tangent comes in through the state alone
            node.v = torch.zeros(3, 2, 5)

        def run_once(value, node=node, carried=carried):
            if carried:
                node.v = value[0]
                return node(x)
            return node(value)

        with pytest.raises(NotImplementedError, match=r"reverse mode.*forward mode: use"):
            torch.func.jvp(run_once, (x,), (torch.ones_like(x),))


def test_statistics_of_an_overflowed_sample_are_left_out():
    """The short way adds finite batches; one that is not goes the long way, sample by sample."""
    partials = torch.rand(5, 3, 5, generator=torch.Generator().manual_seed(0))
    activity = Activity()
    activity.update(partials)
    for bad in (torch.inf, torch.nan):
        broken = partials.clone()
        broken[2, 1, 4] = bad
        activity.update(broken)
    kept = partials[[0, 1, 3, 4]].double().sum(0)
    torch.testing.assert_close(activity.sums, partials.double().sum(0) + 2 * kept)
    assert activity.count == 13


@pytest.mark.parametrize("name", ["v_threshold", "v_reset"])
def test_a_setting_may_change_in_place(name, host, monkeypatch):  # noqa: F811
    """A tensor of it is the number that it is at the call, on the CUDA engine, too."""
    monkeypatch.setattr(op, "choose", lambda *_: cupy_engine)
    node, x = RecordingLIFNode(step_mode="m", v_reset=-0.1), current(4, 3, 2, 5, 6)
    setattr(node, name, torch.tensor(1.0))
    node(x)
    getattr(node, name).fill_(0.4)
    node.reset()
    plain = RecordingLIFNode(step_mode="m", v_reset=-0.1)
    setattr(plain, name, getattr(node, name).item())
    assert torch.equal(node(x), plain(x))


@pytest.mark.parametrize("served", [True, False])
def test_statistics_under_a_transform(served, monkeypatch):
    """Its tensors have no memory that a kernel could read."""
    monkeypatch.setattr(activity, "serves", lambda partials: served)
    node = RecordingLIFNode(step_mode="m", surrogate_function=lambda u: u.sigmoid())
    torch.func.grad(lambda x: node(x).sum())(current(4, 3, 2, 5))
    assert node.activity.count == 3
