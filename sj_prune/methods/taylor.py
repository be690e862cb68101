"""Taylor (Molchanov et al., 2019): channels whose removal changes the loss least go first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.parts import Reads
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView


@dataclass(frozen=True, kw_only=True)
class TaylorChannels(ChannelMethod):
    """Channel pruning by first-order Taylor importance (arXiv 1906.10771).

    The square of what the loss changes by, to first order, when a channel is gated off behind its
    norm, ``(g_gamma gamma + g_beta beta)^2``, averaged over the batches of the window; without a
    norm, ``(<dL/dW_c, W_c> + dL/db_c b_c)^2``. Uniform over layers by default. Arguments are those
    of `ChannelMethod`; gradients are the pure loss gradients, one term per optimizer step.
    """

    def plan(self) -> Plan:
        """Drop by the squared gate gradient, averaged over the window."""
        return self._channel_plan(SquaredGate(self.batches))


@dataclass(frozen=True)
class SquaredGate:
    """The squared derivative of the loss by a gate on every channel, mean over steps.

    Args:
        batches: optimizer steps before an update that count; None: all.
    """

    batches: int | None = None

    @property
    def reads(self) -> Reads:
        """The pure loss gradients of every step, of what is awake."""
        return Reads(frozenset({"gradient", "gamma gradient"}), self.batches)

    def sums(self, layer: LayerView) -> dict[str, Tensor]:
        """Return a sum of zeros, ``[C_out]`` in float64, and the number of its terms."""
        zeros = layer.weight.new_zeros(len(layer.weight), dtype=torch.float64)
        return {"taylor": zeros, "terms": zeros.new_zeros(())}

    def add(self, layer: LayerView) -> None:
        """Add the squared gate gradient of this step."""
        gate = _gate(layer)
        if gate is not None:
            layer.state["taylor"] += gate.square()
            layer.state["terms"] += 1

    def __call__(self, layer: LayerView) -> Tensor | None:
        """Return the mean over the steps observed, or the present step's value if there are none.

        Raises:
            RuntimeError: if there is no gradient either, naming the layer.
        """
        if layer.state["terms"] > 0:
            return layer.state["taylor"] / layer.state["terms"]
        if layer.norm is not None and layer.gamma is None:
            return None
        gate = _gate(layer)
        if gate is None:
            raise RuntimeError(
                f"Expected gradients of layer {layer.name!r} and its norm to score its channels "
                "but there are none: call loss.backward() before the update; name a layer without "
                "gradients in skip="
            )
        return gate.square()


def _gate(layer: LayerView) -> Tensor | None:
    """Return the derivative of the loss by a gate on every channel, in float64."""
    if layer.norm is not None:
        return _inner(layer.gamma, layer.gamma_grad, layer.beta, layer.beta_grad)
    return _inner(layer.weight, layer.grad, layer.bias, layer.bias_grad)


def _inner(
    scale: Tensor | None, scale_grad: Tensor | None, shift: Tensor | None, shift_grad: Tensor | None
) -> Tensor | None:
    if scale is None or scale_grad is None:
        return None
    gate = (scale_grad.double() * scale).flatten(1 if scale.ndim > 1 else 0)
    gate = gate.sum(1) if gate.ndim > 1 else gate
    if shift is not None and shift_grad is not None:
        gate = gate + shift_grad.double() * shift
    return gate
