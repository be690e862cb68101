"""The scores of one update: what a plan says of layers becomes what the algorithm ranks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.masks.scopes import Scope
from sj_prune.masks.units import LayerScores
from sj_prune.methods.parts import GRADIENTS, Growth, Score, reads_of
from sj_prune.methods.parts.scores import Accumulating
from sj_prune.methods.view import LayerView
from sj_prune.run.state import Run
from sj_prune.run.views import view

#: in the memory of a scope's first layer: the update in which each unit was grown, or -1
GROWN_AT = "grown at"
#: in that of a layer: what each of its units was dropped by while awake
AWAKE = "awake"

logger = logging.getLogger("sj_prune")


def scores(net: nn.Module, run: Run) -> list[LayerScores]:
    """Return the scores of the scopes that have any, in their order.

    Raises:
        RuntimeError: if none has.
    """
    return _all(net, run, run.plan.drop, run.plan.grow)


def drop_scores(net: nn.Module, run: Run, drop: Score | None) -> list[LayerScores]:
    """Return the same without growth, by another drop score than the plan's."""
    return _all(net, run, drop or run.plan.drop, None)


def _all(net: nn.Module, run: Run, drop: Score | None, grow: Growth | None) -> list[LayerScores]:
    found = [_of(net, run, scope, drop, grow) for scope in run.masks.ranked.values()]
    scored = [each for each in found if each is not None]
    if not scored:
        raise RuntimeError(
            f"Expected {run.plan.name} to score some of {list(run.masks.scopes)} but none has what "
            "it is scored by: print(model.explain())"
        )
    return scored


def unscored(net: nn.Module, run: Run) -> frozenset[str]:
    """Return the scopes that are whole and that the plan says nothing of, as far as known by now.

    Only a layer without neurons can be asked before a window has been recorded, and none before it
    has gradients.
    """
    drop = run.plan.drop
    if drop is None or isinstance(drop, Accumulating) or reads_of(drop).what & GRADIENTS:
        return run.masks.uncounted
    unknown = bool(reads_of(drop).statistics)
    memory, found = dict(run.memory), set(run.masks.uncounted)
    for scope in run.masks.counted.values():
        views = [view(net, run, name) for name in scope.layers]
        if unknown and (run.anatomy.topology is None or any(v.activity for v in views)):
            continue
        with suppress(Exception):  # what a score needs may not be there before training
            if run.masks.whole(scope.name) and all(drop(layer) is None for layer in views):
                found.add(scope.name)
    run.memory = memory  # nothing begins before training does
    return frozenset(found)


def last_scores(run: Run) -> dict[str, Tensor]:
    """Return what every unit scored at the last update, ``[units]`` by scope.

    Of one that slept then it is the score it had when last awake. Only channels have any.
    """
    found = {name: _awake(scope, run.memory) for name, scope in run.masks.scopes.items()}
    return {name: score for name, score in found.items() if score is not None}


def _of(
    net: nn.Module, run: Run, scope: Scope, score: Score | None, grow: Growth | None
) -> LayerScores | None:
    masks = run.masks
    assert score is not None  # noqa: S101 (where sparsity emerges nothing is scored)
    views = {name: _declared(run, score, view(net, run, name)) for name in scope.layers}
    if _remembers(run, scope):  # in a copy: to ask leaves nothing behind
        views = {n: replace(layer, state=dict(layer.state)) for n, layer in views.items()}
    drop = _joined(run, scope, views, score, "relative")
    if drop is None:
        return None
    alive = masks.alive(scope.name)
    if _remembers(run, scope) and score is run.plan.drop:
        _remember(drop[1], views)
    growth = None
    if grow is not None:
        growth = _joined(run, scope, _moving(run, grow.score, views), grow.score, "mean")
    tie = None
    if growth is not None and grow is not None and callable(grow.ties):
        shared = grow.ties is score and len(views) == 1  # nothing to join: the same numbers
        tie = drop if shared else _joined(run, scope, views, grow.ties, "mean")
    scores = LayerScores(
        scope.name,
        torch.ones_like(alive) if run.plan.from_scratch else alive,
        _protected(run, scope, drop[0], alive),
        None if growth is None else growth[0],
        None if tie is None else tie[0],
        scope.floor,
        scope.multiple,
    )
    awake = _awake(scope, {n: layer.state for n, layer in views.items()}) if scope.sleeps else None
    return scores if awake is None else _revived(run, scores, awake)


def _moving(run: Run, score: Score, views: Mapping[str, LayerView]) -> Mapping[str, LayerView]:
    """Return the layers that can grow by their gradient, less those that are frozen or did not run.

    Where no layer has a gradient all are returned, and the score says so.
    """
    if "gradient" not in reads_of(score).what:
        return views
    weights = {name: run.masks.weight(name) for name in run.masks.layers}
    moving = {n for n, w in weights.items() if w.requires_grad and w.grad is not None}
    return {name: layer for name, layer in views.items() if not moving or name in moving}


