"""From a graph to what is run: layers with folded norms, residual additions and neurons in them.

Folding multiplies a filter by one number, so weights that are 0 stay 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.deploy import leaves
from sj_prune.deploy.graph import Graph, Node, UnsupportedError, Value
from sj_prune.neurons.reference import Equations

_PLANES = 8  # binary digits of a count that the engine knows


@dataclass(frozen=True)
class Form:
    """How a value lies in memory.

    Attributes:
        planes: binary digits of the count that it is, 1 for spikes; 0 for real numbers.
        most: the largest count.
        scale: the value is the count times this.
    """

    planes: int = 0
    most: int = 0
    scale: float = 1.0

    @staticmethod
    def count(most: int, scale: float = 1.0) -> Form:
        """Return the form of counts up to `most`; real numbers if that has too many digits."""
        planes = most.bit_length()
        return Form(planes, most, scale) if planes <= _PLANES else Form()


SPIKES = Form(1, 1)


@dataclass
class Step:
    """An operation that is none of the engine's layers.

    Attributes:
        op: of the node, or "pool", "sum", "logic".
        name: of the node.
        inputs: numbers of values.
        output: number of a value.
        settings: of the node.
        module: a module that stays in torch.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    output: int
    settings: dict[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None


@dataclass
class Layer:
    """A convolution or linear layer with all that follows it; or neurons alone.

    Attributes:
        name: of the layer, or of the neurons.
        input: number of a value.
        output: number of a value.
        geometry: of the convolution, as in `leaves.settings_of`; empty for neurons alone.
        weight: folded, ``[C_out, C_in / groups, kH, kW]`` in float64; None for neurons alone.
        bias: folded, ``[C_out]`` in float64, or None.
        rest: number of a value that is added before the neurons, or None.
        eq: settings of the neurons, or None.
        decay: ``sigmoid(w)`` of PLIF.
        neuron: name of the neurons.
        parts: the nodes in it, for the proof.
    """

    name: str
    input: int
    output: int
    geometry: dict[str, Any]
    weight: Tensor | None = None
    bias: Tensor | None = None
    rest: int | None = None
    eq: Equations | None = None
    decay: float = 0.0
    neuron: str | None = None
    parts: list[Node] = field(default_factory=list)


@dataclass
class Plan:
    """What is run, in order.

    Attributes:
        steps: in order.
        values: by number.
        forms: by number of a value.
        graph: what it came from.
    """

    steps: list[Layer | Step]
    values: list[Value]
    forms: dict[int, Form]
    graph: Graph


def plan(graph: Graph) -> Plan:
    """Return what is run for a graph.

    Raises:
        UnsupportedError: for a layer whose parameters are not finite.
    """
    made = Plan([], graph.values, {0: Form()}, graph)
    fusing = _Fusing(made, graph.users())
    for node in graph.nodes:
        _FUSED.get(node.op, _Fusing.other)(fusing, node)
    for step in made.steps:
        made.forms[step.output] = _form(made, step)
    return made


class _Fusing:
    """Layers that can still take in what follows them, by the value that they make."""

    def __init__(self, made: Plan, users: list[int]) -> None:
        self.plan, self.users = made, users
        self.open: dict[int, Layer] = {}

    def _take(self, value: int) -> Layer | None:
        """Return the layer that makes a value which nothing else reads."""
        return self.open.pop(value, None) if self.users[value] == 1 else None

    def _give(self, layer: Layer, node: Node) -> None:
        layer.output = node.output
        layer.parts.append(node)

    def layer(self, node: Node) -> None:
        module: Any = node.module
        weight = module.weight.detach().double()
        weight = weight.reshape(*weight.shape[:2], *node.settings["kernel"])
        bias = None if module.bias is None else module.bias.detach().double()
        _check_finite(node.name, weight, bias)
        made = Layer(node.name, node.inputs[0], node.output, node.settings, weight, bias)
        made.parts.append(node)
        self.plan.steps.append(made)
        self.open[node.output] = made

    def norm(self, node: Node) -> None:
        layer = self.open.get(node.inputs[0])
        if layer is None or layer.rest is not None or self.users[node.inputs[0]] != 1:
            self.other(node)
            return
        del self.open[node.inputs[0]]
        scale, shift = affine(node.module)
        assert layer.weight is not None  # noqa: S101
        layer.weight = layer.weight * scale.view(-1, 1, 1, 1)
        layer.bias = shift if layer.bias is None else layer.bias * scale + shift
        _check_finite(node.name, layer.weight, layer.bias)
        self._give(layer, node)
        self.open[node.output] = layer

    def add(self, node: Node) -> None:
        a, b = node.inputs
        for mine, rest in ((b, a), (a, b)):
            layer = self.open.get(mine)
            if a == b or layer is None or layer.rest is not None or self.users[mine] != 1:
                continue
            del self.open[mine]
            layer.rest = rest
            self._give(layer, node)
            # What it adds may be made later than the layer was: nothing has read it yet.
            self.plan.steps.remove(layer)
            self.plan.steps.append(layer)
            self.open[node.output] = layer
            return
        self.other(node)

    def neuron(self, node: Node) -> None:
        layer = self._take(node.inputs[0])
        if layer is None:
            layer = Layer(node.name, node.inputs[0], node.output, {})
            self.plan.steps.append(layer)
        layer.eq, layer.decay = leaves.equations(node.module)
        layer.neuron = node.name
        self._give(layer, node)

    def other(self, node: Node) -> None:
        settings = dict(node.settings)
        if node.op == "adaptive":
            before, after = (self.plan.values[i].shape[1:] for i in (node.inputs[0], node.output))
            settings |= _windows(before, after)
        if node.op == "norm":
            settings["scale"], settings["shift"] = (t.float() for t in affine(node.module))
        module = node.module if node.op == "torch" else None
        self.plan.steps.append(Step(node.op, node.name, node.inputs, node.output, settings, module))


_FUSED: dict[str, Callable[[_Fusing, Node], None]] = {
    "layer": _Fusing.layer,
    "norm": _Fusing.norm,
    "add": _Fusing.add,
    "neuron": _Fusing.neuron,
}


def _windows(before: tuple[int, ...], after: tuple[int, ...]) -> dict[str, Any]:
    """Return the settings that make adaptive pooling average pooling, if its windows are equal."""
    if any(a % b for a, b in zip(before, after, strict=True)):
        return {"plain": False}
    kernel = tuple(a // b for a, b in zip(before, after, strict=True))
    same = {"kernel": kernel, "stride": kernel, "padding": (0, 0), "dilation": (1, 1)}
    return same | {"ceil_mode": False, "count_include_pad": True, "divisor": None, "plain": True}


def affine(norm: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Return what a norm multiplies by and adds in eval mode, ``[C]`` each, in float64."""
    deviation = (norm.running_var.detach().double() + norm.eps).sqrt()
    scale = 1.0 / deviation
    if norm.weight is not None:
        scale = norm.weight.detach().double() / deviation
    shift = -norm.running_mean.detach().double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _check_finite(name: str, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and not torch.isfinite(tensor.float()).all():
            raise UnsupportedError(
                f"Expected finite parameters in {name} but it has some that are not"
            )


def _form(made: Plan, step: Layer | Step) -> Form:
    if isinstance(step, Layer):
        return SPIKES if step.eq is not None else Form()
    given = [made.forms[i] for i in step.inputs]
    if not all(form.planes for form in given):
        return Form()
    rule = _FORMS.get(step.op)
    return Form() if rule is None else rule(made, step, given)


def _same_form(made: Plan, step: Step, given: list[Form]) -> Form:
    return given[0]


def _largest(made: Plan, step: Step, given: list[Form]) -> Form:
    plain = step.settings["plain"] and given[0].planes == 1
    return given[0] if plain else Form()


def _average(made: Plan, step: Step, given: list[Form]) -> Form:
    if not step.settings["plain"]:
        return Form()
    height, width = step.settings["kernel"]
    form = given[0]
    return Form.count(form.most * height * width, form.scale / (height * width))


def _sum(made: Plan, step: Step, given: list[Form]) -> Form:
    a, b = given
    return Form.count(a.most + b.most, a.scale) if a.scale == b.scale else Form()


def _spikes(made: Plan, step: Step, given: list[Form]) -> Form:
    return SPIKES if all(form == SPIKES for form in given) else Form()


def _cat(made: Plan, step: Step, given: list[Form]) -> Form:
    if len({form.scale for form in given}) != 1:
        return Form()
    return Form.count(max(form.most for form in given), given[0].scale)


def _scaled(made: Plan, step: Step, given: list[Form]) -> Form:
    form = given[0]
    return Form(form.planes, form.most, form.scale * step.settings["factor"])


_FORMS: dict[str, Callable[[Plan, Step, list[Form]], Form]] = {
    "reshape": _same_form,
    "maxpool": _largest,
    "avgpool": _average,
    "adaptive": _average,
    "add": _sum,
    "and": _spikes,
    "complement": _spikes,
    "cat": _cat,
    "scale": _scaled,
}
