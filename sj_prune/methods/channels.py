"""What all channel methods share: when, how much, and how channels grow back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sj_prune.masks.allocation import Allocation, Uniform
from sj_prune.masks.schedule import Constant, Cubic, Manual, OneShot, Schedule
from sj_prune.masks.structure import Channels
from sj_prune.methods.base import LayerView, ScheduledMethod, check_fraction

__all__ = ["GROWTHS", "ChannelMethod", "check_choice"]

GROWTHS = ("gradient", "criticality", "random", "score")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse what is not among `known`.

    Raises:
        ValueError: naming the setting and its values.
    """
    if value not in known:
        raise ValueError(f"Expected {name} to be one of {known} but got {value!r}")


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
        structure: `Channels(linear=..., min_keep=...)`.
        allocation: `Global()`, `Uniform()` or `ERK()`.
        wake: "restore" gives a waking channel the gamma and beta that it fell asleep with; "zero"
            starts them at 0.
    """

    sparsity: float = 0.5
    regrow: float = 0.0
    growth: str = "gradient"
    interval: int | None = None  # type: ignore[assignment]
    structure: Channels = Channels()
    allocation: Allocation = Uniform()  # type: ignore[assignment]
    wake: str = "restore"

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

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """Dense gradients at updates, where growth is ranked by them."""
        return "update" if self.regrow and self.growth == "gradient" else "never"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The statistic that growth is ranked by, if any."""
        by_criticality = self.regrow and self.growth == "criticality"
        return frozenset({"criticality_max"}) if by_criticality else frozenset()

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
            return OneShot(final=self.regrow, begin=self.begin, end=self.end)
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
            return _criticality(view)
        return _gate_gradient(view)


def _criticality(view: LayerView) -> Tensor | None:
    if view.activity is None:
        return None
    return view.activity.mean("criticality_max", relative=True)


def _gate_gradient(view: LayerView) -> Tensor | None:
    """Return ``|dL/dgamma|``, or ``|<dL/dW_c, W_c>|`` of a layer without norm.

    The second is the derivative by a gate behind the filter, exact because the output is linear in
    the filter; times gamma the first is one too.
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
