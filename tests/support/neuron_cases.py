"""Pairs of stock and recording nodes, and what they share, for the tests of the neurons."""

import importlib.util

import torch
from spikingjelly.activation_based import neuron, surrogate

from sj_prune.neurons import RecordingIFNode, RecordingLIFNode, RecordingParametricLIFNode

# 0.0.0.0.14; releases since 2.0.0 have no clock_driven package.
LEGACY = importlib.util.find_spec("spikingjelly.clock_driven") is not None

STOCK = {"IF": neuron.IFNode, "LIF": neuron.LIFNode, "PLIF": neuron.ParametricLIFNode}
RECORDING = {
    "IF": RecordingIFNode,
    "LIF": RecordingLIFNode,
    "PLIF": RecordingParametricLIFNode,
}
# Neither a power of two, so that a division and a product differ in the last bits.
TAU = 1.7

# The whole list of both releases. PoissonPass draws spikes with probability u: it cannot
# take the negative u of a neuron below its threshold, on any node.
_NAMES = [
    "PiecewiseQuadratic",
    "PiecewiseExp",
    "Sigmoid",
    "SoftSign",
    "SuperSpike",
    "ATan",
    "NonzeroSignLogAbs",
    "Erf",
    "PiecewiseLeakyReLU",
    "SquarewaveFourierSeries",
    "S2NN",
    "QPseudoSpike",
    "LeakyKReLU",
    "FakeNumericalGradient",
    "LogTailedReLU",
    "DeterministicPass",
    "Rect",
]
SURROGATES = {name: getattr(surrogate, name) for name in _NAMES if hasattr(surrogate, name)}
if hasattr(surrogate, "MultiLevelSpikeCount"):
    SURROGATES["MultiLevelSpikeCount"] = lambda: surrogate.MultiLevelSpikeCount(2)
if LEGACY:
    # The backward pass of this one raises in that release (it packs its arguments into a tuple).
    del SURROGATES["NonzeroSignLogAbs"]


def settings(kind, *, decay_input=True, **kwargs):
    """Return constructor arguments; IF has neither a time constant nor input decay."""
    if kind == "LIF":
        kwargs |= {"tau": TAU, "decay_input": decay_input}
    elif kind == "PLIF":
        kwargs |= {"init_tau": TAU, "decay_input": decay_input}
    return {"step_mode": "m", **kwargs}


def pair(kind, **kwargs):
    """Return a stock node and a recording node of the same settings."""
    kwargs = settings(kind, **kwargs)
    return STOCK[kind](**kwargs), RECORDING[kind](**kwargs)


def same_equation(kind, decay_input, v_reset, training):
    """Tell whether the installed release charges with the very operations that ours does.

    0.0.0.0.14 computes V (1 - 1/tau) + x, and not V - V / tau + x, without input decay when V_reset
    is None or 0; its scripted LIF of eval mode does so for None alone.
    """
    if not LEGACY or kind == "IF" or decay_input:
        return True
    if kind == "LIF" and not training:
        return v_reset is not None
    return v_reset not in (None, 0.0)


def current(*shape, dtype=torch.float32, seed=0, low=-0.5, high=2.5):
    """Return an input that makes about a third of the neurons fire."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low
    return x.to(dtype)


def assert_near(ours, theirs, tolerance):
    """Compare gradients relative to the largest of them: single ones may cancel to nothing."""
    assert (ours is None) == (theirs is None)
    if theirs is not None:
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=tolerance * max(scale, 1e-12))


def brute_force(kind, x_seq, *, v_reset=0.0, decay_input=True, surrogate_function, v=None):
    """Return S, V, H and g' of every step ``[T, N, *]``, all in float64 and with plain loops.

    The stock node makes S and V one step at a time; H follows from its V by the charge equation,
    and g' from autograd through the host's function.
    """
    x_seq = x_seq.double()
    kwargs = settings(kind, decay_input=decay_input, v_reset=v_reset)
    node = STOCK[kind](**kwargs, surrogate_function=surrogate_function).double()
    node.step_mode = "s"
    rest = 0.0 if v_reset is None else v_reset
    v = torch.full_like(x_seq[0], rest) if v is None else v.double()
    node.v = v
    spikes, potentials, charges, slopes = [], [], [], []
    for x in x_seq:
        if kind == "IF":
            h = v + x
        elif decay_input:
            h = v + (x - (v - rest)) / TAU
        else:
            h = v - (v - rest) / TAU + x
        s = node(x).detach()
        v = node.v.detach()
        u = (h - node.v_threshold).requires_grad_()
        (g,) = torch.autograd.grad(surrogate_function(u).sum(), u)
        for steps, value in ((spikes, s), (potentials, v), (charges, h), (slopes, g)):
            steps.append(value)
    return tuple(torch.stack(steps) for steps in (spikes, potentials, charges, slopes))
