"""Scores: functions of a layer that say what they read.

A score returns a tensor that broadcasts to the weight, or ``[C_out]``: a value of every output
channel; None says that the layer has none. One that reads more than the weight says so::

    @reads("firing_rate")
    def busy(layer):
        return None if layer.activity is None else layer.activity.mean("firing_rate")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from sj_prune._checks import function_name
from sj_prune.methods.view import LayerView

#: called as ``score(layer)``
Score: TypeAlias = Callable[[LayerView], Tensor | None]
S = TypeVar("S", bound=Callable[..., Any])

#: what a score may read that is a loss gradient
GRADIENTS = frozenset({"gradient", "gamma gradient"})
_NO_STATISTICS = GRADIENTS | {"gamma", "inputs"}
_JOINS = ("mean", "sum", "relative")


@dataclass(frozen=True)
class Reads:
    """What a score reads beside the weight.

    Attributes:
        what: names of statistics, "gradient", "gamma", "gamma gradient", or ``module:function``.
        batches: optimizer steps before an update whose batches count; None: all since the last.
        over: how coupled layers join: the "mean" of their values, the "sum", or "relative", the
            mean of each value over its layer's mean; None: as drop or growth does by itself.
    """

    what: frozenset[str] = frozenset()
    batches: int | None = None
    over: str | None = None

    @property
    def statistics(self) -> frozenset[str]:
        """Those of the neurons."""
        return self.what - _NO_STATISTICS


def reads(
    *what: str | Callable[[Tensor], Tensor], batches: int | None = None, over: str | None = None
) -> Callable[[S], S]:
    """Say what a score reads beside the weight; a decorator.

    Args:
        what: names of statistics of the neurons (`sj_prune.neurons.STATISTICS`), "gradient" (the
            weight's; `LayerView.grad` is None for a score that does not say so), "gamma" (a group
            of channels without a norm is left dense), "gamma gradient", "inputs" (`LayerView.fed`,
            in `sj_prune.prune`, where these scores need no loss); or a function
            ``f(spikes)`` of spikes ``[T, N, C, *] -> [N, C]``, a statistic of one's own: its mean
            over samples is ``layer.activity.mean(f)``.
        batches: optimizer steps before an update whose batches count; None: all since the last.
        over: how coupled layers join, "mean", "sum" or "relative"; see `Reads`.

    Raises:
        TypeError: for what is neither, or a score without parentheses: write ``@reads(...)``.
        ValueError: for an unknown `over`, or `batches` below 1.
    """
    if not all(isinstance(name, str) or _takes_one(name) for name in what):
        raise TypeError(
            f'Expected names such as "firing_rate" but got {what!r}: write @reads(...), with names '
            "or functions f(spikes) of that argument"
        )
    names = [name if isinstance(name, str) else function_name(name) for name in what]
    if over is not None and over not in _JOINS:
        raise ValueError(f"Expected over to be one of {_JOINS} but got {over!r}")
    if batches is not None and batches < 1:
        raise ValueError(f"Expected batches of at least 1 but got {batches}")
    found = Reads(frozenset(names), batches, over)

    def mark(score: S) -> S:
        score.reads = found  # type: ignore[attr-defined]
        return score

    return mark


def _takes_one(what: object) -> bool:
    """Tell whether something may be a function of spikes; a score takes a layer."""
    code = getattr(what, "__code__", None)
    return code is not None and code.co_varnames[:1] == ("spikes",)


def reads_of(score: object) -> Reads:
    """Return what a score says that it reads; nothing beside the weight by default."""
    found = getattr(score, "reads", None)
    if isinstance(found, Reads):
        return found
    # A partial reads what its function reads; an instance what its class says of the call.
    if isinstance(score, partial):
        return reads_of(score.func)
    found = getattr(vars(type(score)).get("__call__"), "reads", None)
    return found if isinstance(found, Reads) else Reads()


@runtime_checkable
class Accumulating(Protocol):
    """A score that adds something up at every step of the window before an update.

    Its sums are declared once, by `sums`; the run makes them, adds them up over ranks, clears them
    when the neurons' statistics are cleared (never, if the score has an attribute `lasting` that is
    True), and saves them.
    """

    def sums(self, layer: LayerView) -> dict[str, Tensor]:
        """Return zeros by name, the shape of what is summed."""
        ...

    def add(self, layer: LayerView) -> None:
        """Add this step's terms to ``layer.state[name]``, before any penalty."""
        ...


def magnitude(layer: LayerView) -> Tensor:
    """Return `|w|`."""
    return layer.weight.abs()


def noise(layer: LayerView) -> Tensor:
    """Return uniform noise, seeded by layer and update, one number a unit."""
    shape, device = layer.mask.shape, layer.weight.device
    return torch.rand(shape, device=device, generator=layer.generator)


@reads("gradient")
def gradient_magnitude(layer: LayerView) -> Tensor:
    """Return the magnitude of the dense gradient."""
    return layer.dense_grad().abs()


@dataclass(frozen=True)
class Statistic:
    """One statistic of the neurons that follow, ``[C_out]``; None where none records.

    Args:
        name: such as ``"criticality_max"``.
        batches: as in `reads`.
        relative: divide by the peak of each surrogate, so that layers compare.
    """

    name: str
    batches: int | None = None
    relative: bool = False

    @property
    def reads(self) -> Reads:
        """The statistic."""
        return Reads(frozenset({self.name}), self.batches)

    def __call__(self, layer: LayerView) -> Tensor | None:
        """Return the statistic."""
        if layer.activity is None:
            return None
        return layer.activity.mean(self.name, relative=self.relative).to(layer.weight.device)


@reads("gamma")
def gamma_magnitude(layer: LayerView) -> Tensor | None:
    """Return `|gamma|`, ``[C_out]``; None where another layer has the norm."""
    gamma = layer.gamma
    return None if gamma is None else gamma.abs()


@reads("gradient", "gamma gradient", over="sum")
def gate_gradient(layer: LayerView) -> Tensor | None:
    """Return ``|dL/dgamma|``, or ``|<dL/dW_c, W_c> + dL/db_c b_c|`` without a norm, ``[C_out]``.

    The second is the derivative by a gate behind the layer, exact because its output is linear in
    filter and bias.
    """
    if layer.norm is None:
        gate = (layer.dense_grad() * layer.weight).flatten(1).sum(1)
        if layer.bias is not None and layer.bias_grad is not None:
            gate = gate + layer.bias_grad * layer.bias
        return gate.abs()
    grad = layer.gamma_grad
    if grad is None:
        raise RuntimeError(
            f"Expected a gradient of the norm behind layer {layer.name!r} to score its growth but "
            "it is None: call loss.backward() before the update; name a layer without one in skip="
        )
    return grad.abs()


def awake_score(layer: LayerView) -> Tensor:
    """Return what every channel was dropped by when it was last awake, ``[C_out]``."""
    return layer.state["awake"]


def channel_norm(layer: LayerView, p: int) -> Tensor:
    """Return ``||W_c||_p`` of every filter, ``[C_out]``."""
    return layer.weight.flatten(1).norm(p=p, dim=1)
