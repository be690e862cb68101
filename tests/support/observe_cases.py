"""Neuron equations written a second time, with plain loops in float64, and their statistics.

Each function takes a node and its input ``x [T, N, *]`` and returns lists over time of the spikes,
of `V` after reset (or None), of `H` before it (or None) and of ``u``, what meets the surrogate.
"""

import math

import torch
from spikingjelly.activation_based import base, neuron, surrogate
from torch import nn

from sj_prune.neurons import STATISTICS
from tests.support.neuron_cases import LEGACY


def step(u):
    return (u >= 0.0).double()


def hard_or_soft(h, s, threshold, reset):
    return h - s * threshold if reset is None else (1.0 - s) * h + s * reset


def run(node, x, charge, reset=None, state=0.0, threshold=None):
    """Charge, fire and reset step by step; `charge` returns `H` of an input and a potential."""
    threshold = node.v_threshold if threshold is None else threshold
    reset = reset or (lambda h, s: hard_or_soft(h, s, threshold, node.v_reset))
    v, steps = torch.full_like(x[0], state), []
    for x_t in x:
        h = charge(x_t, v)
        s = step(h - threshold)
        v = reset(h, s)
        steps.append((s, v, h, h - threshold))
    return [list(column) for column in zip(*steps, strict=True)]


def rest(node):
    return 0.0 if node.v_reset is None else node.v_reset


def lif(node, x):
    def charge(x_t, v):
        if node.decay_input:
            return v + (x_t - (v - rest(node))) / node.tau
        return v - (v - rest(node)) / node.tau + x_t

    return run(node, x, charge, state=rest(node))


def klif(node, x):
    k = node.k.item()

    def reset(h, s):
        scaled = h / k if node.scale_reset else h
        threshold = node.v_threshold / k if node.scale_reset else node.v_threshold
        return hard_or_soft(scaled, s, threshold, node.v_reset)

    def charge(x_t, v):
        return (k * (v + (x_t - (v - rest(node))) / node.tau)).clamp_min(0.0)

    return run(node, x, charge, reset, rest(node))


def qif(node, x):
    def charge(x_t, v):
        return v + (x_t + node.a0 * (v - node.v_rest) * (v - node.v_c)) / node.tau

    return run(node, x, charge, state=rest(node))


def eif(node, x):
    def charge(x_t, v):
        swing = node.delta_T * ((v - node.theta_rh) / node.delta_T).exp()
        return v + (x_t + node.v_rest - v + swing) / node.tau

    return run(node, x, charge, state=rest(node))


def clif(node, x):
    m = torch.zeros_like(x[0])

    def charge(x_t, v):
        return v - v / node.tau + x_t

    def reset(h, s):
        nonlocal m
        m = m * torch.sigmoid(h / node.tau) + s
        return h - s * (node.v_threshold + torch.sigmoid(m))

    return run(node, x, charge, reset)


def cuba(node, x):
    c = torch.zeros_like(x[0])

    def charge(x_t, v):
        nonlocal c
        c = c * node.c_decay + x_t
        return v * node.v_decay + c

    return run(node, x, charge)


def ilif(node, x):
    v, steps = torch.zeros_like(x[0]), []
    for x_t in x:
        h = v - v / node.tau + x_t
        s = (h / node.v_threshold).round().clamp(0.0, 4.0)
        v = h - s * node.v_threshold
        steps.append((s, v, h, h / node.v_threshold))
    return [list(column) for column in zip(*steps, strict=True)]


def glif(node, x):
    def gate(parameter):
        return 1.0 / (1.0 + torch.exp(-parameter.detach())).view(-1, 1, 1)

    alpha, beta, gamma = gate(node.alpha), gate(node.beta), gate(node.gamma)
    tau, threshold = gate(node.tau), gate(node.v_threshold)
    v, s, steps = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for t, x_t in enumerate(x):
        keep = 1.0 - alpha * (1.0 - tau)
        drop = (1.0 - gamma) * gate(node.v_subreset) * s + keep * v * gamma * s
        current = x_t * (1.0 - beta * (1.0 - gate(node.conduct[t])))
        v = keep * v - (1.0 - alpha) * gate(node.linear_decay) + current - drop
        s = step(v - threshold)
        steps.append((s, None, v, v - threshold))
    return [list(column) for column in zip(*steps, strict=True)]


def weighted(weight, bias, x):
    """Return the steps of a neuron that sums its inputs over time by a matrix ``[T, T]``."""
    us = [sum(weight[t, i] * x[i] for i in range(len(x))) + bias[t] for t in range(len(x))]
    return [step(u) for u in us], [None] * len(us), [None] * len(us), us


