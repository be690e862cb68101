"""The protocol of a pruning method: a frozen dataclass with two scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from sj_prune.masks.allocation import Allocation, Global
from sj_prune.masks.schedule import Constant, Cubic, Schedule
from sj_prune.masks.structure import Unstructured

__all__ = ["LayerActivity", "LayerView", "Method", "ScheduledMethod", "check_fraction"]


class _Recorder(Protocol):
    """What a view reads of a recording neuron layer."""

    peak: float
    activity: Any


class LayerActivity:
    """What the neurons that a weight feeds have recorded: the mean over them.

    Args:
        nodes: the recording neuron layers that follow the weight, at least one.
    """

    def __init__(self, nodes: Sequence[_Recorder]) -> None:
        self._nodes = tuple(nodes)

    def mean(self, name: str, *, relative: bool = False) -> Tensor:
        """Return one statistic per output channel, ``[C]`` in float64.

        Args:
            name: a statistic, such as ``"criticality_max"``.
            relative: divide by each surrogate's peak `g'(0)`, so that layers with different
                surrogates compare.
        """
        values = []
        for node in self._nodes:
            value = node.activity.mean(name)
            values.append(value / node.peak if relative and node.peak else value)
        return torch.stack(values).mean(0)


@dataclass(frozen=True)
class LayerView:
    """What a method sees of one layer. Read-only but in `Method.on_gradient` and `on_step`.

    Attributes:
        name: module name of the layer.
        weight: its weight, detached.
        grad: the pure loss gradient of the weight, or None if there is none (yet).
        mask: True = kept, the weight's shape.
        activity: of the neurons it feeds; None if no recording neuron follows.
        norm: the normalisation layer behind the weight, or None.
        step: the optimizer step, from 1.
        seed: of `generator`, another one for every layer and update.
        state: the method's own tensors for this layer; they enter the checkpoint.
    """

    name: str
    weight: Tensor
    grad: Tensor | None
    mask: Tensor
    activity: LayerActivity | None
    norm: nn.Module | None
    step: int
    seed: int
    state: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def generator(self) -> torch.Generator:
        """Random numbers for this layer and update, on the weight's device."""
        return torch.Generator(self.weight.device).manual_seed(self.seed)

    def dense_grad(self) -> Tensor:
        """Return the gradient.

        Raises:
            RuntimeError: if there is none, naming the layer.
        """
        if self.grad is None:
            raise RuntimeError(
                f"Expected a gradient of layer {self.name!r} to score its growth but it is None: "
                "call loss.backward() before the update; name a layer without one in skip="
            )
        return self.grad


def check_fraction(
    name: str, value: object, *, least: float = 0.0, open_below: bool = False
) -> None:
    """Refuse anything but a number in [least, 1), or in (least, 1) if `open_below`.

    Raises:
        TypeError: if `value` is not a number.
        ValueError: if it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Expected {name} to be a number but got {value!r}")
    number = float(value)
    inside = (number > least if open_below else number >= least) and number < 1
    if not inside:
        bracket = "(" if open_below else "["
        raise ValueError(f"Expected {name} in {bracket}{least:g}, 1) but got {value}")


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of every pruning method.

    A method is mostly two pure functions of a `LayerView`: `drop_score` (low is dropped first) and
    `grow_score` (high is grown first; None = no regrowth), each broadcastable to the weight's
    shape. The class attributes below say what it needs; the wrapper and the mask manager know no
    method by name.

    Args:
        sparsity: fraction of the prunable weights that ends up pruned, in [0, 1).
        structure: what is pruned as one piece.

    Attributes:
        needs: statistics to switch on.
        gradient: when the *dense* gradient is needed: "never", at an "update", or "always".
        emergent: the weights themselves decide what is pruned; no counts are enforced.
        dense_start: False installs random masks when the network is wrapped.
        keeps_value: what is dropped and regrown in one update keeps its weight and slots.
        skips_step: the optimizer step of an update is skipped.
        grow_across_layers: rank growth over all layers together.
        exact_ties: False grows all units that tie with the last one.
        window: optimizer steps before an update whose batches are recorded; None = all.
    """

    sparsity: float
    structure: Unstructured = Unstructured()

    needs: ClassVar[frozenset[str]] = frozenset()
    gradient: ClassVar[str] = "never"
    emergent: ClassVar[bool] = False
    dense_start: ClassVar[bool] = True
    keeps_value: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    grow_across_layers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)
        if not isinstance(self.structure, Unstructured):
            raise TypeError(f"Expected structure to be Unstructured() but got {self.structure!r}")
        if isinstance(self.allocation, type) or not hasattr(self.allocation, "pools"):
            raise TypeError(
                "Expected allocation to be an instance such as Global() or ERK() but got "
                f"{self.allocation!r}"
            )

    @property
    def exact_ties(self) -> bool:
        """Take exactly as many as asked when scores are equal."""
        return True

    @property
    def window(self) -> int | None:
        """Optimizer steps before an update whose batches are recorded; None = all of them."""
        return None

    @property
    def schedule(self) -> Schedule:
        """Sparsity as a function of the step, and when updates happen."""
        raise NotImplementedError

    @property
    def allocation(self) -> Allocation:
        """How the kept weights are divided over layers."""
        return Global()

    @property
    def regrow_schedule(self) -> Schedule | None:
        """Fraction of the kept that is regrown, as a function of the step; None = nothing."""
        return None

    def drop_score(self, view: LayerView) -> Tensor:
        """Return the score by which alive units are kept; the lowest are dropped first."""
        raise NotImplementedError

    def grow_score(self, view: LayerView) -> Tensor | None:
        """Return the score by which units are grown, highest first; None = this layer never."""
        return None

    def tie_score(self, view: LayerView) -> Tensor | None:
        """Return what decides between equal growth scores; None = a seeded order."""
        return None

    def initial_state(self, view: LayerView) -> dict[str, Tensor]:
        """Return tensors that the method keeps for a layer, made when it is first looked at."""
        return {}

    def on_gradient(self, view: LayerView) -> None:
        """Add the method's terms to ``view.grad`` in place, before the optimizer steps."""

    def on_step(self, view: LayerView) -> None:
        """Change ``view.weight`` in place after the optimizer stepped (proximal step)."""

    def describe(self) -> dict[str, Any]:
        """Return name and settings as plain values, to recognise a checkpoint of this method."""
        settings = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return {"name": type(self).__name__, **settings}


def _plain(value: object) -> Any:  # noqa: ANN401
    if isinstance(value, (bool, str, type(None))):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else repr(value)


def check_same_method(method: Method, saved: Mapping[str, Any]) -> None:
    """Refuse the checkpoint of another method or of other settings.

    Raises:
        ValueError: naming the first setting that differs.
    """
    mine = method.describe()
    for key in [*mine, *saved]:
        if mine.get(key) != saved.get(key):
            raise ValueError(
                f"Expected a checkpoint with method.{key} = {mine.get(key)!r} but it has "
                f"{saved.get(key)!r}: build the wrapper with the method that the checkpoint was "
                "saved from"
            )


@dataclass(frozen=True, kw_only=True)
class ScheduledMethod(Method):
    """A method whose masks are updated every `interval` optimizer steps.

    Args:
        sparsity: fraction pruned after the last update, in [0, 1).
        interval: optimizer steps between updates.
        begin: updates start after this step.
        end: step of the last update.
    """

    interval: int
    begin: int = 0
    end: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.schedule, self.regrow_schedule  # a schedule validates itself

    def schedule_of(self, kind: type[Schedule], final: float, initial: float = 0.0) -> Schedule:
        """Return a schedule of `kind` over this method's updates."""
        return kind(
            final=final, initial=initial, interval=self.interval, begin=self.begin, end=self.end
        )

    @property
    def schedule(self) -> Schedule:
        """Eq. (15) of arXiv 2311.16141: cubic from 0 to `sparsity`."""
        return self.schedule_of(Cubic, self.sparsity)

    def constant_schedule(self, value: float) -> Schedule:
        """Return `value` at every update."""
        return self.schedule_of(Constant, value, value)
