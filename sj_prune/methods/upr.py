"""UPR (Shi et al., 2024): gates behind weights and neurons are learned, and grow hard.

The weight stays the optimizer's leaf: it is ``theta sigma(beta a)``, and its gradient is that of
`theta`, so that the change which a step makes to it is the change of `theta`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune._checks import check_factor, check_number
from sj_prune.masks.bindings import Hidden
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import Gates, Penalty
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView, NeuronView

_BETAS, _EPS = (0.9, 0.999), 1e-8  # of Adam, as everywhere


@dataclass(frozen=True, kw_only=True)
class UPR(ScheduledMethod):
    """Unified pruning by learned gates (Shi et al., ICLR 2024), of weights and of neurons.

    ``w = theta sigma(beta a)`` with a learned `a` for every weight, trained by an Adam of its own
    on the loss and ``strength * sum over layers of places * sum sigma(beta a)``, where ``places =
    H_in W_in / stride^2``: each weight costs the accumulations that it takes part in. `beta` is
    `sharp` up to step `begin`, then rises exponentially to `sharpest` in step `end`; from there on
    a weight is kept if ``a > 0``, and what is left trains on. The sparsity **emerges** from
    `strength`. The paper searches for 800 of 1,000 epochs and trains by Adam at 1e-4.

    With `neurons`, ``sigma(beta a)`` stands behind the spikes of every neuron too, one for each
    place of a map, and costs ``strength * c`` with `c` the sum of ``C_out k_h k_w / stride^2`` over
    the layers that read it. It ties the network to one size of inputs. `finalize` puts a
    `sj_prune.neurons.SpikeGate` behind neuron layers of which some went; the sparsity counts
    weights. Not with a GradScaler, nor compiled while it trains.

    Ours: `theta` starts so that the network is what it was, and weight decay acts on `w`.

    Args:
        sparsity: what is hoped for, beside what is reached in records; it decides nothing.
        interval: optimizer steps between records of the sparsity reached (one log line each).
        begin: `beta` rises after this step.
        end: step in which the gates become hard, and of the last record.
        strength: `lambda` of the penalty, at least 0; 1e-11 in the paper.
        gate_lr: learning rate of the gates, positive; 1e-4 in the paper.
        initial: what every `a` starts at, positive; not the paper's, which does not say.
        neurons: what every `a` of a neuron starts at, positive; ours is 1, where spikes are all but
            1. None: weights alone.
        sharp: `beta` at first, positive.
        sharpest: `beta` before the gates are hard, at least `sharp`.
    """

    sparsity: float = 0.95
    interval: int = 100
    strength: float = 1e-11
    gate_lr: float = 1e-4
    initial: float = 0.1
    neurons: float | None = None
    sharp: float = 5.0
    sharpest: float = 1000.0

    def __post_init__(self) -> None:
        check_factor("strength", self.strength)
        for name in ("gate_lr", "initial", "sharp") + ("neurons",) * (self.neurons is not None):
            check_factor(name, getattr(self, name), positive=True)
        if check_number("sharpest", self.sharpest) < self.sharp:
            raise ValueError(f"Expected sharpest of at least {self.sharp} but got {self.sharpest}")
        super().__post_init__()
        if self.end is None:
            raise ValueError("Expected end, the step in which the gates become hard, but got None")

    def plan(self) -> Plan:
        """Gates decide, which a penalty trains and sharpens."""
        return self._plan(
            schedule=self.constant(),
            binding=Hidden(Gated(self.initial, self.sharp)),
            penalties=(Penalty(gradient=self.learn, proximal=self.sharpen, keeps=self.keeps),),
            gates=None
            if self.neurons is None
            else Gates(start=self.open, learn=self.learn_neurons),
        )

    def keeps(self, layer: LayerView) -> dict[str, Tensor]:
        """Return `beta` and the number of Adam's steps."""
        return self._counts(layer.weight)

    def _counts(self, like: Tensor) -> dict[str, Tensor]:
        one = like.new_ones((), dtype=torch.float64)
        return {"beta": self.sharp * one, "steps": 0.0 * one}

    def sharpness(self, step: int) -> float:
        """Return `beta` once a step is done; infinite from `end` on."""
        end = step if self.end is None else self.end
        if step >= end:
            return math.inf
        part = max(0, step - self.begin) / (end - self.begin)
        return self.sharp * (self.sharpest / self.sharp) ** part

    def learn(self, layer: LayerView) -> None:
        """Take a step of Adam on the gates, and make the gradient that of `theta`."""
        state, grad = layer.state, layer.dense_grad()
        gate = state["gate"]
        if self.end is None or layer.step <= self.end:
            price = self.strength * _places(layer)
            self._adam(state, grad.to(gate) * state["theta"] + price)
        grad.mul_(gate)

    def open(self, like: Tensor) -> dict[str, Tensor]:
        """Return the gates of a neuron layer's map, and what their Adam keeps."""
        initial = 1.0 if self.neurons is None else self.neurons
        counts = self._counts(like)
        return _opened(like, initial, counts["beta"]) | counts

    def learn_neurons(self, neuron: NeuronView) -> None:
        """Take a step of Adam on the gates of neurons, and set them for the next step."""
        if self.end is None or neuron.step <= self.end:
            gate = neuron.state["gate"]
            self._adam(neuron.state, neuron.grad.to(gate) + self.strength * neuron.fan_out)
        self._sharpen(neuron.state, neuron.step)

    def _adam(self, state: dict[str, Tensor], grad: Tensor) -> None:
        """Move `a` against the gradient of its gate."""
        gate = state["gate"]
        grad = state["beta"].to(gate) * gate * (1.0 - gate) * grad  # d sigma(beta a) / da
        state["steps"] += 1.0
        first, second = (1.0 - beta ** state["steps"] for beta in _BETAS)
        state["m"].lerp_(grad, 1.0 - _BETAS[0])
        state["v"].mul_(_BETAS[1]).addcmul_(grad, grad, value=1.0 - _BETAS[1])
        root = (state["v"] / second.to(grad)).sqrt_().add_(_EPS)
        state["a"] -= self.gate_lr * (state["m"] / first.to(grad)) / root

    def sharpen(self, layer: LayerView, lr: float) -> None:
        """Set the gates of the next step, once `theta` has absorbed this one."""
        self._sharpen(layer.state, layer.step)

    def _sharpen(self, state: dict[str, Tensor], step: int) -> None:
        state["beta"] = state["beta"].new_tensor(self.sharpness(step))
        state["gate"] = _gate(state["a"], state["beta"])


