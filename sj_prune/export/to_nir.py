"""A network as a graph of the Neuromorphic Intermediate Representation (Pedersen et al., 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sj_prune._version import __version__
from sj_prune.deploy.plan import Layer, Plan, Step
from sj_prune.export.folded import grid, layers, refuse, windows
from sj_prune.neurons.reference import IF, LIF


def nir_graph(made: Plan, dt: float) -> tuple[Any, dict[str, str]]:
    """Return a plan as a `nir.NIRGraph`, and its nodes by name of the layer.

    What is added up are several edges into one node.

    Args:
        made: of `folded`.
        dt: seconds of one time step; time constants are in seconds.

    Raises:
        ExportError: for what NIR, or its reader in SpikingJelly, cannot say.
    """
    builder = _Builder(made, dt)
    return builder.graph(), builder.names


class _Builder:
    """Nodes and edges so far, and which nodes add up to a value."""

    def __init__(self, made: Plan, dt: float) -> None:
        import nir

        self.nir, self.made, self.dt = nir, made, dt
        self.nodes: dict[str, Any] = {"input": nir.Input({"input": self._shape(0)})}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[int, tuple[str, ...]] = {0: ("input",)}
        self.names: dict[str, str] = {}
        self.mean_over_time = False

    def graph(self) -> Any:  # noqa: ANN401
        for step in self.made.steps:
            if isinstance(step, Layer):
                self._layer(step)
            else:
                _STEPS.get(step.op, _Builder._refuse)(self, step)
        out = self.made.graph.output
        self._node("output", self.nir.Output({"output": self._shape(out)}), self.sources[out])
        return self.nir.NIRGraph(self.nodes, self.edges, metadata=self._metadata())

    def _metadata(self) -> dict[str, Any]:
        graph = self.made.graph
        density = {
            self.names[layer.name]: float((layer.weight != 0).double().mean())
            for layer in layers(self.made)
            if layer.weight is not None
        }
        return {
            "sj_prune": __version__,
            "T": graph.steps,
            "dt": self.dt,
            "reset": "hard",
            "output": "mean over time" if self.mean_over_time else "sequence",
            "density": density,
        }

    def _shape(self, value: int) -> np.ndarray:
        return np.array(self.made.values[value].tail)

    def _node(self, name: str, node: Any, sources: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ANN401
        """Add a node that reads the sum of `sources`; return it as a source."""
        name = unique(_key(name), self.nodes)
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return (name,)

    def _sum(self, step: Layer | Step, a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
        if twice := set(a) & set(b):
            raise refuse(step, "NIR", f"it adds {min(twice)} twice, and an edge is there once")
        return a + b

    # ---- layers --------------------------------------------------------------------------------

    def _layer(self, layer: Layer) -> None:
        sources = self.sources[layer.input]
        if layer.weight is not None:
            node = self._weights(layer)
            if found := grid(layer):
                integers = found.integers.numpy().reshape(node.weight.shape)
                scale = found.scale.numpy()
                node.metadata = {"bits": found.bits, "integers": integers, "scale": scale}
            sources = self._node(layer.name, node, sources)
            self.names[layer.name] = sources[0]
        if layer.rest is not None:
            sources = self._sum(layer, sources, self.sources[layer.rest])
        if layer.eq is not None:
            sources = self._node(layer.neuron or layer.name, self._neuron(layer), sources)
        self.sources[layer.output] = sources

    def _weights(self, layer: Layer) -> Any:  # noqa: ANN401
        assert layer.weight is not None  # noqa: S101
        # A pruned weight times a negative scale is -0.0, which does not compress.
        weight, geometry = (layer.weight.float() + 0.0).numpy(), layer.geometry
        tail = self.made.values[layer.input].tail
        if geometry["groups"] != 1:
            raise refuse(layer, "NIR", f"its {geometry['groups']} groups have no reader: groups=1")
        if len(tail) == 1:
            flat = weight.reshape(weight.shape[:2])
            if layer.bias is None:
                return self.nir.Linear(flat)
            return self.nir.Affine(flat, layer.bias.float().numpy())
        bias = np.zeros(len(weight), np.float32)
        bias = bias if layer.bias is None else layer.bias.float().numpy()
        names = ("stride", "padding", "dilation")
        if len(tail) == 2:
            given = {name: geometry[name][1] for name in names}
            return self.nir.Conv1d(
                input_shape=tail[1], weight=weight[:, :, 0], groups=1, bias=bias, **given
            )
        given = {name: geometry[name] for name in names}
        return self.nir.Conv2d(input_shape=tail[1:], weight=weight, groups=1, bias=bias, **given)

    def _neuron(self, layer: Layer) -> Any:  # noqa: ANN401
        eq, shape = layer.eq, tuple(self._shape(layer.output))
        assert eq is not None  # noqa: S101
        if eq.v_reset is None:
            raise refuse(layer, "NIR", f"{layer.neuron} resets softly (v_reset=None)")
        full = {"v_threshold": eq.v_threshold, "v_reset": eq.v_reset}
        if eq.kind == IF:
            values = full | {"r": 1.0 / self.dt}
            return self.nir.IF(**{k: np.full(shape, v) for k, v in values.items()})
        tau = eq.tau if eq.kind == LIF else 1.0 / layer.decay
        values = full | {
            "tau": tau * self.dt,
            "r": 1.0 if eq.decay_input else tau,
            "v_leak": eq.rest,
        }
        return self.nir.LIF(**{k: np.full(shape, v) for k, v in values.items()})

    # ---- other steps ---------------------------------------------------------------------------

    def _refuse(self, step: Step) -> None:
        reason = _REASONS.get(step.op, f"the operation {step.op!r} has no NIR node")
        raise refuse(step, "NIR", reason)

    def _add(self, step: Step) -> None:
        a, b = (self.sources[i] for i in step.inputs)
        self.sources[step.output] = self._sum(step, a, b)

    def _reshape(self, step: Step) -> None:
        (given,) = step.inputs
        self._reshaped(step, self.made.values[given].tail, self.sources[given])

    def _reshaped(self, step: Step, before: tuple[int, ...], sources: tuple[str, ...]) -> None:
        """Go on with `sources` in the shape that the step gives them."""
        after = self.made.values[step.output].tail
        if len(after) == 1 and len(before) > 1:
            node = self.nir.Flatten({"input": np.array(before)}, start_dim=0, end_dim=-1)
            sources = self._node(f"{step.name}.flatten", node, sources)
        elif before != after:
            raise refuse(step, "NIR", f"it reshapes {before} to {after}: only flatten has a node")
        self.sources[step.output] = sources

    def _pool(self, step: Step) -> None:
        (given,) = step.inputs
        window = windows(step)
        if window is None or len(self._shape(given)) != 3:
            raise refuse(
                step, "NIR", "only average pooling in 2d by equal, whole windows has a node"
            )
        node = self.nir.AvgPool2d(*map(np.array, window))
        pooled = self._node(step.name, node, self.sources[given])
        # A mean over the map leaves no map, a pooling one of a single place.
        self._reshaped(step, self.made.values[step.output].shape, pooled)

    def _voting(self, step: Step) -> None:
        """Every class is the mean of its voters: a linear layer."""
        (given,) = step.inputs
        features, voters = int(self._shape(given)[0]), step.settings["voters"]
        classes = np.arange(features) // voters
        weight = (classes == np.arange(features // voters)[:, None]) / np.float32(voters)
        node = self.nir.Linear(weight.astype(np.float32))
        self.sources[step.output] = self._node(step.name, node, self.sources[given])

    def _mean(self, step: Step) -> None:
        """All that follows a mean over time is linear: the mean is left to the reader."""
        if not step.settings["mean"]:
            raise refuse(step, "NIR", "it sums over time: mean(0) is left to the reader")
        self.mean_over_time = True
        self.sources[step.output] = self.sources[step.inputs[0]]


def _key(name: str) -> str:
    """Return a name without dots, as readers of NIR want them."""
    return name.replace(".", "_")


def unique(name: str, taken: dict[str, Any]) -> str:
    """Return `name`, or the first ``name_1``, ``name_2``, ... that is not taken."""
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


_STEPS: dict[str, Callable[[_Builder, Step], None]] = {
    "add": _Builder._add,
    "reshape": _Builder._reshape,
    "avgpool": _Builder._pool,
    "adaptive": _Builder._pool,
    "voting": _Builder._voting,
    "mean": _Builder._mean,
}
_REASONS = {
    "maxpool": "NIR has no maximum pooling: train with average pooling, or export_onnx()",
    "norm": "a norm that follows no layer directly cannot be folded",
    "torch": "attention has no NIR node",
}
