"""The neuron equations in plain torch: the specification that every engine is tested against.

One multi-step pass over ``x_seq [T, N, *]`` (METHODS: symbols and shapes):

    charge  IF:    H[t] = V[t-1] + x[t]
            LIF:   H[t] = V + (x - (V - V_reset)) / tau      (decay_input)
                   H[t] = V - (V - V_reset) / tau + x        (otherwise)
            PLIF:  the same with * q, q = sigmoid(w), for / tau
    fire    S[t] = [H[t] >= V_threshold]
    reset   hard:  V[t] = S V_reset + (1 - S) H        soft:  V[t] = H - S V_threshold

in this order of operations, which is SpikingJelly 2.0.0's, so spikes are equal to the last bit.
(0.0.0.0.14 computes ``V (1 - 1/tau) + x`` without input decay when ``V_reset`` is None or 0.)
The state is float32 for half, bfloat16 and float32 input and float64 for float64.

Gradient, with ``g' = g'(H[t] - V_threshold)`` and ``dV``, ``dS`` the incoming gradients:

    dH[t] = dS[t] g' + (dV[t] + dH[t+1] dH[t+1]/dV[t]) dV/dH,
    dV/dH = 1 - S + (V_reset - H) g'  (hard)   or   1 - V_threshold g'  (soft),

the `g'` terms of ``dV/dH`` absent when the reset is detached; ``dH/dV = 1 - 1/tau`` (IF: 1),
``dH/dx = 1/tau`` with input decay, else 1; PLIF: ``dH/dq = x - (V - V_reset)`` or
``-(V - V_reset)``, ``dq/dw = q (1 - q)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sj_prune.neurons.statistics import Sums
from sj_prune.neurons.surrogates import Known, derivative, spike_and_derivative

IF, LIF, PLIF = range(3)


@dataclass(frozen=True)
class Equations:
    """The settings of one neuron layer: everything but the tensors."""

    kind: int
    tau: float
    decay_input: bool
    v_threshold: float
    v_reset: float | None
    detach_reset: bool

    @property
    def rest(self) -> float:
        """`V_reset` in the charge equation; 0 for a soft reset."""
        return 0.0 if self.v_reset is None else self.v_reset


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of state and arithmetic for an input type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def decay_of(eq: Equations, w: torch.Tensor | None) -> torch.Tensor | float:
    """Return PLIF's ``q = sigmoid(w)`` in at least float32, or `tau` for LIF."""
    if eq.kind != PLIF:
        return eq.tau
    assert w is not None  # noqa: S101
    return (w if w.dtype == torch.float64 else w.float()).sigmoid()


def charge(
    x: torch.Tensor, v: torch.Tensor, eq: Equations, decay: torch.Tensor | float
) -> torch.Tensor:
    """Return `H` from the input current `x` and the potential `v`, both ``[N, *]``."""
    if eq.kind == IF:
        return v + x
    if eq.kind == LIF:
        if eq.decay_input:
            return v + (x - (v - eq.rest)) / decay
        return v - (v - eq.rest) / decay + x
    if eq.decay_input:
        return v + (x - (v - eq.rest)) * decay
    return v - (v - eq.rest) * decay + x


def reset(h: torch.Tensor, spike: torch.Tensor, eq: Equations) -> torch.Tensor:
    """Return `V` after the reset."""
    if eq.v_reset is None:
        return h - spike * eq.v_threshold
    return spike * eq.v_reset + (1.0 - spike) * h


@dataclass
class Pass:
    """What one multi-step pass returns; sequences that were not asked for are empty lists."""

    spikes: list[torch.Tensor]
    v: torch.Tensor
    partials: list[torch.Tensor]
    v_seq: list[torch.Tensor]
    h_seq: list[torch.Tensor]
    g_seq: list[torch.Tensor]


def forward(
    x_seq: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor | None,
    eq: Equations,
    known: Known | None,
    names: tuple[str, ...] = (),
    store_v_seq: bool = False,
    trace: bool = False,
) -> Pass:
    """Run the recurrence without a graph.

    Args:
        x_seq: input current ``[T, N, *]`` of any floating type.
        v: potential before the first step ``[N, *]``, in `compute_dtype`.
        w: PLIF's parameter, a scalar; None otherwise.
        eq: the neuron's settings.
        known: the surrogate; None where no derivative is wanted.
        names: the statistics to reduce, in the order of `statistics.TABLE`.
        store_v_seq: keep `V` of every step.
        trace: keep `H` and `g'` of every step.
    """
    decay = decay_of(eq, w)
    dtype = compute_dtype(x_seq.dtype)
    sums = Sums(names)
    result = Pass([], v, [], [], [], [])
    for x in x_seq:
        h = charge(x.to(dtype), result.v, eq, decay)
        s = (h >= eq.v_threshold).to(dtype)
        result.v = reset(h, s, eq)
        g = None
        if known is not None and (trace or sums.wants("g")):
            g = derivative(h - eq.v_threshold, known)
        sums.add(s=s, v=result.v, h=h, g=g)
        _collect(result, s.to(x_seq.dtype), h, g, store_v_seq, trace)
    result.partials = sums.partials(len(x_seq))
    return result


