"""The carried potential, grad modes and input errors."""

import pytest
import torch
from spikingjelly.activation_based import functional, surrogate

from sj_prune.neurons import STATISTICS, Activity, RecordingLIFNode, nodes
from tests.support.neuron_cases import (
    LEGACY,
    RECORDING,
    STOCK,
    assert_near,
    current,
    pair,
    settings,
)

FUNCTIONS = [surrogate.ATan(), surrogate.S2NN()]
MODES = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
known_or_not = pytest.mark.parametrize("function", FUNCTIONS, ids=["known", "unknown"])
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@known_or_not
@every_mode
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_without_gradients_the_numbers_are_the_same(kind, mode, function):
    kwargs = settings(kind, surrogate_function=function, store_v_seq=True)
    free, bound, stock = RECORDING[kind](**kwargs), RECORDING[kind](**kwargs), STOCK[kind](**kwargs)
    x = current(4, 3, 2, 5)
    spikes = free(x.clone().requires_grad_())
    assert spikes.requires_grad
    with mode():
        for _ in range(2):  # the second one adds to what the first one allocated
            functional.reset_net(bound)
            quiet = bound(x)
        expected = stock(x)
    assert not quiet.requires_grad
    assert not bound.v.requires_grad
    assert torch.equal(quiet, spikes)
    assert torch.equal(quiet, expected)
    assert torch.equal(bound.v, free.v)
    assert torch.equal(bound.v_seq, free.v_seq)
    assert bound.activity.count == 6
    for name in STATISTICS:
        torch.testing.assert_close(bound.activity.mean(name), free.activity.mean(name))


@known_or_not
@every_mode
@pytest.mark.parametrize("channel_dim", [2, -1])
def test_training_goes_on_after_a_pass_without_gradients(mode, function, channel_dim):
    """What inference mode made may not be saved for a backward pass, nor added to in place."""
    stock, node = pair("LIF", surrogate_function=function)
    node.channel_dim = channel_dim
    gradients = []
    for module in (stock, node):
        with mode():
            module(current(4, 3, 2, 2))
        x = current(4, 3, 2, 2, seed=1).requires_grad_()
        module(x).sum().backward()  # from the carried state: no reset in between
        gradients.append(x.grad)
    assert_near(gradients[1], gradients[0], 1e-5)
    assert node.activity.count == 6
    other = Activity()
    with mode():
        other.merge(node.activity)
    other.merge(node.activity)
    assert other.count == 12


@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_another_batch_size_restarts_at_rest(kind, v_reset):
    stock, node = pair(kind, v_reset=v_reset, surrogate_function=surrogate.ATan())
    for shape in ((4, 3, 5), (4, 2, 5), (2, 2, 5, 3), (4, 2, 5)):
        x = current(*shape, seed=sum(shape))
        if LEGACY:
            functional.reset_net(stock)  # that release fails on a changed shape
        assert torch.equal(node.eval()(x), stock(x))
        assert node.v.shape == shape[1:]


def test_the_restart_is_at_the_reset_potential():
    node = RecordingLIFNode(step_mode="m", v_reset=-0.5, tau=2.0)
    node(current(2, 3, 4))
    node(torch.zeros(1, 2, 4))
    # V + (0 - (V - V_reset)) / tau from V = V_reset.
    torch.testing.assert_close(node.v, torch.full((2, 4), -0.5))
    node.store_v_seq = True
    functional.reset_net(node)
    assert node.v == -0.5
    assert node.v_seq is None


def test_a_float_state_set_by_hand():
    for module in pair("LIF", surrogate_function=surrogate.ATan()):
        module.v = 0.9
        assert module(torch.full((1, 2, 3), 1.2)).sum() == 6.0


def test_gradients_flow_through_the_carried_state_until_detached():
    node = RecordingLIFNode(step_mode="m")
    first, second = (current(3, 2, 4, seed=i).requires_grad_() for i in range(2))
    node(first)
    node(second).sum().backward()
    assert first.grad.abs().sum() > 0
    first.grad = None
    functional.reset_net(node)
    node(first)
    functional.detach_net(node)
    node(second).sum().backward()
    assert first.grad is None


@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0), (4, 2, 3, 0, 5)], ids=str)
def test_empty_input(kind, shape):
    node = RECORDING[kind](step_mode="m")
    with pytest.raises(ValueError, match=f"non-empty x_seq for Recording.*{shape[0]}, {shape[1]}"):
        node(torch.zeros(shape))
    assert node.activity.count == 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_input_that_is_no_floating_point(dtype):
    with pytest.raises(TypeError, match=f"RecordingLIFNode to be floating point but got {dtype}"):
        RecordingLIFNode(step_mode="m")(torch.zeros(4, 2, 3, dtype=dtype))


def test_w_that_is_not_one_number():
    """One for each channel would be broadcast by the host; engines read one."""
    node = RECORDING["PLIF"](step_mode="m")
    node.w = torch.nn.Parameter(torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"Expected w of .* one number .* \(2, 1\)"):
        node(torch.zeros(4, 3, 2, 5))


def test_w_follows_the_input_to_its_device(monkeypatch):
    """The host multiplies with a number on the CPU everywhere; a kernel could not read it."""
    node, seen = RECORDING["PLIF"](step_mode="m"), []
    monkeypatch.setattr(nodes, "multi_step", lambda x, v, w, *_, **__: seen.extend((x, v, w)))
    monkeypatch.setattr(type(node), "_keep", lambda self, out: out)
    node.recording = False
    node(torch.zeros(4, 3, 2, device="meta"))
    assert {t.device.type for t in seen} == {"meta"}
    assert seen[2].requires_grad


@pytest.mark.parametrize("shape", [(), (4,)], ids=str)
def test_input_without_time_or_batch(shape):
    with pytest.raises(ValueError, match=r"as \[T, N, \*\] but got shape .*step_mode"):
        RecordingLIFNode(step_mode="m")(torch.zeros(shape))


def test_a_failed_call_leaves_the_node_as_it_was():
    node = RecordingLIFNode(step_mode="m")
    node(current(4, 3, 2))
    v = node.v
    with pytest.raises(ValueError, match="non-empty"):
        node(torch.zeros(0, 3, 2))
    assert node.v is v
    assert node.activity.count == 3


def test_a_surrogate_without_any_gradient():
    """A plain step cannot be trained, but it runs on the host; its derivative is 0."""
    stock, node = pair("IF", surrogate_function=lambda u: (u >= 0).to(u))
    x = current(4, 3, 2)
    assert torch.equal(node(x), stock(x))
    assert torch.equal(node.activity.mean("criticality_max"), torch.zeros(2, dtype=torch.float64))
    assert node.activity.mean("firing_rate").sum() > 0


def test_a_stochastic_surrogate_draws_its_numbers_once():
    """The derivative must belong to the spikes that were sent, and the stream must not shift."""
    calls = []

    def noisy(u):
        calls.append(u.shape)
        return surrogate.ATan()(u + 0.3 * torch.randn_like(u))

    stock, node = pair("LIF", surrogate_function=noisy)
    x = current(4, 3, 2).requires_grad_()
    found = []
    for module in (stock, node):
        torch.manual_seed(5)
        found.append(module(x))
    assert torch.equal(*found)
    assert len(calls) == 8
    assert node.activity.mean("criticality_mean").min() > 0
