"""What every export starts from: the network's graph with its norms folded into the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.deploy.graph import check_input
from sj_prune.deploy.plan import Layer, Plan, Step, plan
from sj_prune.deploy.trace import trace
from sj_prune.export.quantize import Grid, grid_of

_EQUAL = 1e-5  # of the largest output: float32 weights of norms folded in float64


class ExportError(ValueError):
    """Raised for what a format cannot say, or where a file does not compute what it must."""


def folded(net: nn.Module, x_seq: Tensor) -> Plan:
    """Return the layers of a network in eval mode; the network comes back exactly as it was.

    Args:
        net: a stock network, as `finalize` or `compact` leaves it, or one with recording nodes.
        x_seq: ``[T, N, *]``, or ``[N, *]`` for a network that repeats a still image itself.

    Raises:
        TypeError: if they are something else.
        ValueError: (`UnsupportedError`) for what the graph does not understand, by name.
    """
    _host.check_module(net)
    check_input(x_seq)
    return plan(trace(net, x_seq.detach()))


def layers(made: Plan) -> Iterator[Layer]:
    """Go over the layers with weights, in order."""
    for step in made.steps:
        if isinstance(step, Layer) and step.weight is not None:
            yield step


def given_weight(layer: Layer) -> Tensor:
    """Return the weight as the network has it, before norms are folded in."""
    module: Any = layer.parts[0].module
    return module.weight.detach()


def grid(layer: Layer) -> Grid | None:
    """Return integers and scales of a layer, norms folded; None if it is not quantized."""
    module = layer.parts[0].module
    assert module is not None  # noqa: S101 (of a layer with weights)
    assert layer.weight is not None  # noqa: S101
    return grid_of(module, layer.name, layer.weight)


def windows(step: Step) -> tuple[tuple[int, int], ...] | None:
    """Return kernel, stride and padding of average pooling, or None if it is not that simple."""
    settings = step.settings
    if not settings["plain"]:
        return None
    return settings["kernel"], settings["stride"], settings["padding"]


def check_zeros(made: Plan, written: Callable[[Layer], np.ndarray]) -> None:
    """See that what is 0 in the network is 0 in a file.

    Args:
        made: of `folded`.
        written: returns the weight of a layer in the file.

    Raises:
        ExportError: with the first layer, and how many are lost.
    """
    for layer in layers(made):
        given = given_weight(layer)
        found = torch.from_numpy(written(layer).copy()).reshape(given.shape)
        if lost := int(((given == 0) & (found != 0)).sum()):
            raise ExportError(f"Expected zeros to stay but {lost} of {layer.name} are lost")


def refuse(step: Layer | Step, target: str, reason: str) -> ExportError:
    """Return the error for a step that `target` cannot say."""
    name = step.name or "the network"
    return ExportError(f"Expected a network that {target} can say but {name}: {reason}")


def outputs(net: nn.Module, x_seq: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return what a network in eval mode gives, and how often each neuron layer fires on it.

    Args:
        net: is left as it was.
        x_seq: its input.

    Returns:
        The output, and mean spikes a neuron and step by name of the neuron layer.
    """
    rates: dict[str, float] = {}

    def look(name: str, out: Tensor) -> None:
        rates[name] = float(out.detach().double().mean())

    handles = [
        module.register_forward_hook(lambda m, args, out, name=name: look(name, out))
        for name, module in net.named_modules()
        if _host.is_neuron(module)
    ]
    try:
        with _host.preserved_state(net), torch.no_grad():
            _host.reset_net(net.eval())
            out = net(x_seq)
            _host.reset_net(net)
    finally:
        for handle in handles:
            handle.remove()
    return out, rates


def check_equal(found: Tensor, expected: Tensor, what: str) -> None:
    """Compare outputs.

    Raises:
        ExportError: with how many differ, and by how much.
    """
    scale = max(float(expected.abs().max()), 1e-3)
    apart = (found - expected).abs()
    if differ := int((apart > _EQUAL * scale).sum()):
        raise ExportError(
            f"Expected {what} to compute what the network does but {differ} of {apart.numel()} "
            f"outputs differ, by up to {float(apart.max()):.3g} where they reach {scale:.3g}: "
            "potentials may lie on the threshold, to the last digits of float32; with prove=False "
            "it is written as it is"
        )
