"""A budget of operations or parameters, and the sparsity that meets it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from sj_prune import cost
from sj_prune.masks.ranking import LayerScores
from sj_prune.wrapper import PruningWrapper

__all__ = ["BUDGETS", "check_budget", "sparsity_for", "spent"]

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
        raise ValueError(f"Expected budget to have one key among {BUDGETS} but got {budget!r}")
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
        kind: "parameters", "macs" (spikes multiplied like any number, pruned weights not counted)
            or "synops".
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
    prepare: Callable[[], None],
) -> float:
    """Return the sparsity at which an update leaves `fraction` of what the dense network spends.

    Bisection over sparsities; at each, the update is made, measured and taken back. SynOps are
    measured on the spikes of the pruned network, so they are not monotone to the last digit.

    Args:
        model: a wrapper with all units kept and its statistics calibrated.
        kind: as for `spent`.
        fraction: of the dense network's.
        args: positional inputs to measure on.
        prepare: called under the masks before measuring (norm statistics).

    Raises:
        ValueError: if even the sparsest masks spend more, and if the dense network spends nothing.
    """
    scores = model.updater.scorer.scores()
    dense = spent(model, kind, args)
    target = fraction * dense
    if not dense:
        raise ValueError(
            f"Expected a network that spends {kind} on the first batch but it spends none: no "
            "layer gets spikes (silent neurons, or analog inputs throughout); give the budget in "
            "macs or parameters"
        )

    def left_at(keep: int) -> float:
        with tried(model, scores, keep):
            if kind == "synops":  # the others depend on no spike
                prepare()
            return spent(model, kind, args)

    total = sum(model.masks.units().values())
    least = model.method.allocation.least([s.size for s in scores], [s.floor for s in scores])
    low, high = least, total
    lowest = left_at(low)
    if lowest > target * (1 + _PROMISED):
        raise ValueError(
            f"Expected a budget of at least {lowest / target * fraction:.4g} of the {kind}, which "
            f"the sparsest masks ({least} of {total} units) spend, but got {fraction:g}: raise it, "
            "name fewer layers in skip, or lower min_keep"
        )
    best = min((abs(lowest - target), low), (abs(left_at(high) - target), high))
    while high - low > 1 and best[0] > _CLOSE * target:
        middle = (low + high) // 2
        left = left_at(middle)
        best = min(best, (abs(left - target), middle))
        low, high = (middle, high) if left < target else (low, middle)
    # Spikes answer to pruning: near the target less may cost more. So look around.
    for keep in _around(best[1], least, total):
        if best[0] <= _PROMISED * target:
            break
        best = min(best, (abs(left_at(keep) - target), keep))
    if best[0] > _PROMISED * target:
        logger.warning(
            "the masks nearest to the budget of %s miss it by %.2f %%: a single unit changes it by "
            "more, or norm statistics estimated anew do",
            kind,
            100 * best[0] / target,
        )
    return 1.0 - best[1] / total


def _around(keep: int, least: int, total: int) -> list[int]:
    near = [keep + sign * distance for distance in range(1, _NEIGHBORS + 1) for sign in (1, -1)]
    return [number for number in near if least <= number <= total]


@contextmanager
def tried(model: PruningWrapper, scores: list[LayerScores], keep: int) -> Iterator[None]:
    """Install the masks of an update for a while, and take them back."""
    saved = {key: p.detach().clone() for key, p in model.masks.parameters().items()}
    buffers = {b: b.detach().clone() for b in model.net.buffers()}
    masks = model.masks
    try:
        model.updater.apply(model.updater.propose(scores, keep))
        yield
    finally:
        masks.install({name: torch.ones_like(masks.alive(name)) for name in masks.scopes})
        with torch.no_grad():
            for key, parameter in masks.parameters().items():
                parameter.copy_(saved[key])
            for buffer, value in buffers.items():
                buffer.copy_(value)
