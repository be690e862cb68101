"""Installs the masks of an update, and records what they changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sj_prune.masks.regrow import LayerUpdate
from sj_prune.masks.select import count
from sj_prune.neurons.state import rest_channels
from sj_prune.run.history import UpdateRecord
from sj_prune.run.scores import GROWN_AT
from sj_prune.run.state import Run
from sj_prune.run.views import view

logger = logging.getLogger("sj_prune")

# A layer that keeps less than this part of its units is spoken of.
_THIN = 0.001

Updates = Mapping[str, LayerUpdate]


@torch.no_grad()
def put(net: nn.Module, run: Run, found: Updates, optimizers: Sequence[Optimizer]) -> None:
    """Make masks, weights, slots and neurons those of an update; no record is kept."""
    grow, alive = run.plan.grow, run.masks.alive
    keeps = grow is not None and grow.keeps_value
    # What is new starts anew with fresh slots, whatever was loaded or written there meanwhile.
    cleared = {n: u.grown & ~alive(n) if keeps else u.grown for n, u in found.items()}
    run.masks.install({n: u.mask for n, u in found.items()}, optimizers, cleared=cleared)
    if grow is not None and grow.initial:
        for key, where in cleared.items():
            weight = run.masks.weight(run.masks.scopes[key].layers[0])
            if where.shape == weight.shape:
                weight.masked_fill_(where.to(weight.device), grow.initial)
    rest(net, run)


def _remember_growth(net: nn.Module, run: Run, found: Updates) -> None:
    for name, update in found.items():
        memory = view(net, run, run.masks.scopes[name].layers[0]).state
        before = memory.get(GROWN_AT, torch.full_like(update.grown, -1, dtype=torch.int64))
        grown = update.grown.to(before.device)
        memory[GROWN_AT] = torch.where(grown, run.draws, before)


def rest(net: nn.Module, run: Run) -> None:
    """Let the neurons of sleeping channels go to rest, whatever state they carry."""
    coupling = run.anatomy.coupling
    for neuron, channels in run.masks.resting():
        assert coupling is not None  # noqa: S101 (only channels rest)
        rest_channels(net.get_submodule(neuron), channels, coupling.neuron_dims[neuron])


def install(
    net: nn.Module,
    run: Run,
    found: Updates,
    optimizers: Sequence[Optimizer],
    step: int,
    target: float,
    level: int = logging.INFO,
) -> None:
    """Put an update in force, count it, and record it.

    Args:
        net: the network.
        run: its run.
        found: the update, by scope.
        optimizers: whose slots follow.
        step: of the record.
        target: sparsity that was asked for.
        level: of the log line.
    """
    alive = run.masks.alive
    dropped = count([alive(n) & ~u.survivors for n, u in found.items()])
    grown = count([update.grown for update in found.values()])
    put(net, run, found, optimizers)
    if run.plan.grow is not None and run.plan.grow.grace:
        _remember_growth(net, run, found)
    run.draws += 1
    _record(run, list(found), step, target, dropped, grown, level)


def record_emergent(run: Run, step: int, level: int = logging.INFO) -> None:
    """Record what the weights have become since the last record, where sparsity emerges."""
    masks = run.masks.masks
    before = {name: run.previous[name].to(mask.device) for name, mask in masks.items()}
    dropped = count([before[n] & ~m for n, m in masks.items()])
    grown = count([m & ~before[n] for n, m in masks.items()])
    run.previous = masks
    _record(run, list(masks), step, run.plan.sparsity, dropped, grown, level)


def _record(
    run: Run,
    names: Sequence[str],
    step: int,
    target: float,
    dropped: Sequence[int],
    grown: Sequence[int],
    level: int,
) -> None:
    kept = run.masks.kept_units()
    sparsity = 1.0 - sum(kept.values()) / sum(run.masks.units().values())
    lost, won = (dict(zip(names, numbers, strict=True)) for numbers in (dropped, grown))
    pruned = run.masks.pruned_units()
    _say_thin(run, kept)
    run.history.append(UpdateRecord(step, target, sparsity, kept, lost, won, pruned))
    logger.log(
        level,
        "step %d: %s, sparsity %.4f (target %.4f), kept %d, dropped %d, grown %d",
        step,
        run.plan.name,
        sparsity,
        target,
        sum(kept.values()),
        sum(dropped),
        sum(grown),
    )


def _say_thin(run: Run, kept: Mapping[str, int]) -> None:
    """Say once which layers keep next to nothing."""
    sizes = run.masks.units()
    thin = [n for n in kept if kept[n] < _THIN * sizes[n] and f"thin {n}" not in run.said]
    if thin:
        run.said.update(f"thin {name}" for name in thin)
        listed = ", ".join(f"{name} ({kept[name]} of {sizes[name]})" for name in thin)
        logger.warning(
            "fewer than %.1f %% of the %s of %s are left, which may cut the network: another "
            "allocation (Uniform(), ERK()) leaves every layer some, skip= leaves one dense",
            100 * _THIN,
            run.plan.structure.unit,
            listed,
        )


def units_of(found: Updates) -> list[Tensor]:
    """Return what has to be the same on every rank."""
    return [mask for update in found.values() for mask in (update.mask, update.grown)]
