"""Statistics of a recording node in single-step mode, where the host computes the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sj_prune.neurons.observe_pass import Pass, random_state, slope
from sj_prune.neurons.reference import Equations, charge, compute_dtype
from sj_prune.neurons.surrogates import lookup


def watched_step(
    node: Any,  # noqa: ANN401
    equations: Equations,
    step: Callable[[], Tensor],
    x: Tensor,
    current: Pass | None,
) -> tuple[Tensor, Pass]:
    """Return the spikes of one step, and the pass over time that it was added to.

    Args:
        node: a recording node; its potential is read before and after the step.
        equations: its settings.
        step: the host's step.
        x: its input ``[N, *]``.
        current: the pass under way, or None for one of `node`'s statistics that begins here.
    """
    drawn = None if lookup(node.surrogate_function) else random_state(x)
    dtype = compute_dtype(x.dtype)
    # Sums outlive inference mode; what is made from its tensors in here can be added to.
    with torch.inference_mode(False), torch.no_grad():
        v = _before(node.v, x, equations.rest).to(dtype).clone()
        w = getattr(node, "w", None)
        decay = equations.tau if w is None else w.to(dtype).sigmoid()
    spikes = step()
    with torch.inference_mode(False), torch.no_grad():
        h = charge(x.to(dtype), v, equations, decay)
        u = h - equations.v_threshold
        if current is None or not current.fits(u):
            node.close_pass()
            current = Pass(node.statistics)
        current.step(u, spikes.detach(), h, lambda u: slope(node.surrogate_function, u, drawn))
        if current.wants("v"):
            current.potential(node.v.detach().to(dtype))
    return spikes, current


def _before(v: Tensor | float, x: Tensor, rest: float) -> Tensor:
    """Return the potential that the host starts from; from rest, if the old one does not fit."""
    if isinstance(v, Tensor):
        return v.detach().to(x.device) if v.shape == x.shape else torch.full_like(x, rest)
    return torch.full_like(x, v)
