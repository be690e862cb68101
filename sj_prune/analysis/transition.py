"""Importance transition: what becomes of the units that only one of two masks keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sj_prune.reports.tables import optional, table
from sj_prune.wrapper import PruningWrapper

#: a network, what its `state_dict()` returns, or one of either for each of the two masks
Snapshot: TypeAlias = Any


@dataclass(frozen=True)
class TransitionPoint:
    """The importance of both sets of units at one epoch, each a mean; 1 is an average unit."""

    epoch: float
    first: float | None
    second: float | None


@dataclass(frozen=True)
class Transition:
    """Importance over epochs; `str` gives the table.

    Attributes:
        names: of the two masks.
        units: how many units only the first keeps, and only the second.
        rows: one an epoch.
    """

    names: tuple[str, str]
    units: tuple[int, int]
    rows: tuple[TransitionPoint, ...]

    def labels(self) -> tuple[str, str]:
        """Return what each set of units is called."""
        first, second = (
            f"only {name} keeps ({units})"
            for name, units in zip(self.names, self.units, strict=True)
        )
        return first, second

    def __str__(self) -> str:
        return self._text(markdown=False)

    def to_markdown(self) -> str:
        """Return the same in GitHub's Markdown."""
        return self._text(markdown=True)

    def _text(self, *, markdown: bool) -> str:
        cells = [[f"{r.epoch:g}", optional(r.first), optional(r.second)] for r in self.rows]
        return table(("epoch", *self.labels()), cells, markdown)


def transition(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    epochs: Iterable[Snapshot] | Mapping[float, Snapshot],
    *,
    names: tuple[str, str] = ("first", "second"),
) -> Transition:
    """Measure how important the units are, epoch by epoch, that only one of two masks keeps.

    The importance of a unit is ``|gamma|`` of its norm, or ``|w|`` of a single weight (of a channel
    whose layer no norm follows, the mean over its filter), over the mean of those of its module
    that are not 0: 1 is an average unit. arXiv 2311.16141 looks so at channels that criticality
    brings back where magnitude alone would not.

    Args:
        first: masks by module name, True = kept: a wrapper's `masks`, or any mapping.
        second: those to compare with.
        epochs: the network, or its state, after every epoch, from 0 on, or by epoch. Each is read
            when it comes, so a generator may train in between and yield one network again and
            again. A pair where each of the two masks has been trained with has a training of its
            own.
        names: of the two masks, for table and plot.

    Raises:
        TypeError: for a single network or state in place of one an epoch, an epoch that is neither.
        ValueError: for masks of different modules or shapes, an epoch without one of them, names of
            other than two masks.
    """
    if isinstance(names, str) or len(names) != 2:
        raise ValueError(f"Expected names to be of two masks but got {names!r}: give two")
    if set(first) != set(second):
        raise ValueError(
            "Expected two masks of the same modules but only one has "
            f"{sorted(set(first) ^ set(second))[:3]}"
        )
    for name in first:
        if first[name].shape != second[name].shape:
            raise ValueError(
                f"Expected two masks of one shape at {name!r} but got {tuple(first[name].shape)} "
                f"and {tuple(second[name].shape)}"
            )
    only = [
        {name: (a[name].bool() & ~b[name].bool()).cpu() for name in a}
        for a, b in ((first, second), (second, first))
    ]
    rows = []
    for epoch, snapshot in _numbered(epochs):
        pair = snapshot if isinstance(snapshot, tuple) else (snapshot, snapshot)
        found = [_mean(_state(own), where) for own, where in zip(pair, only, strict=True)]
        rows.append(TransitionPoint(float(epoch), *found))
    units = [sum(int(where.sum()) for where in each.values()) for each in only]
    return Transition((names[0], names[1]), (units[0], units[1]), tuple(rows))


def _numbered(
    epochs: Iterable[Snapshot] | Mapping[float, Snapshot],
) -> Iterable[tuple[float, Snapshot]]:
    single = not isinstance(epochs, Iterable) or isinstance(epochs, nn.Module)
    single = single or (isinstance(epochs, Mapping) and any(isinstance(key, str) for key in epochs))
    if single:
        raise TypeError(
            "Expected epochs to be networks or states, one an epoch, but got a single "
            f"{type(epochs).__name__}: give [net], a list of copies, or a generator that trains"
        )
    return epochs.items() if isinstance(epochs, Mapping) else enumerate(epochs)


def _state(snapshot: Snapshot) -> Mapping[str, Any]:
    """Return the state of a bare network."""
    if isinstance(snapshot, PruningWrapper):
        snapshot = snapshot.net
    state = snapshot.state_dict() if isinstance(snapshot, nn.Module) else snapshot
    if not isinstance(state, Mapping):
        raise TypeError(
            "Expected every epoch to be a network or its state_dict() but got a "
            f"{type(state).__name__}: give copies of the network, or torch.load what was saved"
        )
    return state


def _mean(state: Mapping[str, Any], where: Mapping[str, Tensor]) -> float | None:
    """Return the mean importance of some units, None where there are none."""
    found = [_importance(state, name, mask)[mask] for name, mask in where.items()]
    values = torch.cat(found) if found else torch.empty(0)
    return float(values.mean()) if len(values) else None


def _importance(state: Mapping[str, Any], name: str, mask: Tensor) -> Tensor:
    # The state of a wrapper has its network under "net".
    weight = state.get(f"{name}.weight", state.get(f"net.{name}.weight"))
    if weight is not None:
        value = weight.detach().cpu().double().abs()
        if mask.ndim == 1 and value.ndim > 1 and len(value) == len(mask):
            value = value.flatten(1).mean(1)
        if value.shape == mask.shape:
            return value / value[value != 0].mean().nan_to_num(1.0)
    got = "none" if weight is None else tuple(weight.shape)
    raise ValueError(
        f"Expected every epoch to have a weight at {name!r} that fits the mask's "
        f"{tuple(mask.shape)} but got {got}: give the network as it was masked, not compacted"
    )