def _joined(
    run: Run, scope: Scope, views: Mapping[str, LayerView], score: Score, usual: str
) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Return the scores of a scope's units, and those of its layers; None if none has any."""
    found = {}
    for name, layer in views.items():
        value = score(layer)
        if value is not None:
            found[name] = _units(run, name, value, layer)
    if not found:
        return None
    return scope.combine(found, reads_of(score).over or usual), found


def _declared(run: Run, score: Score, layer: LayerView) -> LayerView:
    """Return a view without gradients where nothing says that it reads them.

    Those of pruned weights are hidden then: a score would take their zeros for the truth.
    """
    if run.plan.gradient != "never" or run.plan.accumulating or GRADIENTS & reads_of(score).what:
        return layer
    return replace(layer, grad=None, bias_grad=None)


def _units(run: Run, name: str, value: Any, layer: LayerView) -> Tensor:  # noqa: ANN401
    """Return what a score said of a layer, one value a unit."""
    weight = layer.weight
    wanted = (
        f"Expected a score of layer {name!r} to be a real tensor that broadcasts to the weight's "
        f"{tuple(weight.shape)}, or ({layer.channels},), but got "
    )
    if not isinstance(value, Tensor) or value.is_complex():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{wanted}{kind}: return None where a layer has no score")
    value = value if value.is_floating_point() else value.double()
    try:
        if value.ndim == 1 and layer.transposed:
            value = layer.per_weight(value)
        return run.plan.structure.units(value, weight)
    except RuntimeError as error:
        raise ValueError(f"{wanted}{tuple(value.shape)}") from error


def _remembers(run: Run, scope: Scope) -> bool:
    return scope.sleeps or getattr(run.plan.drop, "remembered", False)


def remember(net: nn.Module, run: Run) -> None:
    """Keep, once an update, what units are dropped by as long as they are awake.

    Asleep their scores mean nothing. Of channels, and of a drop score that has an attribute
    `remembered` which is True.
    """
    if (drop := run.plan.drop) is None:
        return
    for scope in run.masks.ranked.values():
        if _remembers(run, scope):
            views = {n: _declared(run, drop, view(net, run, n)) for n in scope.layers}
            found = _joined(run, scope, views, drop, "relative")
            _remember({} if found is None else found[1], views)


def _remember(found: Mapping[str, Tensor], views: Mapping[str, LayerView]) -> None:
    for name, score in found.items():
        layer = views[name]
        before = layer.state.get(AWAKE, torch.zeros_like(score))
        layer.state[AWAKE] = torch.where(layer.mask.to(score.device), score, before.to(score))


def _protected(run: Run, scope: Scope, drop: Tensor, alive: Tensor) -> Tensor:
    """Put what has been grown lately above all others, as long as its time of grace lasts."""
    grow = run.plan.grow
    if grow is None or not grow.grace:
        return drop
    grown_at = run.memory[scope.layers[0]].get(GROWN_AT)
    if grown_at is None:
        return drop
    grown_at = grown_at.to(alive.device)
    young = alive & (grown_at >= 0) & (run.draws - grown_at <= grow.grace)
    return drop.where(~young.to(drop.device), torch.finfo(drop.dtype).max)


def _revived(run: Run, found: LayerScores, awake: Tensor) -> LayerScores:
    """Replace a growth signal that is 0 at all sleeping units by their last score awake.

    A surrogate without a derivative at rest lets no gradient through to a silent channel.
    """
    asleep = ~run.masks.alive(found.name)
    if found.grow is None or not asleep.any():
        return found
    if found.grow[asleep].any() or not awake[asleep].any():
        return found
    if found.name not in run.said:
        run.said.add(found.name)
        logger.warning(
            "the growth signal of the sleeping channels of %s is 0 (a surrogate without a "
            "derivative at rest?): they are ranked by the score they had while awake",
            ", ".join(run.masks.scopes[found.name].layers),
        )
    here, there = found.grow[~asleep].mean(), awake[~asleep].mean()
    scale = here / there if here > 0 and there > 0 else 1.0
    return replace(found, grow=torch.where(asleep, awake * scale, found.grow))


def _awake(scope: Scope, memory: Mapping[str, Mapping[str, Tensor]]) -> Tensor | None:
    """Return what the units of a scope scored while they were awake."""
    kept = {name: memory.get(name, {}).get(AWAKE) for name in scope.layers}
    found = {name: score for name, score in kept.items() if score is not None}
    return scope.combine(found, "relative") if found else None
