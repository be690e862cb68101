"""Half precision: spikes in the type of the input, everything else in float32."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, surrogate
from torch import nn

from sj_prune.neurons import STATISTICS, RecordingLIFNode
from tests.support.neuron_cases import RECORDING, SURROGATES, current, settings

HALVES = (torch.float16, torch.bfloat16)
FUNCTIONS = {"known": "ATan", "unknown": "S2NN"}


def twins(kind, name, **kwargs):
    kwargs = settings(kind, surrogate_function=SURROGATES[name](), store_v_seq=True, **kwargs)
    return RECORDING[kind](**kwargs), RECORDING[kind](**kwargs)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_equals_the_float32_node(kind, name, dtype):
    half, full = twins(kind, name)
    losses, leaves = [0.0, 0.0], [[], []]
    for seed in range(2):  # the float32 state is carried over, not rounded in between
        x = current(4, 3, 5, dtype=dtype, seed=seed)
        weights = torch.randn(4, 3, 5).to(dtype).float()
        for i, (node, leaf) in enumerate(((half, x.clone()), (full, x.float()))):
            leaf.requires_grad_()
            losses[i] = losses[i] + (node(leaf).float() * weights).sum() + node.v.sum()
            leaves[i].append(leaf)
        spikes = half(x.detach())
        assert spikes.dtype == dtype
        assert torch.equal(spikes.float(), full(x.detach().float()))
        assert half.v.dtype == half.v_seq.dtype == torch.float32
        assert torch.equal(half.v, full.v)
        assert torch.equal(half.v_seq, full.v_seq)
    for name in STATISTICS:
        assert torch.equal(half.activity.mean(name), full.activity.mean(name))
    for loss in losses:
        loss.backward()
    for a, b in zip(*leaves, strict=True):
        assert a.grad.dtype == dtype
        assert torch.equal(a.grad, b.grad.to(dtype))  # rounded once, at the end
    if kind == "PLIF":
        assert half.w.grad.dtype == torch.float32
        assert torch.equal(half.w.grad, full.w.grad)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_module_of_half_type(dtype):
    half, full = twins("PLIF", "ATan")
    with torch.no_grad():
        full.w.copy_(half.w.to(dtype))
    half.to(dtype)
    x = current(4, 3, 5, dtype=dtype)
    for node, leaf in ((half, x.clone()), (full, x.float())):
        node(leaf.requires_grad_()).sum().backward()
    assert half.w.grad.dtype == dtype
    assert torch.equal(half.w.grad, full.w.grad.to(dtype))
    assert torch.equal(half.v, full.v)
    assert half.activity.sums.dtype == torch.float64


def test_a_state_that_was_converted_comes_back_to_the_computing_type():
    node = RecordingLIFNode(step_mode="m")
    x = current(4, 3, 5)
    node(x)
    node.half()
    assert node.v.dtype == torch.float16
    assert node(x).dtype == torch.float32
    assert node.v.dtype == torch.float32
    assert node(x.double()).dtype == torch.float64
    assert node.v.dtype == torch.float64


def test_float64_is_computed_in_float64():
    node = RecordingLIFNode(step_mode="m", tau=3.0, v_threshold=10.0)
    x = torch.full((1, 1, 1), 1.0 / 3.0, dtype=torch.float64)
    node(x)
    assert node.v.item() == pytest.approx(1.0 / 9.0, abs=1e-16)
    assert node.activity.mean("abs_charge").item() == pytest.approx(1.0 / 9.0, abs=1e-16)


def test_autocast():
    conv = layer.Conv2d(2, 4, 3, padding=1, step_mode="m")
    norm = layer.BatchNorm2d(4, step_mode="m")
    node = RecordingLIFNode(step_mode="m", surrogate_function=surrogate.ATan())
    net = nn.Sequential(conv, norm, node)
    x = current(3, 2, 2, 6, 6)
    seen = []
    node.register_forward_hook(lambda module, args, out: seen.append((args[0].detach(), out)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(x).float().square().mean()
    loss.backward()
    current_in, spikes = seen[0]
    assert current_in.dtype == spikes.dtype == torch.bfloat16
    assert node.v.dtype == torch.float32
    alone = RecordingLIFNode(step_mode="m", surrogate_function=surrogate.ATan())
    assert torch.equal(alone(current_in.float()), spikes.float())
    for name in STATISTICS:
        assert torch.equal(alone.activity.mean(name), node.activity.mean(name))
    assert conv.weight.grad.dtype == torch.float32
    assert conv.weight.grad.abs().sum() > 0
    functional.reset_net(net)
    assert node.activity.count == 2
