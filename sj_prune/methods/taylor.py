"""Taylor (Molchanov et al., 2019): channels whose removal changes the loss least go first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sj_prune.methods.base import LayerView
from sj_prune.methods.channels import ChannelMethod

__all__ = ["TaylorChannels"]


@dataclass(frozen=True, kw_only=True)
class TaylorChannels(ChannelMethod):
    """Channel pruning by first-order Taylor importance (arXiv 1906.10771).

    The square of what the loss changes by, to first order, when a channel is gated off behind its
    norm, ``(g_gamma gamma + g_beta beta)^2``, averaged over the batches of the window; without a
    norm, ``(<dL/dW_c, W_c> + dL/db_c b_c)^2``. Uniform over layers by default. Arguments are those
    of `ChannelMethod`; gradients are the pure loss gradients, one term per optimizer step.
    """

    observed: ClassVar[tuple[str, ...]] = ("taylor", "terms")

    def initial_state(self, view: LayerView) -> dict[str, Tensor]:
        """Return a sum of zeros, ``[C_out]`` in float64, and the number of its terms."""
        zeros = view.weight.new_zeros(len(view.weight), dtype=torch.float64)
        return {"taylor": zeros, "terms": zeros.new_zeros(())}

    def observe(self, view: LayerView) -> None:
        """Add the squared gate gradient of this step."""
        gate = _gate(view)
        if gate is not None:
            view.state["taylor"] += gate.square()
            view.state["terms"] += 1

    def forget(self, view: LayerView) -> None:
        """Set the sum to 0."""
        view.state["taylor"].zero_()
        view.state["terms"].zero_()

    def drop_score(self, view: LayerView) -> Tensor | None:
        """Return the mean over the steps observed, or the present step's value if there are none.

        Raises:
            RuntimeError: if there is no gradient either, naming the layer.
        """
        if view.state["terms"] > 0:
            return view.state["taylor"] / view.state["terms"]
        if view.norm is not None and view.gamma is None:
            return None
        gate = _gate(view)
        if gate is None:
            raise RuntimeError(
                f"Expected gradients of layer {view.name!r} and its norm to score its channels but "
                "there are none: call loss.backward() before the update; name a layer without "
                "gradients in skip="
            )
        return gate.square()


def _gate(view: LayerView) -> Tensor | None:
    """Return the derivative of the loss by a gate on every channel, in float64."""
    if view.norm is not None:
        return _inner(view.gamma, view.gamma_grad, view.beta, view.beta_grad)
    return _inner(view.weight, view.grad, view.bias, view.bias_grad)


def _inner(
    scale: Tensor | None, scale_grad: Tensor | None, shift: Tensor | None, shift_grad: Tensor | None
) -> Tensor | None:
    if scale is None or scale_grad is None:
        return None
    gate = (scale_grad.double() * scale.double()).flatten(1 if scale.ndim > 1 else 0)
    gate = gate.sum(1) if gate.ndim > 1 else gate
    if shift is not None and shift_grad is not None:
        gate = gate + shift_grad.double() * shift.double()
    return gate
