"""What all channel methods share: when, how much, what is recorded, how channels grow back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

import torch
from torch import Tensor

from sj_prune.masks.allocation import ERK, Allocation, Uniform
from sj_prune.masks.schedule import Constant, Cubic, Manual, OneShot, Schedule
from sj_prune.masks.structure import Channels
from sj_prune.methods.base import LayerView, ScheduledMethod, check_fraction

__all__ = [
    "GROWTHS",
    "ChannelMethod",
    "add_gamma_l1",
    "check_choice",
    "check_factor",
    "check_steps",
    "statistic",
]

GROWTHS = ("gradient", "criticality", "random", "score")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse what is not among `known`.

    Raises:
        ValueError: naming the setting and its values.
    """
    if value not in known:
        raise ValueError(f"Expected {name} to be one of {known} but got {value!r}")


def check_factor(name: str, value: object, *, positive: bool = False) -> None:
    """Refuse what is no finite number of at least 0, or above 0 if `positive`.

    Raises:
        TypeError: if `value` is not a number.
        ValueError: if it is negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Expected {name} to be a number but got {value!r}")
    number = float(value)
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        bound = "above 0" if positive else "of at least 0"
        raise ValueError(f"Expected {name} to be finite and {bound} but got {value}")


def check_steps(name: str, value: object, most: int | None = None) -> None:
    """Refuse what is no number of optimizer steps in [1, most].

    Raises:
        TypeError: if `value` is not an integer.
        ValueError: if it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Expected {name} to be an integer but got {value!r}")
    if int(value) < 1 or (most is not None and int(value) > most):
        bound = "of at least 1" if most is None else f"in [1, {most}], the steps between updates,"
        raise ValueError(f"Expected {name} {bound} but got {value}")


