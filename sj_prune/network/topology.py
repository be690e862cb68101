"""Which norm and which neurons follow a weight, found in the autograd graph of one forward.

Module order does not tell what feeds what (residual additions, reused layers); the graph does. One
forward is run with the network's state preserved; from the input of every neuron layer the graph is
walked back to the first prunable weights, stopping at the outputs of other neurons.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sj_prune import _host
from sj_prune.network.chain import reached
from sj_prune.network.coupling.tracer import Channels, neuron_channels
from sj_prune.network.facts import NeuronFacts, Topology
from sj_prune.network.graph import Behind, Walker
from sj_prune.network.idle import noting_places
from sj_prune.network.layers import Layer, output_channels, weighted_layers
from sj_prune.network.norms import norms_by_weight
from sj_prune.network.unheard import unheard
from sj_prune.neurons.convert import Sensor, sensor_of, sensors
from sj_prune.neurons.observer import Observer
from sj_prune.neurons.recording import temporary_activity


def _channel_dim(layer: Layer, shape: torch.Size) -> int | None:
    """Return the dimension of ``x_seq`` that counts the layer's output channels, if one does.

    By its size and where it usually is: for neurons that no labels reach.
    """
    out = output_channels(layer)
    linear_over_tokens = isinstance(layer, nn.Linear) and len(shape) > 3
    for dim in (-1, 2) if linear_over_tokens else (2,):
        if len(shape) > 2 and shape[dim] == out:
            return dim
    return None


class _Tracer:
    """Forward hooks that fill a `Topology` while the network runs."""

    def __init__(
        self, net: nn.Module, layers: Mapping[str, Layer], channels: Mapping[str, Channels]
    ) -> None:
        self.layers = layers
        self.channels = channels
        self.known = weighted_layers(net)  # one that is skipped stands between others all the same
        weights = {id(layer._parameters.get("weight")): n for n, layer in self.known.items()}
        self.walker = Walker(weights, norms_by_weight(net))
        self.restart()

    def restart(self) -> None:
        self.walker.stops.clear()
        self.walker.inputs.clear()
        names = list(self.layers)
        self.topology = Topology(neurons=dict.fromkeys(names, ()), norms=dict.fromkeys(names))

    def before(self, name: str, node: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        facts = self.topology.facts.setdefault(name, NeuronFacts())
        behind = [b for b in self.walker.layers_behind(x) if b.name in self.layers]
        for layer in behind:
            self.topology.norms[layer.name] = self.topology.norms[layer.name] or layer.norm
        found = [layer.name for layer in behind if not layer.passed]
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
        else:
            self._follow_chains(name, facts.channels, behind)
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
        self, facts: NeuronFacts, name: str, shape: torch.Size, found: Iterable[str]
    ) -> None:
        dim, dims = self._dims(facts, name, shape, found)
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

    def _dims(
        self, facts: NeuronFacts, name: str, shape: torch.Size, found: Iterable[str]
    ) -> tuple[int, dict[str, int | None]]:
        """Return the dimension of the channels, and which dimension is each layer's own."""
        seen = self.channels.get(name)
        if seen is not None and (dim := len(shape) + seen.dim) > 0:
            return dim, {layer: dim if layer in seen.own else None for layer in found}
        dims = {layer: _channel_dim(self.layers[layer], shape) for layer in found}
        matching = {dim for dim in dims.values() if dim is not None}
        return matching.pop() if len(matching) == 1 else facts.channel_dim, dims

    def _follow_chains(self, name: str, channels: int, behind: Iterable[Behind]) -> None:
        """Note which channels of a neuron layer are reached by layers that others come after."""
        for layer in behind:
            if layer.passed:
                chain = [self.known[n] for n in (layer.name, *reversed(layer.passed))]
                self.topology.through.setdefault(layer.name, {})[name] = reached(chain, channels)

    def after(self, name: str, node: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ANN401
        if isinstance(output, Tensor) and output.grad_fn is not None:
            self.walker.stops[output.grad_fn] = name

    def behind(self, output: Any) -> dict[str, tuple[str, ...]]:  # noqa: ANN401
        """Return which neurons the layers read that lie between these and the output."""
        walker = Walker(self.walker.weights, self.walker.norms)
        walker.stops = self.walker.stops
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                walker.layers_behind(tensor)
        return walker.inputs


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
                after = module.register_forward_hook(partial(tracer.after, name))
                stack.callback(before.remove)
                stack.callback(after.remove)
        yield


@contextmanager
def _trainable(net: nn.Module) -> Iterator[None]:
    """Make frozen weights appear in the graph."""
    weights = [layer._parameters.get("weight") for layer in weighted_layers(net).values()]
    frozen = [w for w in weights if w is not None and not w.requires_grad]
    try:
        for w in frozen:
            w.requires_grad_(True)
        yield
    finally:
        for w in frozen:
            w.requires_grad_(False)


def _forward(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401
    _host.reset_net(net)
    with torch.enable_grad():
        return net(*args, **kwargs)


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
    channels = neuron_channels(net, args, kwargs)
    with (
        _host.preserved_state(net),
        unheard(net),
        _trainable(net),
        temporary_activity(net) as nodes,
    ):
        tracer = _Tracer(net, layers, channels)
        with _hooked(net, tracer), noting_places(net, layers) as places:
            try:
                out = _forward(net, args, kwargs or {})
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                # A batch norm cannot train on one sample; its running statistics will do here.
                tracer.restart()
                out = _forward(net.eval(), args, kwargs or {})
        topology = tracer.topology
        topology.before = dict(tracer.walker.inputs)
        topology.ends = tracer.behind(out)
        topology.places = places
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