@dataclass(frozen=True)
class Gated:
    """``w = theta sigma(beta a)``, with `beta` in the layer's state.

    Args:
        initial: `a` at first.
        sharp: `beta` at first.
    """

    initial: float
    sharp: float

    def start(self, weight: Tensor, hidden: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `theta`, `a`, the gate and Adam's moments of `a`, in at least float32."""
        found = _opened(weight, self.initial, hidden.get("beta", weight.new_tensor(self.sharp)))
        return {"theta": weight / found["gate"], **found}

    def absorb(self, hidden: dict[str, Tensor], weight: Tensor) -> None:
        """Move `theta` by what the step did to the weight."""
        before = self.weight(hidden).to(weight.dtype)
        hidden["theta"] += (weight - before).to(hidden["theta"])

    def weight(self, hidden: dict[str, Tensor]) -> Tensor:
        """Return ``theta`` behind its gate."""
        return hidden["theta"] * hidden["gate"]


def _opened(like: Tensor, initial: float, beta: Tensor) -> dict[str, Tensor]:
    """Return `a` at first, its gate and Adam's moments, in at least float32."""
    wide = like if like.dtype == torch.float64 else like.float()
    a, zero = torch.full_like(wide, initial), torch.zeros_like(wide)
    return {"a": a, "gate": _gate(a, beta), "m": zero, "v": zero.clone()}


def _places(layer: LayerView) -> float:
    """Return how many places of its input each weight meets.

    Raises:
        RuntimeError: for a convolution of which no forward has told.
    """
    if layer.places is None and layer.weight.ndim > 2:
        raise RuntimeError(
            f"Expected a forward that tells the map which layer {layer.name!r} reads, for UPR, but "
            "none has, as compiled ones do not: PruningWrapper(net, method, example_input=x)"
        )
    return 1.0 if layer.places is None else layer.places


def _gate(a: Tensor, beta: Tensor) -> Tensor:
    """Return ``sigma(beta a)``; of an infinite `beta` 1 where ``a > 0``, else 0."""
    beta = beta.to(a)
    return torch.where(torch.isinf(beta), (a > 0).to(a), torch.sigmoid(beta * a))
