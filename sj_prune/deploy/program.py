"""A plan bound to one shape of input: buffers, and the calls that fill them, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sj_prune import _host
from sj_prune.deploy import reals
from sj_prune.deploy.packed import Packed, packed_call
from sj_prune.deploy.plan import Form, Layer, Plan, Step
from sj_prune.deploy.weights import Weights
from sj_prune.engines import deploy_engine as engine

# What a layer can be run by; "neurons" is for layers without weights.
KERNELS = {
    "bits": engine.BITS,
    "reals": engine.REALS,
    "events": engine.EVENTS,
    "neurons": engine.NEURONS,
}
Shape = tuple[int, int, bool]  # T, N, and whether all steps read the same input


class Program:
    """One way through a plan; not for two threads at once.

    Args:
        made: what is run.
        weights: of each layer, by the number of the value that it makes.
        kernels: likewise; a name of `KERNELS` or "dense".
        shape: of the input.
        threads: of the engine.
        carry: neurons go on from where the last call left them.

    Attributes:
        calls: pairs of the step and what runs it.
    """

    def __init__(
        self,
        made: Plan,
        weights: Mapping[int, Weights],
        kernels: Mapping[int, str],
        shape: Shape,
        threads: int,
        carry: bool = False,
    ) -> None:
        self.plan, self.weights, self.kernels = made, weights, kernels
        self.steps, self.samples, static = shape
        self.groups = -(-self.steps // 8)
        if self.steps > (most := engine.library(None).sj_lanes()):
            raise ValueError(f"Expected at most {most} time steps at once but got {self.steps}")
        self.threads, self.carry = threads, carry
        self.potentials: dict[int, tuple[Tensor, float]] = {}
        self.calls: list[tuple[Layer | Step | None, Callable[[], object]]] = []
        self._packed: dict[int, Tensor] = {}
        self._real: dict[int, Tensor] = {}
        self._times = {0: 1 if static else self.steps}
        self._real[0] = self._new_real(0)
        for step in made.steps:
            self._bind(step)
        self.result = self.real(made.graph.output)

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the network computes, ``[T, N, *]`` or ``[N, *]``, until the next call."""
        given = self._real[0]
        # A still image, or a sequence that shows one: its first step stands for all.
        given.copy_((x[: len(given)] if self.plan.graph.sequence else x).reshape(given.shape))
        for _, call in self.calls:
            call()
        tail = self.plan.values[self.plan.graph.output].tail
        out = self.result.view(len(self.result), self.samples, *tail)
        if not self.plan.graph.timed:
            return out[0]
        return out.expand(self.steps, *out.shape[1:])

    def reset(self) -> None:
        """Put all neurons to rest."""
        for v, rest in self.potentials.values():
            v.fill_(rest)
        for step in self.plan.steps:
            if isinstance(step, Step) and step.module is not None:
                _host.reset_net(step.module)

    # ---- buffers -------------------------------------------------------------------------------

    def bytes(self) -> int:
        """Return the size of all buffers."""
        kept = {t.data_ptr(): t for t in (*self._packed.values(), *self._real.values())}
        return sum(t.numel() * t.element_size() for t in kept.values())

    def _new_packed(self, value: int) -> Tensor:
        count = self.plan.forms[value].planes * self.groups * self.samples
        size = count * self.plan.values[value].size + engine.SLACK
        return torch.zeros(size, dtype=torch.uint8, device="cpu")

    def _new_real(self, value: int) -> Tensor:
        shape = (self._times[value], self.samples, *self.plan.values[value].shape)
        return torch.empty(shape, dtype=torch.float32, device="cpu")

    def packed(self, value: int) -> Tensor:
        """Return where a count lies."""
        return self._packed[value]

    def real(self, value: int) -> Tensor:
        """Return a value as real numbers ``[T or 1, N, C, H, W]``, unpacked once if it is none."""
        if value not in self._real:
            self._real[value] = self._new_real(value)
            given, out, form = self._packed[value], self._real[value], self.plan.forms[value]
            self.calls.append((None, lambda: self._unpack(given, out, form)))
        return self._real[value]

    def _unpack(self, given: Tensor, out: Tensor, form: Form) -> None:
        engine.unpack(given, out, self.steps, form.planes, form.scale, self.threads)

    # ---- steps ---------------------------------------------------------------------------------

    def _bind(self, step: Layer | Step) -> None:
        if isinstance(step, Layer):
            inputs: tuple[int, ...] = (step.input,)
            inputs += () if step.rest is None else (step.rest,)
            timed = step.eq is not None
        else:
            inputs, timed = step.inputs, step.op == "torch"
        longest = max(self._times[i] for i in inputs)
        self._times[step.output] = self.steps if timed else longest
        if isinstance(step, Layer):
            self.calls.append((step, self.layer_call(step, self.kernels[step.output])))
        elif step.op == "reshape":
            self._alias(step)
        elif self.plan.forms[step.output].planes:
            self._packed[step.output] = self._new_packed(step.output)
            self.calls.append((step, self._packed_call(step)))
        else:
            self._bind_real(step)

    def _alias(self, step: Step) -> None:
        value = step.inputs[0]
        if value in self._packed:
            self._packed[step.output] = self._packed[value]
        else:
            shape = self.plan.values[step.output].shape
            self._real[step.output] = self._real[value].view(-1, self.samples, *shape)

    def _bind_real(self, step: Step) -> None:
        given = [self.real(i) for i in step.inputs]
        if step.op == "mean":
            self._times[step.output] = 1
        out = self._real[step.output] = self._new_real(step.output)

        def call() -> None:
            if step.op == "torch":
                out.copy_(self._in_torch(step, given[0]).reshape(out.shape))
            else:
                out.copy_(reals.compute(step.op, step.settings, given, self.steps))

        self.calls.append((step, call))

    def _in_torch(self, step: Step, x: Tensor) -> Tensor:
        assert step.module is not None  # noqa: S101
        if not self.carry:
            _host.reset_net(step.module)
        tail = self.plan.values[step.inputs[0]].tail
        x = x.expand(self.steps, *x.shape[1:]).reshape(self.steps, self.samples, *tail)
        return step.module(x)

    def _packed_call(self, step: Step) -> Callable[[], object]:
        return packed_call(
            step.op,
            step.settings,
            [self._as_packed(i) for i in step.inputs],
            self._as_packed(step.output),
            self.steps,
            self.threads,
        )

    def _as_packed(self, value: int) -> Packed:
        shape = (self.groups, self.samples, *self.plan.values[value].shape)
        return Packed(self._packed[value], self.plan.forms[value].planes, shape)

    # ---- layers --------------------------------------------------------------------------------

    def layer_call(self, layer: Layer, kernel: str) -> Callable[[], object]:
        """Return what runs one layer by one kernel; its output's buffer is made on first use."""
        out, out_real, v = self._outputs(layer)
        rest, rest_real = self._rest(layer)
        if kernel == "bits" or kernel == "events":
            given, given_real = self._packed[layer.input], None
        else:
            given, given_real = None, self.real(layer.input)
        weights = self.weights.get(layer.output)
        if kernel == "dense":
            assert weights is not None  # noqa: S101
            assert given_real is not None  # noqa: S101
            return self._dense(layer, weights, given_real, (rest, rest_real, out, out_real, v))
        tensors = [
            given,
            given_real,
            *(weights.read_by(kernel) if weights else (None, None)),
            weights.bias if weights else None,
            rest,
            rest_real,
            out,
            out_real,
            v,
        ]
        return engine.layer_call(
            KERNELS[kernel],
            layer.eq,
            layer.decay,
            tensors,
            self._numbers(layer, kernel),
            self._rest_scale(layer),
        )

    def _outputs(self, layer: Layer) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        value = layer.output
        if layer.eq is None:
            if value not in self._real:
                self._real[value] = self._new_real(value)
            return None, self._real[value], None
        if value not in self._packed:
            self._packed[value] = self._new_packed(value)
            if self.carry:
                size = self.samples * self.plan.values[value].size
                v = torch.full((size,), layer.eq.rest, dtype=torch.float32, device="cpu")
                self.potentials[value] = (v, layer.eq.rest)
        kept = self.potentials.get(value)
        return self._packed[value], None, kept[0] if kept else None

    def _rest(self, layer: Layer) -> tuple[Tensor | None, Tensor | None]:
        if layer.rest is None:
            return None, None
        if layer.rest in self._packed:
            return self._packed[layer.rest], None
        return None, self._real[layer.rest]

    def _rest_scale(self, layer: Layer) -> float:
        return 1.0 if layer.rest is None else self.plan.forms[layer.rest].scale

    def _numbers(self, layer: Layer, kernel: str) -> list[int]:
        given, made = self.plan.values[layer.input], self.plan.values[layer.output]
        geometry: dict[str, Any] = layer.geometry or _PLAIN
        rest = None if layer.rest is None else self.plan.forms[layer.rest]
        planes = self.plan.forms[layer.input].planes if kernel in ("bits", "events") else 1
        return [
            self._times[layer.output],
            self._times[layer.input],
            self.samples,
            *given.shape,
            *made.shape,
            *geometry["kernel"],
            *geometry["stride"],
            *geometry["padding"],
            *geometry["dilation"],
            planes,
            rest.planes if rest else 0,
            1 if layer.rest is None else self._times[layer.rest],
            self.threads,
        ]

    def _dense(
        self, layer: Layer, weights: Weights, x: Tensor, others: tuple[Tensor | None, ...]
    ) -> Callable[[], object]:
        assert weights.dense is not None  # noqa: S101
        weight, g = weights.dense, layer.geometry
        rest, rest_real, out, out_real, v = others
        flat = x.flatten(0, 1)

        def call() -> None:
            sums = F.conv2d(
                flat, weight, None, g["stride"], g["padding"], g["dilation"], g["groups"]
            )
            tensors = [None, sums.contiguous(), None, None, weights.bias]
            tensors += [rest, rest_real, out, out_real, v]
            engine.layer_call(
                engine.NEURONS,
                layer.eq,
                layer.decay,
                tensors,
                self._numbers(layer, "dense"),
                self._rest_scale(layer),
            )()

        return call


_PLAIN = {k: (v, v) for k, v in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1))}
