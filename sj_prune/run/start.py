"""Masks of a network that has just been wrapped."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from sj_prune.masks.keys import Place
from sj_prune.masks.regrow import LayerUpdate, prune_and_regrow
from sj_prune.masks.select import count
from sj_prune.masks.units import LayerScores
from sj_prune.methods.parts import Dense, FromZeros, noise
from sj_prune.run.install import install
from sj_prune.run.scores import unscored
from sj_prune.run.state import Run
from sj_prune.run.views import generator_of, view

logger = logging.getLogger("sj_prune")


#: what part of the weights has to be 0 for a word about it
_MANY = 0.01


def say_zeros(net: nn.Module, run: Run) -> None:
    """Say how many zeros of a network that is sparse already are going to be filled."""
    plan = run.plan
    if isinstance(plan.start, FromZeros) or plan.schedule.next_due(0) is None:
        return
    if found := many_zeros(net, run):
        logger.warning(
            "%d of %d prunable weights (%.1f %%) are 0 already, and training is going to fill "
            "those zeros: start=FromZeros() keeps them",
            *found,
        )


def many_zeros(net: nn.Module, run: Run) -> tuple[int, int, float] | None:
    """Return how many of how many prunable weights are 0 already, and percent; None for few."""
    weights = [Place(net, name).parameter.detach() for name in run.layers]
    zeros, total = sum(count([w == 0 for w in weights])), sum(w.numel() for w in weights)
    return (zeros, total, 100.0 * zeros / total) if zeros > _MANY * total else None


def _keep_zeros(net: nn.Module, run: Run) -> None:
    """Prune what is 0 already.

    Raises:
        ValueError: if a layer has too few others.
    """
    found = {}
    for name, zero in run.masks.zeros().items():
        if name in run.masks.uncounted:
            continue
        scope, kept = run.masks.scopes[name], ~zero
        if int(kept.sum()) < scope.floor:
            raise ValueError(
                f"Expected at least {scope.floor} {run.plan.structure.unit} of {name!r} that are "
                f"not 0, for start=FromZeros(), but got {int(kept.sum())}: name it in skip="
            )
        found[name] = LayerUpdate(kept, torch.zeros_like(kept))
    units = sum(run.masks.units().values())
    sparsity = 1.0 - sum(count([u.survivors for u in found.values()])) / units
    install(net, run, found, (), 0, sparsity)


def kept_units(run: Run, sparsity: float, scored: Sequence[LayerScores]) -> int:
    """Return how many units are kept at a sparsity, of scopes that are scored.

    The others do not count where they are whole; pruned ones do, and keep what they have.
    """
    rest = run.masks.scopes.keys() - {each.name for each in scored}
    masks = [mask for mask in map(run.masks.alive, rest) if not mask.all()]
    total = sum(each.size for each in scored) + sum(mask.numel() for mask in masks)
    return round((1.0 - sparsity) * total) - sum(count(masks))


def start_masks(net: nn.Module, run: Run) -> None:
    """Install what the plan starts from, once units are known: random masks, or nothing."""
    start = run.plan.start
    if isinstance(start, Dense):
        return
    run.masks.uncounted = unscored(net, run)
    if not run.masks.counted:
        return
    if isinstance(start, FromZeros):
        _keep_zeros(net, run)
        return
    sparsity = run.plan.sparsity if start.sparsity is None else start.sparsity
    layers = []
    for scope in run.masks.counted.values():
        views = {name: view(net, run, name) for name in scope.layers}
        units = run.plan.structure.units
        found = {name: units(noise(layer), layer.weight) for name, layer in views.items()}
        alive = run.masks.alive(scope.name)
        score = scope.combine(found, "mean").to(alive.device)
        layers.append(
            LayerScores(scope.name, alive, score, floor=scope.floor, multiple=scope.multiple)
        )
    generator = generator_of(run)
    updates = prune_and_regrow(
        run.plan.structure.ranked(layers, generator),
        kept_units(run, sparsity, layers),
        run.plan.allocation,
        generator=generator,
    )
    install(net, run, dict(zip(run.masks.counted, updates, strict=True)), (), 0, sparsity)
