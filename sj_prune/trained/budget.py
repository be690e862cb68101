"""A budget of operations or parameters, and the sparsity that meets it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from sj_prune.masks.units import LayerScores
from sj_prune.reports import cost
from sj_prune.run.install import put
from sj_prune.run.scores import scores
from sj_prune.run.update import propose
from sj_prune.wrapper import PruningWrapper

logger = logging.getLogger("sj_prune")

#: what a budget may be a fraction of
BUDGETS = ("sparsity", "parameters", "macs", "synops")
_CLOSE = 0.003  # of the target: near enough to stop searching
_PROMISED = 0.01
_NEIGHBORS = 8


def check_budget(budget: object) -> tuple[str, float]:
    """Return the one entry of a budget.

    Raises:
        TypeError: if it is no mapping.
        ValueError: for another name, several of them, or no fraction.
    """
    if not isinstance(budget, Mapping):
        raise TypeError(
            f'Expected budget to be a mapping such as {{"synops": 0.3}} but got {budget!r}'
        )
    if len(budget) != 1 or next(iter(budget)) not in BUDGETS:
        raise ValueError(
            f"Expected budget to have one key among {BUDGETS}, or hardware such as "
            f'{{"chip": "speck2f"}} or {{"fan_in": 64}}, but got {budget!r}'
        )
    ((name, fraction),) = budget.items()
    number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
    inside = number and (0 <= fraction < 1 if name == "sparsity" else 0 < fraction <= 1)
    if not inside:
        allowed = "[0, 1)" if name == "sparsity" else "(0, 1]: the part that remains"
        raise ValueError(f"Expected {name} in {allowed} but got {fraction!r}")
    return name, float(fraction)


def spent(model: PruningWrapper, kind: str, args: tuple[Any, ...]) -> float:
    """Return what is left of a budget under the present masks, as a number of its own kind.

    Args:
        model: the wrapper.
        kind: "parameters", "macs" or "synops".
        args: positional inputs to measure on.
    """
    if kind == "parameters":
        everything = sum(p.numel() for p in model.net.parameters())
        return float(everything - model.masks.removed_parameters())
    found = cost.measure(model.net, args, masks=model.masks.element_masks()).values()
    return sum(c.total_macs if kind == "macs" else c.synops for c in found)


def sparsity_for(
    model: PruningWrapper,
    kind: str,
    fraction: float,
    args: tuple[Any, ...],
    prepare: Callable[[], object],
) -> float:
    """Return the sparsity at which an update leaves `fraction` of what the dense network spends.

    Bisection over sparsities; at each, the update is made, measured and taken back. SynOps are
    measured on the spikes of the pruned network, so they are not monotone to the last digit. Where
    groups keep multiples of channels and none of these masks meets the budget, the nearest that
    does not exceed it is taken.

    Args:
        model: a wrapper with all units kept and its statistics calibrated.
        kind: as for `spent`.
        fraction: of the dense network's.
        args: positional inputs to measure on.
        prepare: called under the masks before measuring (norm statistics).

    Raises:
        ValueError: if even the sparsest masks spend more, and if the dense network spends nothing.
    """
    found = scores(model.net, model.session.run)
    dense = spent(model, kind, args)
    target = fraction * dense
    if not dense:
        raise ValueError(
            f"Expected a network that spends {kind} on the first batch but it spends none: no "
            "layer gets spikes (silent neurons, or analog inputs throughout); give the budget in "
            "macs or parameters"
        )

    multiple = max(score.multiple for score in found)
    measured: dict[str, float] = {}

    def left_at(keep: int) -> float:
        with tried(model, found, keep):
            # Masks of near numbers may be the same where multiples are kept.
            key = str(keep if multiple == 1 else model.masks.pruned_units())
            if key not in measured:
                if kind == "synops":  # the others depend on no spike
                    prepare()
                measured[key] = spent(model, kind, args)
            return measured[key]

    total = sum(score.size for score in found)
    allocation = model.session.run.plan.allocation
    least = allocation.least([s.size for s in found], [s.floor for s in found])
    low, high = least, total
    lowest = left_at(low)
    if lowest > target * (1 + _PROMISED):
        raise ValueError(
            f"Expected a budget of at least {lowest / target * fraction:.4g} of the {kind}, which "
            f"the sparsest masks ({least} of {total} units) spend, but got {fraction:g}: raise it, "
            "name fewer layers in skip, or lower min_keep or multiple"
        )
    tries = _search(left_at, target, {low: lowest, high: left_at(high)}, multiple)
    keep, left = min(tries.items(), key=lambda item: (abs(item[1] - target), item[0]))
    if abs(left - target) <= _PROMISED * target:
        return 1.0 - keep / total
    if multiple > 1:
        keep, left = max(tries.items(), key=lambda item: (item[1] <= target, item[1]))
        logger.info(
            "groups keep multiples of channels: the masks nearest to the budget of %s that do not "
            "exceed it leave %.4g of the dense network, %.2f %% below the budget of %.4g",
            kind,
            left / dense,
            100 * (target - left) / target,
            fraction,
        )
    else:
        logger.warning(
            "the masks nearest to the budget of %s miss it by %.2f %%: a single unit changes it by "
            "more, or norm statistics estimated anew do",
            kind,
            100 * abs(left - target) / target,
        )
    return 1.0 - keep / total


def _search(
    left_at: Callable[[int], float], target: float, found: dict[int, float], multiple: int
) -> dict[int, float]:
    """Return what was left at the numbers of units that were tried.

    Args:
        left_at: tries one.
        target: to come near to.
        found: what is left at the lowest and at the highest number.
        multiple: of units that groups keep: within one, rounding up here and down there may cost
            more or less.
    """
    low, high = least, total = min(found), max(found)

    def miss() -> float:
        return min(abs(left - target) for left in found.values())

    while high - low > 1 and miss() > _CLOSE * target:
        middle = (low + high) // 2
        found[middle] = left = left_at(middle)
        low, high = (middle, high) if left < target else (low, middle)
    # Spikes answer to pruning: near the target less may cost more. So look around.
    nearest = min(found, key=lambda keep: (abs(found[keep] - target), keep))
    for keep in _around(nearest, least, total, max(_NEIGHBORS, 2 * multiple * (multiple > 1))):
        if miss() <= _PROMISED * target:
            break
        if keep not in found:
            found[keep] = left_at(keep)
    return found


def _around(keep: int, least: int, total: int, farthest: int) -> list[int]:
    near = [keep + sign * distance for distance in range(1, farthest + 1) for sign in (1, -1)]
    return [number for number in near if least <= number <= total]


@contextmanager
def tried(model: PruningWrapper, found: list[LayerScores], keep: int) -> Iterator[None]:
    """Install the masks of an update for a while, and take them back."""
    masks, run = model.masks, model.session.run
    saved = {key: p.detach().clone() for key, p in masks.parameters().items()}
    buffers = {b: b.detach().clone() for b in model.net.buffers()}
    try:
        put(model.net, run, propose(run, found, keep), model.optimizers)
        masks.enforce(None, model.optimizers)
        yield
    finally:
        masks.install({name: torch.ones_like(masks.alive(name)) for name in masks.scopes})
        with torch.no_grad():
            for key, parameter in masks.parameters().items():
                parameter.copy_(saved[key])
            for buffer, value in buffers.items():
                buffer.copy_(value)
