"""Swap a network's neuron layers for ones that record and back, in place."""

from __future__ import annotations

import logging
from typing import TypeAlias

from torch import nn

from sj_prune import _host
from sj_prune.neurons.nodes import RecordingNode
from sj_prune.neurons.observe import observe, observer_of, observers, unobserve
from sj_prune.neurons.observe_class import recording_class, stock_class
from sj_prune.neurons.observer import Observer

#: what keeps the statistics of one neuron layer
Sensor: TypeAlias = RecordingNode | Observer

logger = logging.getLogger("sj_prune")


def _check_network(net: nn.Module) -> None:
    _host.check_module(net)
    if legacy := _host.find_legacy_node(net):
        raise ValueError(
            f"Expected nodes of spikingjelly.activation_based.neuron but {legacy!r} comes from "
            "spikingjelly.clock_driven: build the network with activation_based.neuron.IFNode, "
            'LIFNode or ParametricLIFNode and step_mode="m" instead'
        )


def sense(net: nn.Module) -> dict[str, Sensor]:
    """Let every neuron of `net` keep statistics, in place.

    IF, LIF and PLIF nodes, and subclasses without dynamics of their own, become recording nodes;
    every other neuron is observed (`observe`). `to_stock` undoes both.

    Args:
        net: any network, or a single neuron.

    Returns:
        What records, by module name: each has ``recording``, ``record_in_eval``, ``statistics``,
        ``activity``, ``channel_dim``, ``peak``, ``close_pass()``, ``how`` and ``why``. Neurons
        that nothing can be kept of are among them, their ``how`` is ``"none"``.

    Raises:
        TypeError: if `net` is no module.
        ValueError: if it holds nodes of ``spikingjelly.clock_driven``.
    """
    _swap(net)
    observe(net)
    return sensors(net)


def to_recording(net: nn.Module) -> nn.Module:
    """Turn the IF, LIF and PLIF nodes of `net` into recording ones, in place.

    Names, parameters, hooks and state_dict keys stay as they are. Swapped are the stock classes and
    subclasses that add nothing to their dynamics, which keep their name and stay instances of it. A
    class with equations of its own is left alone and named in a warning; so is a node with an
    explicit neuron precision (SpikingJelly 2.0.0), or whose threshold is a tensor. `sense` observes
    these as well.

    Args:
        net: any network, or a single node.

    Returns:
        `net` itself.

    Raises:
        TypeError: if `net` is no module.
        ValueError: if it holds nodes of ``spikingjelly.clock_driven``.
    """
    if left_alone := _swap(net):
        logger.warning(
            "These neuron layers are not stock ones and record nothing: %s", ", ".join(left_alone)
        )
    return net


def _swap(net: nn.Module) -> list[str]:
    """Swap what can be, and return the names of the other IF, LIF and PLIF nodes."""
    _check_network(net)
    left_alone = []
    stock = (_host.IFNode, _host.LIFNode, _host.ParametricLIFNode)
    for name, module in net.named_modules():
        if isinstance(module, RecordingNode) or not isinstance(module, stock):
            continue
        recording = recording_class(module)
        if recording is None:
            left_alone.append(f"{name or 'net'} ({type(module).__name__})")
        else:
            unobserve(module)
            module.__class__ = recording
            assert isinstance(module, RecordingNode)  # noqa: S101 (for the type checker)
            module.start_recording()
    return left_alone


def to_stock(net: nn.Module) -> nn.Module:
    """Turn the neurons of `net` back into what they were, in place; observers leave.

    Do this before an export that matches exact classes (NIR) or a precision conversion.

    Returns:
        `net` itself.

    Raises:
        TypeError: if `net` is no module.
    """
    _check_network(net)
    unobserve(net)
    for module in net.modules():
        stock = stock_class(type(module))
        if stock is not None:
            assert isinstance(module, RecordingNode)  # noqa: S101 (for the type checker)
            module.stop_recording()
            module.__class__ = stock
    return net


def sensors(net: nn.Module) -> dict[str, Sensor]:
    """Return what records in `net` by module name, each once, in the order of the modules."""
    found: dict[str, Sensor] = {**recording_nodes(net), **observers(net)}
    return {name: found[name] for name, _ in net.named_modules() if name in found}


def sensor_of(module: nn.Module) -> Sensor | None:
    """Return what records of one module, or None."""
    return module if isinstance(module, RecordingNode) else observer_of(module)


def recording_nodes(net: nn.Module) -> dict[str, RecordingNode]:
    """Return the recording nodes of `net` by module name, each once."""
    return {n: m for n, m in net.named_modules() if isinstance(m, RecordingNode)}
