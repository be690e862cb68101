"""The scores of one update: what a method says of layers becomes what the algorithm ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sj_prune.masks.ranking import LayerScores
from sj_prune.methods.base import LayerView

if TYPE_CHECKING:
    from sj_prune.wrapper import PruningWrapper

__all__ = ["Scorer"]

logger = logging.getLogger("sj_prune")


class Scorer:
    """Asks the wrapper's method for the scores of every layer or group.

    Args:
        wrapper: whose network it is.
        view: returns what the method sees of a layer.
    """

    def __init__(self, wrapper: PruningWrapper, view: Callable[[str], LayerView]) -> None:
        self.wrapper = wrapper
        self.view = view
        self._warned: set[str] = set()

    def scores(self) -> list[LayerScores]:
        """Return the scores of all scopes of the masks, in their order."""
        return [self._revived(self._of(scope)) for scope in self.wrapper.masks.scopes]

    def last(self) -> dict[str, Tensor]:
        """Return what every unit scored at the last update, ``[units]`` by scope.

        Of one that slept then it is the score it had when last awake. Only channels have any.
        """
        found = {scope: self._awake(scope) for scope in self.wrapper.masks.scopes}
        return {scope: score for scope, score in found.items() if score is not None}

    def _of(self, scope: str) -> LayerScores:
        method, masks = self.wrapper.method, self.wrapper.masks
        views = {member: self.view(member) for member in masks.members(scope)}
        drop = self._combined(scope, views, method.drop_score, "relative")
        if drop is None:
            raise RuntimeError(
                f"Expected {type(method).__name__} to score {scope!r} but none of its layers "
                f"{list(views)} has what it is scored by: print(model.explain()), and name them in "
                "skip="
            )
        for name, score in drop[1].items():
            masks.remember(name, score, views[name].state)
        grow = self._combined(scope, views, method.grow_score, self._how())
        tie = None
        if grow is not None:
            tie = self._combined(scope, views, method.tie_score, "mean")
        alive = masks.alive(scope)
        return LayerScores(
            scope,
            torch.ones_like(alive) if method.from_scratch else alive,
            drop[0],
            None if grow is None else grow[0],
            None if tie is None else tie[0],
            masks.floor(scope),
            masks.multiple(scope),
        )

    def _how(self) -> str:
        return "sum" if self.wrapper.method.growth_sum else "mean"

    def _combined(
        self,
        scope: str,
        views: Mapping[str, LayerView],
        score: Callable[[LayerView], Tensor | None],
        how: str,
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Return the scores of a scope's units, and those of its layers; None if none has any."""
        structure = self.wrapper.method.structure
        found = {}
        for name, view in views.items():
            value = score(view)
            if value is not None:
                found[name] = structure.units(value, view.weight)
        return (self.wrapper.masks.combine(scope, found, how), found) if found else None

    def _revived(self, scores: LayerScores) -> LayerScores:
        """Replace a growth signal that is 0 at all sleeping units by their last score awake.

        A surrogate without a derivative at rest lets no gradient through to a silent channel.
        """
        masks, name = self.wrapper.masks, scores.name
        asleep = ~masks.alive(name)
        awake = self._awake(name)
        if scores.grow is None or awake is None or not asleep.any():
            return scores
        if scores.grow[asleep].any() or not awake[asleep].any():
            return scores
        if name not in self._warned:
            self._warned.add(name)
            logger.warning(
                "the growth signal of the sleeping channels of %s is 0 (a surrogate without a "
                "derivative at rest?): they are ranked by the score they had while awake",
                ", ".join(masks.members(name)),
            )
        here, there = scores.grow[~asleep].mean(), awake[~asleep].mean()
        scale = here / there if here > 0 and there > 0 else 1.0
        return replace(scores, grow=torch.where(asleep, awake * scale, scores.grow))

    def _awake(self, scope: str) -> Tensor | None:
        """Return what the units of a scope scored while they were awake."""
        masks, state = self.wrapper.masks, self.wrapper.updater.state
        kept = {m: state.get(m, {}).get("awake") for m in masks.members(scope)}
        found = {m: score for m, score in kept.items() if score is not None}
        return masks.combine(scope, found, "relative") if found else None
