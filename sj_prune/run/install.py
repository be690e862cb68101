"""Installs the masks of an update, and records what they changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

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
Named = Mapping[str, Tensor]


@torch.no_grad()
def put(
    net: nn.Module, run: Run, found: Updates, optimizers: Sequence[Optimizer]
) -> dict[str, Tensor]:
    """Make masks, weights, slots and neurons those of an update; no record is kept.

    Returns:
        Which units start anew, by scope.
    """
    grow, masks = run.plan.grow, run.masks
    keeps = grow is not None and grow.keeps_value
    # What is new starts anew with fresh slots, whatever was loaded or written there meanwhile. A
    # channel that is regrown in the update that drops it never slept.
    cleared = {
        name: torch.gt(u.grown, masks.alive(name))
        if keeps or masks.scopes[name].sleeps
        else u.grown
        for name, u in found.items()
    }
    masks.install({n: u.mask for n, u in found.items()}, optimizers, cleared=cleared)
    if grow is not None and grow.initial:
        for key, where in cleared.items():
            weight = masks.weight(masks.scopes[key].layers[0])
            if where.shape == weight.shape:
                weight.masked_fill_(where.to(weight.device), grow.initial)
    rest(net, run)
    return cleared


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
    survivors = {name: update.survivors for name, update in found.items()}
    grown = {name: update.grown for name, update in found.items()}
    exchanged = _exchange(run, run.masks.alive, survivors, grown)
    run.masks.keep_still(put(net, run, found, optimizers))
    _leave_out(run, run.masks.ranked.keys() - found.keys(), level)
    if run.plan.grow is not None and run.plan.grow.grace:
        _remember_growth(net, run, found)
    run.draws += 1
    _record(run, step, target, exchanged, level)


def _leave_out(run: Run, unscored: Iterable[str], level: int) -> None:
    """Leave what is whole and has no score out of the count, and say so when that changes."""
    left = frozenset(filter(run.masks.whole, unscored))
    if left != run.masks.uncounted:
        logger.log(level, "dense and not counted, for want of a score: %s", sorted(left) or "none")
    run.masks.uncounted = left


def record_emergent(run: Run, step: int, level: int = logging.INFO) -> None:
    """Record what the weights have become since the last record, where sparsity emerges."""
    masks = run.masks.masks
    before = {name: run.previous[name].to(mask.device) for name, mask in masks.items()}
    grown = {n: torch.gt(m, before[n]) for n, m in masks.items()}
    run.previous = masks
    exchanged = _exchange(run, before.__getitem__, masks, grown)
    _record(run, step, run.plan.sparsity, exchanged, level)


def _exchange(
    run: Run, alive: Callable[[str], Tensor], survivors: Named, grown: Named
) -> dict[str, dict[str, int]]:
    """Count what an update drops and grows, and what it keeps of the growth before.

    What it grows is remembered for the next one.
    """
    young = run.regrown or {}
    kept = {}
    for name, places in young.items():
        mask = survivors[name] if name in survivors else alive(name)
        kept[name] = mask.take(places.to(mask.device))
    lost = {name: torch.gt(alive(name), mask) for name, mask in survivors.items()}
    found = {"dropped": lost, "grown": grown, "survived": kept}
    numbers = {
        kind: dict(zip(masks, count(masks.values()), strict=True)) for kind, masks in found.items()
    }
    run.regrown = {name: _places(grown[name], n) for name, n in numbers["grown"].items()}
    return numbers


def _places(grown: Tensor, number: int) -> Tensor:
    """Return flat indices of so many True entries: fewer bytes than a mask, and most often none."""
    if not number:
        return torch.empty(0, dtype=torch.int64, device=grown.device)
    return grown.flatten().nonzero().flatten()


def _record(
    run: Run,
    step: int,
    target: float,
    exchanged: Mapping[str, dict[str, int]],
    level: int,
) -> None:
    kept = run.masks.kept_units()
    sparsity = 1.0 - sum(kept.values()) / sum(run.masks.units().values())
    pruned = run.masks.pruned_units()
    _say_thin(run, kept)
    record = UpdateRecord(step, float(target), sparsity, kept, pruned=pruned, **exchanged)
    run.history.append(record)
    logger.log(
        level,
        "step %d: %s, sparsity %.4f (target %.4f), kept %d, dropped %d, grown %d",
        step,
        run.plan.name,
        sparsity,
        target,
        sum(kept.values()),
        sum(record.dropped.values()),
        sum(record.grown.values()),
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
