"""The torch engine: the reference itself, on any device and for any type."""

from __future__ import annotations

from torch import Tensor

from sj_prune.neurons import reference
from sj_prune.neurons.reference import Equations
from sj_prune.neurons.statistics import names_of
from sj_prune.neurons.surrogates import Known


def available() -> str | None:
    """Return None: this engine always runs."""
    return None


def partial_rows(x_seq: Tensor) -> int:
    """Return how many rows partials need: one a sample."""
    return x_seq.shape[1]


def _fill(out: Tensor, steps: list[Tensor]) -> None:
    for target, value in zip(out, steps, strict=True):
        target.copy_(value)


def forward(
    x_seq: Tensor,
    v_init: Tensor,
    w: Tensor | None,
    eq: Equations,
    known: Known,
    statistics: int,
    outputs: tuple[Tensor, ...],
) -> None:
    """Fill `outputs` (spikes, v, partials, v_seq, h_seq, g_seq; empty where not wanted)."""
    spikes, v, partials, v_seq, h_seq, g_seq = outputs
    store, trace = v_seq.numel() > 0, h_seq.numel() > 0
    names = names_of(statistics)
    result = reference.forward(x_seq, v_init, w, eq, known, names, store, trace)
    _fill(spikes, result.spikes)
    v.copy_(result.v)
    for i, value in enumerate(result.partials):
        partials[:, :, i] = value
    for target, steps in ((v_seq, result.v_seq), (h_seq, result.h_seq), (g_seq, result.g_seq)):
        if steps:
            _fill(target, steps)


def backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    x_seq: Tensor,
    v_init: Tensor,
    w: Tensor | None,
    eq: Equations,
    known: Known,
    outputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill `outputs` (gradients of x_seq, v_init and w; empty where not wanted)."""
    steps, carry, slope = reference.backward(*grads, x_seq, v_init, w, eq, known)
    grad_x, grad_v, grad_w = outputs
    _fill(grad_x, steps)
    if grad_v.numel():
        grad_v.copy_(carry)
    if w is not None:
        grad_w.copy_(slope)