def _collect(
    result: Pass,
    spike: torch.Tensor,
    h: torch.Tensor,
    g: torch.Tensor | None,
    store_v_seq: bool,
    trace: bool,
) -> None:
    result.spikes.append(spike)
    if store_v_seq:
        result.v_seq.append(result.v)
    if trace and g is not None:
        result.h_seq.append(h)
        result.g_seq.append(g)


def _charges(
    x_seq: torch.Tensor, v: torch.Tensor, w: torch.Tensor | None, eq: Equations
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Recompute `V[t-1]` and `H[t]` of every step for the backward pass."""
    decay = decay_of(eq, w)
    dtype = compute_dtype(x_seq.dtype)
    before, charges = [], []
    for x in x_seq:
        h = charge(x.to(dtype), v, eq, decay)
        before.append(v)
        charges.append(h)
        v = reset(h, (h >= eq.v_threshold).to(dtype), eq)
    return before, charges


def backward(
    grad_spikes: torch.Tensor | None,
    grad_v: torch.Tensor | None,
    grad_v_seq: torch.Tensor | None,
    x_seq: torch.Tensor,
    v_init: torch.Tensor,
    w: torch.Tensor | None,
    eq: Equations,
    known: Known,
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return the gradients of ``x_seq`` (a list over time), of ``v_init`` and of ``w``.

    The closed form is in the module's docstring. `grad_v` belongs to the potential after the last
    step, `grad_v_seq` to the stored sequence; None counts as zero. The gradient of `w` is a
    scalar, zero unless PLIF.
    """
    before, charges = _charges(x_seq, v_init, w, eq)
    dtype = compute_dtype(x_seq.dtype)
    decay = decay_of(eq, w)
    carry = torch.zeros_like(charges[0]) if grad_v is None else grad_v.to(dtype)
    grad_q = torch.zeros((), dtype=torch.float64, device=x_seq.device)
    grads: list[torch.Tensor] = []
    for t in reversed(range(len(charges))):
        h = charges[t]
        g = derivative(h - eq.v_threshold, known)
        if grad_v_seq is not None:
            carry = carry + grad_v_seq[t].to(dtype)
        dh = carry * _reset_slope(h, g, eq)
        if grad_spikes is not None:
            dh = dh + grad_spikes[t].to(dtype) * g
        if eq.kind == PLIF:
            pull = before[t] - eq.rest
            dq = x_seq[t].to(dtype) - pull if eq.decay_input else -pull
            grad_q = grad_q + (dh * dq).sum(dtype=torch.float64)
        leaked = _leak(dh, eq, decay)
        grads.append(leaked if eq.decay_input and eq.kind != IF else dh)
        carry = dh - leaked
    grads.reverse()
    slope = decay * (1.0 - decay) if eq.kind == PLIF else 0.0
    return grads, carry, grad_q * slope


def _leak(dh: torch.Tensor, eq: Equations, decay: torch.Tensor | float) -> torch.Tensor:
    if eq.kind == IF:
        return torch.zeros_like(dh)
    return dh / decay if eq.kind == LIF else dh * decay


def _reset_slope(h: torch.Tensor, g: torch.Tensor, eq: Equations) -> torch.Tensor | float:
    if eq.v_reset is None:
        return 1.0 if eq.detach_reset else 1.0 - eq.v_threshold * g
    slope = 1.0 - (h >= eq.v_threshold).to(h.dtype)
    return slope if eq.detach_reset else slope + (eq.v_reset - h) * g


def differentiable(
    x_seq: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor | None,
    eq: Equations,
    function: Callable[[torch.Tensor], torch.Tensor],
    names: tuple[str, ...] = (),
    store_v_seq: bool = False,
    trace: bool = False,
) -> Pass:
    """Run the recurrence step by step under autograd, for a surrogate without a known derivative.

    Arguments as in `forward`, with the surrogate itself as `function`. The derivative for the
    statistics comes from autograd through the very call that made the spikes, so a stochastic
    function draws its random numbers once.
    """
    decay = decay_of(eq, w)
    dtype = compute_dtype(x_seq.dtype)
    sums = Sums(names)
    result = Pass([], v, [], [], [], [])
    wanted = trace or sums.wants("g")
    for x in x_seq:
        h = charge(x.to(dtype), result.v, eq, decay)
        u = h - eq.v_threshold
        s, g = _spike_and_derivative(function, u) if wanted else (function(u), None)
        s = s.to(dtype)
        result.v = reset(h, s.detach() if eq.detach_reset else s, eq)
        with torch.no_grad():
            sums.add(s=s.detach(), v=result.v.detach(), h=h.detach(), g=g)
        _collect(result, s.to(x_seq.dtype), h.detach(), g, store_v_seq, trace)
    result.partials = sums.partials(len(x_seq))
    return result


def _spike_and_derivative(
    function: Callable[[torch.Tensor], torch.Tensor], u: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    s, g = spike_and_derivative(function, u)
    learnable = isinstance(function, torch.nn.Module) and any(
        p.requires_grad for p in function.parameters()
    )
    keep = torch.is_grad_enabled() and (u.requires_grad or learnable)
    return (s if keep else s.detach()), g