def psn(node, x):
    return weighted(node.weight.detach(), node.bias.detach().flatten(), x)


def masked_psn(node, x):
    banded = node.weight.detach().clone()
    for t in range(len(x)):
        for i in range(len(x)):
            if not t - node.k < i <= t:
                banded[t, i] = 0.0
    return weighted(banded, node.bias.detach().flatten(), x)


def sliding_psn(node, x):
    weight = torch.zeros(len(x), len(x), dtype=torch.float64)
    for t in range(len(x)):
        for i in range(max(0, t - node.k + 1), t + 1):
            weight[t, i] = node.weight.detach()[node.k - 1 - (t - i)]
    return weighted(weight, node.bias.detach().expand(len(x)), x)


def half(node, x):
    """The user's node below: a reset to a share of the potential."""

    def charge(x_t, v):
        return v + (x_t - v) / node.tau

    return run(node, x, charge, lambda h, s: h - 0.7 * s * h)


if LEGACY:

    class OwnReset(neuron.LIFNode):
        def neuronal_reset(self, spike):
            self.v = self.v - 0.7 * spike * self.v

else:

    class OwnReset(neuron.LIFNode):
        # The host's LIF would hand a sequence to its own function.
        multi_step_functional_forward = base.MemoryModule.multi_step_functional_forward

        def single_step_functional_forward(self, inputs, states, **kwargs):
            h = states[0] + (inputs[0] - states[0]) / self.tau
            s = self.surrogate_function(h - self.v_threshold)
            return (s,), (h - 0.7 * s * h,)


class Plain(nn.Module):
    """No class of SpikingJelly; loops over time itself."""

    def __init__(self):
        super().__init__()
        self.act = surrogate.ATan()
        self.v_threshold = 0.8

    def forward(self, x_seq):
        v, out = torch.zeros_like(x_seq[0]), []
        for x in x_seq:
            h = 0.5 * v + x
            s = self.act(h - self.v_threshold)
            v = h * (1.0 - s)
            out.append(s)
        return torch.stack(out)


class Whole(nn.Module):
    """A network of its own kind: inputs and potentials differ in their dimensions."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 3)
        self.act = surrogate.ATan()

    def currents(self, x_seq):
        return self.fc(x_seq.flatten(2))

    def forward(self, x_seq):
        v = 0.0
        for x in self.currents(x_seq):
            v = 0.5 * v + x
            v = v * (1.0 - self.act(v - 0.8))
        return v


def plain(node, x):
    steps = run(node, x, lambda x_t, v: 0.5 * v + x_t, lambda h, s: h * (1.0 - s))
    return steps[0], [None] * len(x), steps[2], steps[3]


def atan(u):
    return 1.0 / (1.0 + (math.pi * u) ** 2)  # of ATan(alpha=2)


def statistics(passes, slope=atan):
    """Return each statistic ``[C]`` of passes ``(spikes, V, H, u)``, by loops; None if unknown."""
    sums = dict.fromkeys(STATISTICS, 0.0)
    samples = 0
    for spikes, v, h, u in passes:
        n, c = u[0].shape[:2]
        steps = len(u)
        samples += n

        def maps(sequence, n=n, c=c):
            return torch.stack([value.reshape(n, c, -1) for value in sequence])

        g = sum(slope(x) for x in maps(u)) / steps
        kept = {
            "firing_rate": maps(spikes).mean((0, 3)),
            "abs_potential": None if v[0] is None else maps(v).abs().mean((0, 3)),
            "abs_charge": None if h[0] is None else maps(h).abs().mean((0, 3)),
            "criticality_mean": g.mean(-1),
            "criticality_max": g.max(-1).values,
        }
        for name, value in kept.items():
            sums[name] = None if value is None else sums[name] + value.sum(0)
    return {name: None if value is None else value / samples for name, value in sums.items()}


def assert_statistics(sensor, expected, tolerance=1e-12):
    """Compare what a neuron keeps with `expected`; what it has not must be named as missing."""
    sensor.close_pass()
    known = tuple(name for name, value in expected.items() if value is not None)
    assert sensor.statistics == known
    assert set(getattr(sensor, "missing", {})) == set(STATISTICS) - set(known)
    for name in known:
        mean = sensor.activity.mean(name)
        assert mean.dtype == torch.float64
        torch.testing.assert_close(mean, expected[name], rtol=tolerance, atol=tolerance)
    assert float(expected["firing_rate"].mean()) > 0.02, "a neuron that never fires proves little"
