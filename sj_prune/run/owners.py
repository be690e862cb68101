"""Which optimizer moves what, and which of them counts."""

from __future__ import annotations

from itertools import chain

from torch.optim import Optimizer

from sj_prune.masks.keys import Place
from sj_prune.run.hooks import owned_parameters
from sj_prune.run.session import Session
from sj_prune.run.views import gamma_of


def owned_keys(session: Session, optimizer: Optimizer) -> list[str]:
    """Return the keys of the masked parameters that an optimizer moves."""
    owned = {id(p) for p in owned_parameters(optimizer)}
    return [key for key, p in session.run.masks.parameters().items() if id(p) in owned]


def moved_layers(session: Session, optimizer: Optimizer, of: str = "weight") -> list[str]:
    """Return the layers whose weight, or gamma behind them, it moves."""
    owned = {id(p) for p in owned_parameters(optimizer)}
    run = session.run
    if of == "weight":
        return [name for name in run.masks.layers if id(run.masks.weight(name)) in owned]
    gammas = {name: gamma_of(session.net, run, name) for name in run.masks.layers}
    return [name for name, gamma in gammas.items() if gamma is not None and id(gamma) in owned]


def _prunable(session: Session, optimizer: Optimizer) -> list[str]:
    """Return the layers that it moves, whether their masks are known or not."""
    owned = {id(p) for p in owned_parameters(optimizer)}
    weights = {name: Place(session.net, name).parameter for name in session.run.layers}
    return [name for name, weight in weights.items() if id(weight) in owned]


def counts(session: Session, optimizer: Optimizer) -> bool:
    """Tell whether this is the first optimizer with a masked weight, whose steps count."""
    for moves in (owned_keys, _prunable):  # groups of channels may not be known yet
        first = next((o for o in session.hooks.optimizers if moves(session, o)), None)
        if first is not None:
            return optimizer is first
    return False


def step_in_hand(session: Session, optimizer: Optimizer) -> int:
    """Return the step call in hand, counted from 1: one that steps later is still in it."""
    counted = False
    for other in session.hooks.optimizers:
        if other is optimizer:
            break
        counted = counted or counts(session, other)
    return session.run.step + (not counted)


def awaits_update(session: Session, optimizer: Optimizer) -> bool:
    """Tell whether a later step, the counting one, will score this one's dense gradients."""
    plan = session.run.plan
    due = plan.gradient == "update" and plan.schedule.due(session.run.step + 1)
    return due and not counts(session, optimizer)


def learning_rate(session: Session, name: str) -> float:
    """Return the learning rate of a layer's weight; 0 if no attached optimizer moves it."""
    weight = session.run.masks.weight(name)
    groups = chain.from_iterable(o.param_groups for o in session.hooks.optimizers)
    found = (group["lr"] for group in groups if any(p is weight for p in group["params"]))
    return float(next(found, 0.0))