@dataclass(frozen=True, kw_only=True)
class ChannelMethod(ScheduledMethod):
    """Base of the methods that prune whole channels, with regrowth by a score of one's choice.

    Args:
        sparsity: fraction of the channels that ends up pruned, in [0, 1). Coupled channels count
            once.
        regrow: fraction that is grown anew at an update, in [0, 1): of the **kept** channels
            (`SCA`: of all). 0 = pruning only.
        growth: what a channel is grown by: "gradient", `|dL/dgamma|` of a channel that sleeps
            behind its norm, or the gate gradient `|<dL/dW, W>|` of one without; "criticality" of
            its neurons; "random"; or "score", the drop score when it was last awake.
        interval: optimizer steps between updates (cubic sparsity); None: one update, at `end`.
        begin: updates start after this step.
        end: step of the last update; None: masks change by `update_masks` and `sj_prune.prune`.
        structure: `Channels(linear=..., min_keep=..., multiple=...)`, of `sj_prune.masks`.
        allocation: `Global()` or `Uniform()`.
        wake: "restore" gives a waking channel the gamma and beta that it fell asleep with; "zero"
            starts them at 0.
        batches: optimizer steps before an update whose batches are scored, where a score reads
            neurons or gradients; None: all since the update before.
    """

    sparsity: float = 0.5
    regrow: float = 0.0
    growth: str = "gradient"
    interval: int | None = None  # type: ignore[assignment]
    structure: Channels = Channels()
    allocation: Allocation = Uniform()  # type: ignore[assignment]
    wake: str = "restore"
    batches: int | None = None

    allocations: ClassVar[str] = "Global() or Uniform()"
    keeps_value: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction("regrow", self.regrow)
        check_choice("growth", self.growth, GROWTHS)
        check_choice("wake", self.wake, ("restore", "zero"))
        if not isinstance(self.structure, Channels):
            raise TypeError(
                f"Expected structure of {type(self).__name__} to be Channels() but got "
                f"{self.structure!r}"
            )
        super().__post_init__()
        if isinstance(self.allocation, ERK):
            raise ValueError(
                f"Expected allocation of {type(self).__name__} to be {self.allocations} but got "
                f"{self.allocation!r}: it gives densities by the shape of weights, which channels "
                "do not have"
            )
        if self.interval is not None:
            check_steps("interval", self.interval)
        if self.batches is not None:
            check_steps("batches", self.batches, self._steps_between)

    @property
    def _steps_between(self) -> int | None:
        if self.interval is None:
            return None if self.end is None else self.end - self.begin
        return self.interval

    @property
    def window(self) -> int | None:
        """As `batches`."""
        return self.batches

    @property
    def growth_statistic(self) -> str:
        """What ``growth="criticality"`` reads of the neurons."""
        return "criticality_max"

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """Dense gradients at updates, where growth is ranked by them."""
        return "update" if self.regrow and self.growth == "gradient" else "never"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The statistic that growth is ranked by, if any."""
        by_criticality = self.regrow and self.growth == "criticality"
        return frozenset({self.growth_statistic}) if by_criticality else frozenset()

    @property
    def growth_sum(self) -> bool:
        """Coupled channels add up their gradients."""
        return self.growth == "gradient"

    @property
    def grow_across_layers(self) -> bool:  # type: ignore[override]
        """Growth is ranked as pruning is: together where that is global."""
        return not isinstance(self.allocation, Uniform)

    @property
    def wakes(self) -> str:
        """As `wake`."""
        return self.wake

    @property
    def schedule(self) -> Schedule:
        """One update at `end`, or cubic over updates every `interval` steps."""
        if self.end is None:
            return Manual(final=self.sparsity)
        if self.interval is None:
            return OneShot(final=self.sparsity, begin=self.begin, end=self.end)
        return self.schedule_of(Cubic, self.sparsity)

    @property
    def regrow_schedule(self) -> Schedule | None:
        """Constant `regrow`; None where nothing grows."""
        if not self.regrow:
            return None
        if self.interval is None and self.end is not None:
            return OneShot(final=self.regrow, initial=self.regrow, begin=self.begin, end=self.end)
        return self.schedule_of(Constant, self.regrow, self.regrow)

    def grow_score(self, view: LayerView) -> Tensor | None:
        """Return the growth score of every channel, ``[C_out]``; None = this layer has none."""
        if not self.regrow:
            return None
        if self.growth == "random":
            return torch.rand(len(view.weight), generator=view.generator, device=view.weight.device)
        if self.growth == "score":
            return view.state["awake"]
        if self.growth == "criticality":
            return statistic(view, self.growth_statistic, relative=True)
        return _gate_gradient(view)


def statistic(view: LayerView, name: str, *, relative: bool = False) -> Tensor | None:
    """Return one statistic of the neurons behind a layer, ``[C_out]``; None if none records."""
    if view.activity is None:
        return None
    return view.activity.mean(name, relative=relative).to(view.weight.device)


def add_gamma_l1(view: LayerView, strength: float) -> None:
    """Add the gradient of ``strength * sum |gamma|`` over this layer's channels of its norm."""
    parameter = None if view.norm is None else view.norm._parameters.get("weight")
    if parameter is None or parameter.grad is None:
        return
    term = strength * torch.sign(parameter.detach()).to(parameter.grad)
    if view.norm_channels is None:
        parameter.grad.add_(term)
    else:
        mine = view.norm_channels.to(term.device)
        parameter.grad.index_add_(0, mine, term[mine])


def _gate_gradient(view: LayerView) -> Tensor | None:
    """Return ``|dL/dgamma|``, or ``|<dL/dW_c, W_c>|`` of a layer without norm.

    The second is the derivative by a gate behind the filter, exact because the output is linear in
    the filter.
    """
    if view.norm is None:
        return (view.dense_grad() * view.weight).flatten(1).sum(1).abs()
    grad = view.gamma_grad
    if grad is None:
        raise RuntimeError(
            f"Expected a gradient of the norm behind layer {view.name!r} to score its growth but "
            "it is None: call loss.backward() before the update; name a layer without one in skip="
        )
    return grad.abs()
