"""One pass over time of a neuron layer that is watched step by step.

A fused layer reduces its statistics inside one multi-step call. A layer that is watched instead, at
its surrogate function or in single-step mode, adds up what each step shows here: one tensor
``[N, *]`` a quantity, whatever `T` is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from sj_prune.neurons.activity import Activity
from sj_prune.neurons.layout import step_dim
from sj_prune.neurons.reference import Equations, charge, compute_dtype
from sj_prune.neurons.statistics import Sums, is_function, of_spikes
from sj_prune.neurons.surrogates import autograd_derivative, derivative, lookup


def at_least_single(tensor: Tensor) -> Tensor:
    """Return `tensor` detached, in float64 if it is that, else in float32."""
    tensor = tensor.detach()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class Pass(Sums):
    """Running sums over the steps of one pass.

    Args:
        names: the statistics to keep, a subset of `TABLE` in its order.

    Attributes:
        steps: how many were added.
        seen: of how many of them the potential after reset ``"v"`` and before it ``"h"`` is known.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self.steps = 0
        self.seen = {"v": 0, "h": 0}
        self._spikes: list[Tensor] | None = [] if any(map(is_function, names)) else None
        self._like: tuple[torch.Size, torch.device] | None = None

    def fits(self, u: Tensor) -> bool:
        """Tell whether a step of the shape of `u` ``[N, *]`` can belong to this pass."""
        return self._like in (None, (u.shape, u.device))

    def step(
        self, u: Tensor, spikes: Tensor, charge: Tensor | None, slope: Callable[[Tensor], Tensor]
    ) -> None:
        """Add one step.

        Args:
            u: distance to the threshold ``[N, *]``, detached.
            spikes: the spikes, likewise.
            charge: the potential `H` before reset, or None where it is not known.
            slope: returns `g'` of `u`; called only if a statistic needs it.
        """
        self._like = (u.shape, u.device)
        self.steps += 1
        self.seen["h"] += charge is not None
        if self._spikes is not None:
            self._spikes.append(spikes.clone())
        self.add(s=spikes.to(u.dtype), h=charge, g=slope(u) if self.wants("g") else None)

    def potential(self, v: Tensor) -> None:
        """Add `V` of the step that was added last, if it is that: a value for every neuron."""
        if self._like is not None and v.numel() == self._like[0].numel():
            self.seen["v"] += 1
            self.add(v=v.reshape(self._like[0]))

    def add_to(self, activity: Activity, channel_dim: int) -> None:
        """Reduce this pass into `activity`.

        Args:
            activity: of statistics of which every step was added.
            channel_dim: the dimension of a sequence ``[T, N, *]`` that counts channels.

        Raises:
            ValueError: if `activity` has another number of channels.
        """
        if not activity.names:
            return
        self.names = activity.names
        reduced = self.partials(self.steps, step_dim(channel_dim))
        if self._spikes is not None:
            spikes = torch.stack(self._spikes)
            spikes = spikes.movedim(channel_dim, 2) if spikes.ndim > 2 else spikes
            reduced += [of_spikes(name, spikes) for name in self.names if is_function(name)]
        partials = torch.stack(reduced, -1)
        activity.move_to(partials.device)
        activity.update(partials)


def slope(function: Callable[[Tensor], Tensor], u: Tensor, drawn: Tensor | None = None) -> Tensor:
    """Return `g'(u)` of a surrogate without a trace: no graph, no random numbers used up.

    Args:
        function: the surrogate.
        u: distance to the threshold, detached.
        drawn: `random_state` before the call that made the spikes, so that a stochastic function
            draws the same numbers here.
    """
    known = lookup(function)
    if known is not None:
        return derivative(u, known)
    # Past the module's hooks, which have seen the true call.
    call = function.forward if isinstance(function, torch.nn.Module) else function
    with ExitStack() as stack:
        # Checkpointing packs what autograd saves; this small graph is none of its business.
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_same, _same))
        if drawn is not None:
            now = random_state(u)
            stack.callback(_set_random_state, u, now)
            _set_random_state(u, drawn)
        return autograd_derivative(call, u)


def random_state(like: Tensor) -> Tensor:
    """Return the state of the random generator of the device of `like`."""
    return torch.cuda.get_rng_state(like.device) if like.is_cuda else torch.get_rng_state()


def _set_random_state(like: Tensor, state: Tensor) -> None:
    if like.is_cuda:
        torch.cuda.set_rng_state(state, like.device)
    else:
        torch.set_rng_state(state)


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


def _same(tensor: Tensor) -> Tensor:
    return tensor
