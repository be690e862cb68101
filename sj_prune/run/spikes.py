"""Terms of a loss on spikes: their gradient is added in backward, where spikes leave a neuron."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.network.layers import weighted_layers
from sj_prune.neurons.convert import sensors
from sj_prune.run import processes
from sj_prune.run.meter import MeterHook, meter
from sj_prune.run.state import Run

Slope = Callable[[Tensor], Tensor]


class _Pushed(torch.autograd.Function):
    """The identity, whose backward adds the slopes of penalties."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor, slopes: tuple[Slope, ...], scale: Any) -> Tensor:  # noqa: ANN401
        ctx.slopes, ctx.scale = slopes, scale
        ctx.save_for_backward(spikes)
        return spikes.view_as(spikes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (spikes,) = ctx.saved_tensors
        with torch.no_grad():
            total = torch.stack([slope(spikes) for slope in ctx.slopes]).sum(0)
            return grad + ctx.scale(total), None, None


class SpikeTerms:
    """A forward hook of a neuron layer: in train mode its spikes carry the terms.

    Args:
        slopes: each ``dP/dS`` of spikes, in their shape.

    Attributes:
        scaler: the GradScaler of the loss, or None; a copy has none.
    """

    def __init__(self, slopes: tuple[Slope, ...]) -> None:
        self.slopes = slopes
        self.scaler: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "scaler": None}

    def __call__(self, node: nn.Module, args: tuple[Any, ...], spikes: Any) -> Any:  # noqa: ANN401
        """Return the spikes, with the terms behind them."""
        if not (node.training and isinstance(spikes, Tensor) and spikes.requires_grad):
            return spikes
        return _Pushed.apply(spikes, self.slopes, self._scale)

    def _scale(self, grad: Tensor) -> Tensor:
        return grad if self.scaler is None else self.scaler.scale(grad)


def penalize(net: nn.Module, run: Run) -> None:
    """Let the spikes of all neurons carry the plan's terms, and no others."""
    release(net)
    penalties = run.plan.penalties
    if terms := tuple(p.synops for p in penalties if p.synops is not None):
        run.meter = meter(net, weighted_layers(net), sensors(net), terms, run.network_memory)
    slopes = tuple(p.spikes for p in penalties if p.spikes is not None)
    if slopes:
        for name in sensors(net):
            net.get_submodule(name).register_forward_hook(SpikeTerms(slopes))


def scale_with(net: nn.Module, run: Run, scaler: Any) -> None:  # noqa: ANN401
    """Scale the terms as a GradScaler scales the loss."""
    for _, _, terms in _hooked(net):
        if isinstance(terms, SpikeTerms):
            terms.scaler = scaler
    if run.meter is not None:
        run.meter.scaler = scaler


def follow_masks(run: Run) -> None:
    """Let the meter count what is kept now."""
    if run.meter is not None and run.meter.changes != run.masks.changes:
        run.meter.kept, run.meter.changes = run.masks.element_masks(), run.masks.changes


def mean_synops(run: Run) -> Tensor | None:
    """Return the SynOps a sample since the last step, the mean over ranks, which all call it."""
    found = None if run.meter is None else run.meter.mean()
    return found if found is None or processes.world_size() == 1 else processes.average(found)


def release(net: nn.Module) -> None:
    """Let spikes carry no terms any more."""
    for module, key, _ in list(_hooked(net)):
        del module._forward_hooks[key]


def _hooked(net: nn.Module) -> Iterator[tuple[nn.Module, int, SpikeTerms | MeterHook]]:
    for module in net.modules():
        for key, hook in module._forward_hooks.items():
            if isinstance(hook, (SpikeTerms, MeterHook)):
                yield module, key, hook
