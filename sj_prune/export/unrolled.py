"""A plan as one module without state: neurons unrolled over time, for exporters of whole graphs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_prune.deploy import reals
from sj_prune.deploy.plan import Layer, Plan, Step
from sj_prune.export.folded import refuse, windows
from sj_prune.neurons.reference import PLIF, Equations, charge, reset

_CONV = ("stride", "padding", "dilation", "groups")


class Unrolled(nn.Module):
    """What a plan computes from neurons at rest, ``[T, N, *]`` to what its network returns.

    Args:
        made: of `folded`.
        target: the format that this is for, in errors.

    Attributes:
        names: of the buffer that holds each layer's ``weight<output>`` or ``bias<output>``.

    Raises:
        ExportError: for a part that stays in torch.
    """

    def __init__(self, made: Plan, target: str) -> None:
        super().__init__()
        self.plan = made
        self.names: dict[str, str] = {}
        for step in made.steps:
            if isinstance(step, Layer):
                self._keep(step)
            elif step.op == "torch":
                raise refuse(step, target, "attention is not taken apart")
            elif step.op == "adaptive" and windows(step) is None:
                raise refuse(step, target, "it pools by windows that are not equal")

    def _keep(self, layer: Layer) -> None:
        for kind in ("weight", "bias"):
            tensor = getattr(layer, kind)
            if tensor is not None:
                # A pruned weight times a negative scale is -0.0, which does not compress.
                value, name = tensor.float() + 0.0, f"{kind}{layer.output}"
                # Exporters write equal ones once: those of a layer that runs again.
                same = (each for each, other in self.named_buffers() if torch.equal(other, value))
                self.names[name] = next(same, name)
                if self.names[name] == name:
                    self.register_buffer(name, value)

    def _held(self, kind: str, layer: Layer) -> Any:  # noqa: ANN401 (a bias may be None)
        return getattr(self, self.names.get(f"{kind}{layer.output}", ""), None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output for ``[T, N, *]``, or ``[N, *]`` for still images."""
        graph = self.plan.graph
        x = x if graph.sequence else x.unsqueeze(0).expand(graph.steps, *x.shape)
        values = {0: self._shaped(x, 0)}
        for step in self.plan.steps:
            if isinstance(step, Layer):
                values[step.output] = self._layer(step, values)
            else:
                values[step.output] = self._step(step, values)
        out = values[graph.output]
        # Not -1 for time and batch both: the batch may be dynamic.
        out = out.reshape(out.shape[0], -1, *self.plan.values[graph.output].tail)
        return out if graph.timed else out[0]

    def _shaped(self, x: Tensor, value: int) -> Tensor:
        return x.reshape(x.shape[0], -1, *self.plan.values[value].shape)

    def _layer(self, layer: Layer, values: dict[int, Tensor]) -> Tensor:
        x = values[layer.input]
        if layer.weight is not None:
            weight, bias = self._held("weight", layer), self._held("bias", layer)
            settings = (layer.geometry[name] for name in _CONV)
            x = self._shaped_as(x, F.conv2d(x.flatten(0, 1), weight, bias, *settings))
        if layer.rest is not None:
            x = x + values[layer.rest]
        return x if layer.eq is None else fire(x, layer.eq, layer.decay)

    def _step(self, step: Step, values: dict[int, Tensor]) -> Tensor:
        given = [values[i] for i in step.inputs]
        if step.op == "reshape":
            return self._shaped(given[0], step.output)
        # Exporters have no adaptive pooling of maps whose size they have not been told.
        op = "avgpool" if step.op == "adaptive" else step.op
        return reals.compute(op, step.settings, given, self.plan.graph.steps)

    def _shaped_as(self, x: Tensor, flat: Tensor) -> Tensor:
        return flat.reshape(x.shape[0], -1, *flat.shape[1:])


def fire(x_seq: Tensor, eq: Equations, decay: float) -> Tensor:
    """Return the spikes of neurons at rest, ``[T, N, *]`` both.

    Args:
        x_seq: currents.
        eq: the neurons' settings.
        decay: ``sigmoid(w)`` of PLIF.
    """
    v = torch.full_like(x_seq[0], eq.rest)
    spikes = []
    for x in x_seq.unbind(0):
        h = charge(x, v, eq, decay if eq.kind == PLIF else eq.tau)
        spikes.append((h >= eq.v_threshold).to(x.dtype))
        v = reset(h, spikes[-1], eq)
    return torch.stack(spikes)
