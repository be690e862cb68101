"""Masks of a network that has just been wrapped."""

from __future__ import annotations

from torch import nn

from sj_prune.masks.regrow import prune_and_regrow
from sj_prune.masks.units import LayerScores
from sj_prune.methods.parts import RandomMasks, noise
from sj_prune.run.install import install
from sj_prune.run.state import Run
from sj_prune.run.views import generator_of, view

__all__ = ["kept_units", "start_masks"]


def kept_units(run: Run, sparsity: float) -> int:
    """Return how many units are kept at a sparsity."""
    return round((1.0 - sparsity) * sum(run.masks.units().values()))


def start_masks(net: nn.Module, run: Run) -> None:
    """Install what the plan starts from, once units are known: random masks, or nothing."""
    start = run.plan.start
    if not isinstance(start, RandomMasks) or not run.masks.scopes:
        return
    sparsity = run.plan.sparsity if start.sparsity is None else start.sparsity
    layers = []
    for scope in run.masks.scopes.values():
        views = {name: view(net, run, name) for name in scope.layers}
        units = run.plan.structure.units
        found = {name: units(noise(layer), layer.weight) for name, layer in views.items()}
        alive = run.masks.alive(scope.name)
        score = scope.combine(found, "mean").to(alive.device)
        layers.append(
            LayerScores(scope.name, alive, score, floor=scope.floor, multiple=scope.multiple)
        )
    updates = prune_and_regrow(
        layers, kept_units(run, sparsity), run.plan.allocation, generator=generator_of(run)
    )
    install(net, run, dict(zip(run.masks.scopes, updates, strict=True)), (), 0, sparsity)
