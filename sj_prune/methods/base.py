"""The protocol of a pruning method: a frozen dataclass with two scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar

from torch import Tensor

from sj_prune.masks.allocation import Allocation, Global
from sj_prune.masks.schedule import Constant, Cubic, Manual, Schedule
from sj_prune.masks.structure import Channels, Structure, Unstructured
from sj_prune.methods.view import LayerActivity, LayerView

__all__ = ["LayerActivity", "LayerView", "Method", "ScheduledMethod", "check_fraction"]


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
    shape, or ``[C_out]``. The class attributes below say what it needs; the wrapper and the mask
    manager know no method by name.

    Args:
        sparsity: fraction of the prunable weights that ends up pruned, in [0, 1).
        structure: what is pruned as one piece.

    Attributes:
        allocations: what `allocation` may be, for messages.
        needs: statistics to switch on.
        gradient: when the *dense* gradient is needed: "never", at an "update", or "always".
        penalizes: what `on_gradient` changes the gradient of: the layer's "weight", or gamma of its
            "norm"; it runs before the optimizer that moves that steps.
        observed: keys of `state` that `observe` adds to: ranks of a distributed run add theirs up.
        emergent: the weights themselves decide what is pruned; no counts are enforced.
        dense_start: False installs random masks when the network is wrapped.
        keeps_value: what is dropped and regrown in one update keeps its weight and slots.
        skips_step: the optimizer step of an update is skipped.
        grow_across_layers: rank growth over all layers together.
        exact_ties: False grows all units that tie with the last one.
        window: optimizer steps before an update whose batches are recorded; None = all.
        regrow_of_all: `regrow_schedule` is a fraction of all units instead of the kept ones.
        from_scratch: an update ranks all units, pruned or not, by drop score.
        growth_sum: the growth score of coupled channels is the sum over layers, else the mean.
        needs_norm: a group of channels without a norm is left dense.
        scores_neurons: one that no recording neuron follows is left dense.
        wakes: "restore" or "zero": what a waking channel's gamma and beta start at.
        binds: "always", or "update": channel masks bind at updates only.
    """

    sparsity: float
    structure: Structure = Unstructured()

    allocations: ClassVar[str] = "Global(), Uniform() or ERK()"
    needs: ClassVar[frozenset[str]] = frozenset()
    gradient: ClassVar[str] = "never"
    penalizes: ClassVar[str] = "weight"
    observed: ClassVar[tuple[str, ...]] = ()
    emergent: ClassVar[bool] = False
    dense_start: ClassVar[bool] = True
    keeps_value: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    grow_across_layers: ClassVar[bool] = False
    regrow_of_all: ClassVar[bool] = False
    needs_norm: ClassVar[bool] = False
    scores_neurons: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)
        if not isinstance(self.structure, Unstructured | Channels):
            raise TypeError(
                f"Expected structure to be Unstructured() or Channels() but got {self.structure!r}"
            )
        if isinstance(self.allocation, type) or not hasattr(self.allocation, "pools"):
            raise TypeError(
                f"Expected allocation of {type(self).__name__} to be {self.allocations} but got "
                f"{self.allocation!r}: give an instance, with parentheses"
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
    def from_scratch(self) -> bool:
        """Rank all units at every update, pruned or not."""
        return False

    @property
    def growth_sum(self) -> bool:
        """Add the growth scores of coupled channels up, instead of taking their mean."""
        return False

    @property
    def wakes(self) -> str:
        """What a waking channel's gamma and beta start at."""
        return "restore"

    @property
    def binds(self) -> str:
        """When channel masks bind."""
        return "always"

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

    def drop_score(self, view: LayerView) -> Tensor | None:
        """Return the score by which alive units are kept; the lowest are dropped first.

        None: this layer has nothing to be scored by; the others coupled with it decide.
        """
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

    def observe(self, view: LayerView) -> None:
        """Look at the pure loss gradient of a step; what is kept goes into ``view.state``.

        Called at every step of the `window` before an update, before the update and any penalty.
        """

    def forget(self, view: LayerView) -> None:
        """Drop what `observe` kept: the recorded statistics of the neurons are cleared now."""

    def chooses(self, step: int) -> bool:
        """Tell whether units are chosen in this step that a later update is going to drop."""
        return False

    def on_choice(self, view: LayerView, chosen: Tensor) -> None:
        """Take over which units are chosen, True = to be dropped; the shape of ``view.mask``.

        They are the ones that an update to the final sparsity would drop now, without regrowth.
        """

    def on_gradient(self, view: LayerView) -> None:
        """Add the method's terms to ``view.grad`` in place, before the optimizer steps.

        Or, as `penalizes` says, to the gradient of the norm's gamma.
        """

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
        end: step of the last update; None: masks change by `update_masks` alone, as in
            `sj_prune.prune`.
    """

    interval: int
    begin: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.schedule, self.regrow_schedule  # a schedule validates itself

    def schedule_of(self, kind: type[Schedule], final: float, initial: float = 0.0) -> Schedule:
        """Return a schedule of `kind` over this method's updates."""
        if self.end is None:
            return Manual(final=final)
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
