"""One mask update: ready, scores, the mask algorithm, the same on all ranks, installed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sj_prune.masks.regrow import LayerUpdate, prune_and_regrow
from sj_prune.masks.select import count
from sj_prune.masks.units import LayerScores
from sj_prune.methods.parts import FromZeros, Score, reads_of
from sj_prune.neurons.convert import sensors
from sj_prune.run import processes
from sj_prune.run.anatomy import check_sensed, ensure_masks, ensure_topology
from sj_prune.run.arguments import check_sparsity
from sj_prune.run.hooks import Hooks
from sj_prune.run.install import install, record_emergent, units_of
from sj_prune.run.recording import in_window
from sj_prune.run.scores import drop_scores, remember, scores
from sj_prune.run.session import Session
from sj_prune.run.start import kept_units
from sj_prune.run.state import Run
from sj_prune.run.views import clear_sums, generator_of


def scheduled(session: Session, step: int) -> None:
    """Update inside step call `step`."""
    run = session.run
    if run.plan.emergent:
        return  # the weights decide; recorded after the step
    target = run.plan.schedule.at(step)
    if run.plan.grow is None or isinstance(run.plan.start, FromZeros):
        # A manual update may be ahead of the schedule: what it dropped does not come back;
        # nor are zeros filled that were to be kept.
        target = max(target, run.masks.sparsity()["total"])
    _update(session, step, target)
    clear_statistics(session.net, run)


@torch.no_grad()
def update_now(session: Session, sparsity: float | None) -> None:
    """Update outside of a step, to `sparsity`; the final one by default.

    Raises:
        RuntimeError: without the statistics or gradients that the plan needs, naming where.
        ValueError: for a sparsity out of reach. Network and optimizer are untouched then.
    """
    net, run = session.net, session.run
    if run.plan.emergent and sparsity is not None:
        raise ValueError(
            f"Expected sparsity=None for {run.plan.name}, whose sparsity emerges "
            f"from its prior, but got {sparsity}"
        )
    target = run.plan.sparsity if sparsity is None else sparsity
    ensure_masks(net, run)
    check_sparsity(run.plan, run.masks.counted.values(), target)
    if run.plan.emergent:
        run.masks.adopt_zeros(run.masks)
        session.agreement.check_masks(run.step)
        record_emergent(run, run.step, session.agreement.log_level)
        return
    _update(session, run.step, target, exact=sparsity is not None)
    _settle(session)


@torch.no_grad()
def install_now(session: Session, found: dict[str, LayerUpdate]) -> None:
    """Put an update in force outside of a step, whoever made it."""
    net, run = session.net, session.run
    remember(net, run)
    kept = sum(count([update.mask for update in found.values()]))
    target = 1.0 - kept / sum(update.mask.numel() for update in found.values())
    level = session.agreement.log_level
    install(net, run, found, session.hooks.slot_owners, run.step, target, level)
    _settle(session)


def _settle(session: Session) -> None:
    session.run.masks.enforce(None, session.hooks.slot_owners)
    # A window that has begun needs its statistics.
    if not in_window(session.run, bool(session.hooks.optimizers)):
        clear_statistics(session.net, session.run)


def clear_statistics(net: nn.Module, run: Run) -> None:
    """Forget what the neurons have recorded and what scores have added up."""
    for node in sensors(net).values():
        node.activity.clear()
    clear_sums(net, run)


def _update(session: Session, step: int, target: float, *, exact: bool = False) -> None:
    net, run, agreement = session.net, session.run, session.agreement
    where = f"the update in step {step}"
    agreement.prepare(where, lambda: ensure_masks(net, run))

    def score() -> dict[str, LayerUpdate]:
        check_ready(net, run, session.hooks)
        found = scores(net, run)
        keep = None if exact else _above(run, found)
        return propose(run, found, kept_units(run, target, found) if keep is None else keep, step)

    with agreement.joined():
        found = agreement.agreed(where, score, _facts)
        remember(net, run)
    install(net, run, found, session.hooks.slot_owners, step, target, agreement.log_level)


def _above(run: Run, found: Sequence[LayerScores]) -> int | None:
    """Return how many units a plan with a threshold keeps; None without one."""
    least = run.plan.threshold
    if least is None:
        return None
    numbers = count([layer.mask & (layer.drop >= least) for layer in found])
    return sum(max(layer.floor, n) for layer, n in zip(found, numbers, strict=True))


def propose(
    run: Run, found: Sequence[LayerScores], keep: int, step: int | None = None
) -> dict[str, LayerUpdate]:
    """Return the update that keeps so many units; nothing is changed.

    Args:
        run: whose plan it is.
        found: scores of the scopes that have any, in their order.
        keep: number of units.
        step: that the plan's regrowth depends on; the present one by default.
    """
    grow = run.plan.grow
    generator = generator_of(run)
    updates = prune_and_regrow(
        run.plan.structure.ranked(found, generator),
        keep,
        run.plan.allocation,
        regrow=0.0 if grow is None else grow.at(run.step if step is None else step),
        of="kept" if grow is None else grow.of,
        across_layers=grow is not None and grow.across_layers,
        exact_ties=grow is None or grow.exact_ties,
        generator=generator,
    )
    return {each.name: update for each, update in zip(found, updates, strict=True)}


def would_drop(
    session: Session, score: Score | None = None, keep: int | None = None
) -> dict[str, Tensor]:
    """Return what an update without regrowth would drop now, by layer, True = dropped.

    Args:
        session: the run and the other ranks, which all have to ask.
        score: to drop by; the plan's own by default.
        keep: number of units; those of the final sparsity by default.
    """
    net, run, agreement = session.net, session.run, session.agreement
    where = f"the choice in step {run.step + 1}"
    agreement.prepare(where, lambda: ensure_masks(net, run))

    def choose() -> dict[str, LayerUpdate]:
        by = run.plan.drop if score is None else score
        if by is not None and reads_of(by).statistics:
            _check_statistics(net, run)
        found = drop_scores(net, run, score)
        number = kept_units(run, run.plan.sparsity, found) if keep is None else keep
        # A manual update may be ahead of the schedule; nothing comes back here.
        number = min(number, sum(count([each.mask for each in found])))
        generator = generator_of(run)
        ranked = run.plan.structure.ranked(found, generator)
        updates = prune_and_regrow(ranked, number, run.plan.allocation, generator=generator)
        return {each.name: update for each, update in zip(found, updates, strict=True)}

    with agreement.joined():
        chosen = agreement.agreed(where, choose, _facts)
    kept = {scope: run.masks.alive(scope) for scope in run.masks.scopes}
    kept |= {scope: update.survivors for scope, update in chosen.items()}
    return {name: ~run.masks.layer_mask(name, kept) for name in run.masks.layers}


def _facts(found: dict[str, LayerUpdate]) -> dict[str, str]:
    return {"masks": processes.digest(*units_of(found))}


# ---- ready --------------------------------------------------------------------------------------


def check_ready(net: nn.Module, run: Run, hooks: Hooks) -> None:
    """Refuse to score without the statistics or gradients that the plan needs.

    Raises:
        RuntimeError: naming where they are missing.
    """
    _check_statistics(net, run)
    _check_gradients(run, hooks)


def _check_statistics(net: nn.Module, run: Run) -> None:
    if not run.plan.statistics:
        return
    ensure_topology(net, run)
    scoring = (run.anatomy.scoring.get(name, {}) for name in run.masks.layers)
    names = list({node: None for nodes in scoring for node in nodes})
    if not names:
        check_sensed(run)
    nodes = sensors(net)
    for name in names:
        if nodes[name].activity.count == 0:
            _check_diverged(net, run)
            raise RuntimeError(
                f"Expected statistics {sorted(run.plan.statistics)} of neuron layer {name!r} "
                "but nothing was recorded in the window before this update: run a "
                "forward in train mode, inside `with model.recording():` between updates"
            )


def _check_diverged(net: nn.Module, run: Run) -> None:
    """Refuse a window in which the potentials of some neuron were nan or infinite throughout."""
    nodes, topology = sensors(net), run.anatomy.topology
    order = nodes if topology is None else topology.facts  # as the forward runs them
    for name in order:
        activity = nodes[name].activity if name in nodes else None
        if activity is not None and activity.lost and not activity.count:
            raise RuntimeError(
                f"Expected finite statistics of the neurons but the potentials of {name!r}, the "
                f"first that failed in the order of the forward, were nan or infinite in all "
                f"{activity.lost} samples before this update: training has diverged; start again "
                "from a checkpoint before that, with a smaller learning rate or clipped gradients"
            )


def _check_gradients(run: Run, hooks: Hooks) -> None:
    if run.plan.gradient != "update":
        return
    for key, parameter in run.masks.parameters().items():
        if parameter.grad is None or not parameter.requires_grad:
            continue  # frozen, or absent from the batch: it does not grow
        if not hooks.gradient_is_dense.get(key, True) and run.masks.holds(key):
            raise RuntimeError(
                f"Expected the dense gradient of layer {key!r}, for {run.plan.name}, but pruned "
                "entries were masked in the last backward: run it inside "
                "`with model.dense_gradients():`"
            )
