"""Which norm and which neurons follow a weight, found in the autograd graph of one forward.

Module order does not tell what feeds what (residual additions, reused layers); the graph does. One
forward is run with the network's state preserved; from the input of every neuron layer the graph is
walked back to the first prunable weights, stopping at the outputs of other neurons.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.network.coupling.groups import Coupling
from sj_prune.network.graph import Walker
from sj_prune.network.idle import noting_idle
from sj_prune.network.layers import Layer, output_channels
from sj_prune.network.norms import norms_by_weight
from sj_prune.network.unheard import unheard
from sj_prune.neurons.convert import Sensor, sensor_of, sensors
from sj_prune.neurons.observer import Observer
from sj_prune.neurons.recording import temporary_activity


@dataclass
class NeuronFacts:
    """What one traced forward says of a neuron layer.

    Attributes:
        channels: size of the channel dimension of its input.
        channel_dim: which dimension of ``x_seq`` that is.
        ndim: number of dimensions of ``x_seq``.
        calls: how often the layer ran.
        firing_rate: mean spike rate in the traced forward, None if it does not record.
        criticality: mean of ``criticality_max``, None likewise.
        problem: why it keeps no statistics, or None.
        steps: it gets single steps ``[N, *]``; `channel_dim` and `ndim` are those of a sequence.
    """

    channels: int = 0
    channel_dim: int = 2
    ndim: int = 0
    calls: int = 0
    firing_rate: float | None = None
    criticality: float | None = None
    problem: str | None = None
    steps: bool = False


@dataclass
class Topology:
    """Result of `trace`.

    Attributes:
        neurons: layer name -> names of the neuron layers that its output feeds; empty if none.
        norms: layer name -> name of the norm directly behind it, or None.
        facts: neuron layer name -> what was seen of it.
        problems: layer name -> why a neuron that follows is not counted.
        spread: layer name -> names of the neuron layers that its output feeds whose channels are
            not its own one by one: behind a flatten or a concatenation.
        idle: names of the layers that did not run as modules.
    """

    neurons: dict[str, tuple[str, ...]] = field(default_factory=dict)
    norms: dict[str, str | None] = field(default_factory=dict)
    facts: dict[str, NeuronFacts] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    spread: dict[str, tuple[str, ...]] = field(default_factory=dict)
    idle: tuple[str, ...] = ()

    def leave_out(self, name: str, layers: Iterable[str] = ()) -> None:
        """Let a neuron layer score nothing, neither `layers` nor those of an earlier call."""
        problem = f"{name}: {self.facts[name].problem}"
        for table in (self.neurons, self.spread):
            for layer in {*layers, *(layer for layer, known in table.items() if name in known)}:
                table[layer] = tuple(n for n in table.get(layer, ()) if n != name)
                self.problems[layer] = problem


def _channel_dim(layer: Layer, shape: torch.Size) -> int | None:
    """Return the dimension of ``x_seq`` that counts the layer's output channels, if one does."""
    out = output_channels(layer)
    linear_over_tokens = isinstance(layer, nn.Linear) and len(shape) > 3
    for dim in (-1, 2) if linear_over_tokens else (2,):
        if len(shape) > 2 and shape[dim] == out:
            return dim
    return None


