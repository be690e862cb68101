"""`trace` keeps H and g' of every step."""

import pytest
import torch
from spikingjelly.activation_based import functional, surrogate

from sj_prune.neurons import RecordingLIFNode
from tests.support.neuron_cases import RECORDING, SURROGATES, brute_force, current, settings


@pytest.mark.parametrize("name", SURROGATES)
def test_sequences_of_every_surrogate(name):
    function = SURROGATES[name]()
    node = RecordingLIFNode(**settings("LIF", surrogate_function=function))
    node.trace = True
    x = current(4, 3, 2, 5, dtype=torch.float64)
    spikes = node(x)
    s, _, h, g = brute_force("LIF", x, surrogate_function=function)
    assert torch.equal(spikes, s)
    torch.testing.assert_close(node.h_seq, h, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(node.g_seq, g, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
@pytest.mark.parametrize("function", [surrogate.ATan(), surrogate.S2NN()], ids=["known", "unknown"])
def test_sequences_of_every_equation(kind, v_reset, decay_input, function):
    kwargs = {"v_reset": v_reset, "decay_input": decay_input, "surrogate_function": function}
    node = RECORDING[kind](**settings(kind, **kwargs))
    node.trace = True
    x = current(4, 3, 5)
    node(x.requires_grad_())
    *_, h, g = brute_force(kind, x.detach(), **kwargs)
    for ours, theirs in ((node.h_seq, h), (node.g_seq, g)):
        assert ours.dtype == torch.float32
        assert not ours.requires_grad
        # PLIF's sigmoid(w) is rounded to float32 here.
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_it_needs_no_recording_and_works_in_eval_and_inference():
    for function in (surrogate.ATan(), surrogate.S2NN()):
        node = RecordingLIFNode(step_mode="m", surrogate_function=function)
        x = current(4, 3, 2)
        node.trace, node.recording = True, False
        node(x)
        h, g = node.h_seq, node.g_seq
        functional.reset_net(node)
        node.eval()
        with torch.inference_mode():
            node(x)
        assert torch.equal(node.h_seq, h)
        assert torch.equal(node.g_seq, g)
        assert node.activity.count == 0


def test_off_by_default_and_costs_no_result():
    node, traced = RecordingLIFNode(step_mode="m"), RecordingLIFNode(step_mode="m")
    traced.trace = True
    x = current(4, 3, 2)
    assert torch.equal(node(x), traced(x))
    assert node.h_seq is None
    assert node.g_seq is None
    assert traced.h_seq.shape == x.shape


@pytest.mark.parametrize("function", [surrogate.ATan(), surrogate.S2NN()], ids=["known", "unknown"])
def test_gradients_are_those_without_it(function):
    gradients = []
    for trace in (False, True):
        node = RecordingLIFNode(step_mode="m", surrogate_function=function)
        node.trace = trace
        x = current(4, 3, 2).requires_grad_()
        node(x).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
