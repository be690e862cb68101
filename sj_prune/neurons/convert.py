"""Swap a network's stock neuron layers for recording ones and back, in place."""

from __future__ import annotations

import logging

from torch import nn

from sj_prune import _host
from sj_prune.neurons.nodes import (
    RecordingIFNode,
    RecordingLIFNode,
    RecordingNode,
    RecordingParametricLIFNode,
)

__all__ = ["recording_nodes", "to_recording", "to_stock"]

logger = logging.getLogger("sj_prune")

_RECORDING: dict[type, type] = {
    _host.IFNode: RecordingIFNode,
    _host.LIFNode: RecordingLIFNode,
    _host.ParametricLIFNode: RecordingParametricLIFNode,
}
_STOCK = {recording: stock for stock, recording in _RECORDING.items()}


def _check_network(net: nn.Module) -> None:
    _host.check_module(net)
    if legacy := _host.find_legacy_node(net):
        raise ValueError(
            f"Expected nodes of spikingjelly.activation_based.neuron but {legacy!r} comes from "
            "spikingjelly.clock_driven: build the network with activation_based.neuron.IFNode, "
            'LIFNode or ParametricLIFNode and step_mode="m" instead'
        )


def to_recording(net: nn.Module) -> nn.Module:
    """Turn the stock IF, LIF and PLIF nodes of `net` into recording ones, in place.

    Names, parameters, hooks and state_dict keys stay as they are. Exactly the stock classes are
    swapped: a user's subclass keeps its own equations, is left alone and named in a warning; so
    is a node with an explicit neuron precision (SpikingJelly 2.0.0).

    Args:
        net: any network, or a single node.

    Returns:
        `net` itself.

    Raises:
        TypeError: if `net` is no module.
        ValueError: if it holds nodes of ``spikingjelly.clock_driven``.
    """
    _check_network(net)
    left_alone = []
    for name, module in net.named_modules():
        recording = _RECORDING.get(type(module))
        if recording is not None and not _host.has_explicit_precision(module):
            module.__class__ = recording
            module.start_recording()
        elif isinstance(module, tuple(_RECORDING)) and not isinstance(module, RecordingNode):
            left_alone.append(f"{name or 'net'} ({type(module).__name__})")
    if left_alone:
        logger.warning(
            "These neuron layers are not stock ones and record nothing: %s", ", ".join(left_alone)
        )
    return net


def to_stock(net: nn.Module) -> nn.Module:
    """Turn recording nodes of `net` back into SpikingJelly's own classes, in place.

    Do this before an export that matches exact classes (NIR) or a precision conversion.

    Returns:
        `net` itself.

    Raises:
        TypeError: if `net` is no module.
    """
    _check_network(net)
    for module in net.modules():
        stock = _STOCK.get(type(module))
        if stock is not None:
            assert isinstance(module, RecordingNode)  # noqa: S101 (for the type checker)
            module.stop_recording()
            module.__class__ = stock
    return net


def recording_nodes(net: nn.Module) -> dict[str, RecordingNode]:
    """Return the recording nodes of `net` by module name, each once."""
    return {n: m for n, m in net.named_modules() if isinstance(m, RecordingNode)}