class _Tracer:
    """Forward hooks that fill a `Topology` while the network runs."""

    def __init__(self, net: nn.Module, layers: Mapping[str, Layer]) -> None:
        self.layers = layers
        weights = {id(layer._parameters["weight"]): name for name, layer in layers.items()}
        self.walker = Walker(weights, norms_by_weight(net))
        self.restart()

    def restart(self) -> None:
        self.walker.stops.clear()
        names = list(self.layers)
        self.topology = Topology(neurons=dict.fromkeys(names, ()), norms=dict.fromkeys(names))

    def before(self, name: str, node: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        facts = self.topology.facts.setdefault(name, NeuronFacts())
        found = self.walker.layers_behind(x)
        for layer, norm in found.items():
            self.topology.norms[layer] = self.topology.norms[layer] or norm
        facts.calls += 1
        facts.problem = facts.problem or _obstacle(node)
        if not torch.is_grad_enabled():
            facts.problem = (
                "it ran without gradients (checkpoint with use_reentrant=True?), so what feeds it "
                "is unknown; use use_reentrant=False"
            )
        if facts.problem is None:
            facts.steps = self._gets_steps(node, x, found)
            shape = torch.Size((1, *x.shape)) if facts.steps else x.shape
            self._count_channels(facts, name, shape, found)
        if facts.problem is not None:
            self.topology.leave_out(name, found)
        if (sensor := sensor_of(node)) is not None:
            sensor.recording = facts.problem is None
            sensor.channel_dim = facts.channel_dim

    def _gets_steps(self, node: nn.Module, x: Tensor, found: Iterable[str]) -> bool:
        """Tell whether a neuron layer is given single steps ``[N, *]``."""
        mode = _host.step_mode(node)
        if (
            mode is None
        ):  # none of SpikingJelly's: by what a step of the layers before it looks like
            ndims = [self.layers[layer].weight.ndim for layer in found]
            mode = "m" if ndims and x.ndim > max(ndims) else "s"
            if isinstance(sensor := sensor_of(node), Observer):
                sensor.mode = mode
        return mode == "s"

    def _count_channels(
        self, facts: NeuronFacts, name: str, shape: torch.Size, found: Mapping[str, Any]
    ) -> None:
        dims = {layer: _channel_dim(self.layers[layer], shape) for layer in found}
        matching = {dim for dim in dims.values() if dim is not None}
        dim = matching.pop() if len(matching) == 1 else facts.channel_dim
        channels = shape[dim] if len(shape) > 2 else 1
        if facts.calls > 1 and (facts.channels, facts.channel_dim) != (channels, dim):
            facts.problem = "shared by layers of different width; give each layer its own"
            return
        facts.channels, facts.channel_dim, facts.ndim = channels, dim, len(shape)
        for layer, layer_dim in dims.items():
            table = self.topology.neurons if layer_dim == dim else self.topology.spread
            known = table.get(layer, ())
            table[layer] = known if name in known else (*known, name)
            if layer_dim != dim:
                self.topology.problems[layer] = f"{name}: its channels are not this layer's"

    def after(self, output: Any) -> None:  # noqa: ANN401
        if isinstance(output, Tensor) and output.grad_fn is not None:
            self.walker.stops.add(output.grad_fn)


def _obstacle(node: nn.Module) -> str | None:
    """Return why a neuron layer keeps no statistics, whatever it is going to do; or None."""
    sensor = sensor_of(node)
    if sensor is None:
        return f"{type(node).__name__} keeps no statistics"
    obstacle = getattr(sensor, "obstacle", "")
    return f"{type(node).__name__}: {obstacle}" if obstacle else None


@contextmanager
def _hooked(net: nn.Module, tracer: _Tracer) -> Iterator[None]:
    with ExitStack() as stack:
        for name, module in net.named_modules():
            if _host.is_neuron(module) or sensor_of(module) is not None:
                before = module.register_forward_pre_hook(partial(tracer.before, name))
                after = module.register_forward_hook(lambda _m, _i, out: tracer.after(out))
                stack.callback(before.remove)
                stack.callback(after.remove)
        yield


@contextmanager
def _trainable(layers: Mapping[str, Layer]) -> Iterator[None]:
    """Make frozen weights appear in the graph."""
    weights = [layer._parameters["weight"] for layer in layers.values()]
    frozen = [w for w in weights if w is not None and not w.requires_grad]
    try:
        for w in frozen:
            w.requires_grad_(True)
        yield
    finally:
        for w in frozen:
            w.requires_grad_(False)


def _forward(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    _host.reset_net(net)
    with torch.enable_grad():
        net(*args, **kwargs)


def trace(
    net: nn.Module,
    layers: Mapping[str, Layer],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> Topology:
    """Run one forward and map weights to norms and neurons.

    The network comes back as it was: buffers, memories, attributes, random state, mode, statistics;
    forward hooks of others do not hear it. Nodes
    whose channels are known get their `channel_dim` and empty sums of the right size.

    Args:
        net: the network, its nodes recording.
        layers: the prunable layers by name.
        args: positional inputs of the network.
        kwargs: keyword inputs.
    """
    with (
        _host.preserved_state(net),
        unheard(net),
        _trainable(layers),
        temporary_activity(net) as nodes,
    ):
        tracer = _Tracer(net, layers)
        with _hooked(net, tracer), noting_idle(net, layers) as idle:
            try:
                _forward(net, args, kwargs or {})
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                # A batch norm cannot train on one sample; its running statistics will do here.
                tracer.restart()
                _forward(net.eval(), args, kwargs or {})
        topology = tracer.topology
        topology.idle = tuple(name for name in layers if name in idle)
        for name, facts in topology.facts.items():
            if facts.problem is None:
                _measure(net, name, facts, nodes[name])
            if facts.problem is not None:
                topology.leave_out(name)
    for name, node in sensors(net).items():
        facts = topology.facts.get(name, NeuronFacts(problem="it did not run"))
        if facts.problem is None and node.activity.sums is None:
            # Now, so that a compiled graph meets the same sums at every call.
            node.activity.allocate(facts.channels, next(_devices(net), torch.device("cpu")))
    return topology


def _measure(net: nn.Module, name: str, facts: NeuronFacts, sensor: Sensor) -> None:
    """Note what a neuron has kept of the traced forward, or why it has not."""
    activity = sensor.activity  # ends a pass of single steps
    if not activity.count:
        kind = type(net.get_submodule(name)).__name__
        lost = "its potentials are nan or infinite" if activity.lost else "nothing was recorded"
        facts.problem = f"{kind}: {sensor.why or lost}"
        return
    found = {n: float(activity.mean(n).mean()) for n in activity.names}
    facts.firing_rate = found.get("firing_rate")
    facts.criticality = found.get("criticality_max")


def _devices(net: nn.Module) -> Iterator[torch.device]:
    return (parameter.device for parameter in net.parameters())


def scoring_neurons(
    topology: Topology | None, coupling: Coupling | None, name: str
) -> dict[str, Tensor | None]:
    """Return the neuron layers that score a layer, and which of their channels are whose.

    Returns:
        Neuron layer name -> ``[C_out, k]``, or None where channels correspond one to one.
    """
    if topology is None:
        return {}
    found: dict[str, Tensor | None] = dict.fromkeys(topology.neurons.get(name, ()))
    if coupling is None:
        return found
    for node in topology.spread.get(name, ()):
        facts = topology.facts[node]
        channels = coupling.channels_behind(name, node)
        same = coupling.neuron_dims.get(node) == facts.channel_dim - facts.ndim
        if channels is not None and same:
            found[node] = channels
    return found
