"""The life of one optimizer step: updates, penalties, masked gradients, strict masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sj_prune.masks.bindings import Hidden
from sj_prune.methods.view import NetView
from sj_prune.run import gates, looks, spikes
from sj_prune.run.anatomy import (
    check_sensed,
    ensure_masks,
    learn_example,
    learn_from,
    learn_seen,
)
from sj_prune.run.holding import after_step, before_step
from sj_prune.run.hooks import OptimizerHooks, owned_parameters, unscale_, with_inner
from sj_prune.run.idle import note_running
from sj_prune.run.install import record_emergent
from sj_prune.run.owners import (
    awaits_update,
    counts,
    learning_rate,
    moved_layers,
    owned_keys,
    step_in_hand,
)
from sj_prune.run.recording import close_passes, in_window, switch
from sj_prune.run.session import Session
from sj_prune.run.update import clear_statistics, scheduled, would_drop
from sj_prune.run.views import gamma_of, view


def attach(session: Session, optimizer: Optimizer, scaler: Any = None) -> None:  # noqa: ANN401
    """Hook into `optimizer`, and make its slots true to the masks."""
    if scaler is not None and session.run.plan.gates is not None:
        raise ValueError(
            f"Expected scaler=None for {session.run.plan.name}, whose gates of neurons know "
            "nothing of a scaled loss: train in bfloat16 or float32"
        )
    spikes.scale_with(session.net, session.run, scaler)
    parts = [partial(part, session) for part in (_before, _after, _evaluate, _begin)]
    if not session.run.plan.emergent:
        session.run.masks.enforce(None, with_inner([optimizer]))
    session.hooks.attach(OptimizerHooks(optimizer, *parts))
    looks.forget_steps(session)
    switch_recording(session)


def switch_recording(session: Session) -> None:
    """Let the neurons record what the next update scores, and hide gradients of what is pruned."""
    switch(session.net, session.run, session.recorder, bool(session.hooks.optimizers))
    spikes.follow_masks(session.run)
    hide_gradients(session)


def before_forward(session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Apply the masks, and learn from a forward about to run, if it is the first to tell."""
    compiling = torch.compiler.is_compiling()  # then the next step makes up for it
    if not compiling:
        looks.before_forward(session)
    if learn_from(session.net, session.run, args, kwargs):
        switch_recording(session)
    if torch.is_grad_enabled() and not compiling:
        check_sensed(session.run)
        hide_gradients(session)  # of what trains now
        looks.watch_steps(session)


def learn_now(session: Session, example_input: Any) -> None:  # noqa: ANN401
    """Learn from an example; without one, from the shapes of the inputs seen so far."""
    if example_input is None:
        learn_seen(session.net, session.run)
    else:
        learn_example(session.net, session.run, example_input)
    switch_recording(session)


@contextmanager
def recording(session: Session) -> Iterator[None]:
    """Record afresh inside this block, whatever the schedule says."""
    clear_statistics(session.net, session.run)
    session.recorder.now = True
    switch_recording(session)
    try:
        yield
    finally:
        session.recorder.now = False
        switch_recording(session)


@contextmanager
def dense_gradients(session: Session) -> Iterator[None]:
    """Keep the gradients of pruned weights inside this block."""
    hooks = session.hooks
    before, hooks.forced_dense = hooks.forced_dense, True
    try:
        yield
    finally:
        hooks.forced_dense = before


# ---- gradients of pruned weights ----------------------------------------------------------------


def hide_gradients(session: Session) -> None:
    """Hide the gradients of pruned entries from here on."""
    session.hooks.hide_gradients(session.run.masks.gated(), partial(_gate, session))


def _gate(session: Session, key: str, grad: Tensor) -> Tensor:
    dense = _wants_dense_gradient(session)
    session.hooks.gradient_is_dense[key] = dense
    return grad if dense else session.run.masks.zero_pruned(key, grad)


def _wants_dense_gradient(session: Session) -> bool:
    plan = session.run.plan
    if session.hooks.forced_dense or plan.gradient == "always":
        return True
    if plan.gradient == "never":
        return False
    return not session.hooks.optimizers or plan.schedule.due(session.run.step + 1)


# ---- around a step ------------------------------------------------------------------------------


def _begin(session: Session, _: Optimizer) -> None:
    looks.check_held(session)
    looks.absorb_written(session)


def _before(session: Session, optimizer: Optimizer, first: bool) -> None:
    net, run, plan = session.net, session.run, session.run.plan
    ensure_masks(net, run, optional=True)
    note_running(net, run)
    if isinstance(plan.binding, Hidden):
        for name in moved_layers(session, optimizer):
            view(net, run, name)  # hidden variables start from the weights before the first step
    close_passes(net, session.recorder)
    counted = first and counts(session, optimizer)
    due = counted and plan.schedule.due(run.step + 1)
    penalizes = any(penalty.gradient is not None for penalty in plan.penalties)
    observes = first and plan.accumulating and in_window(run, bool(session.hooks.optimizers))
    prepares = counted and any(penalty.prepare is not None for penalty in plan.penalties)
    if penalizes or prepares or observes or (due and plan.gradient != "never"):
        unscale_(optimizer)
    if observes:
        for name in moved_layers(session, optimizer):
            for score in plan.accumulating:
                score.add(view(net, run, name))
    if counted:
        _decide(session, due)
    if penalizes:
        _penalize(session, optimizer)
    if not (plan.emergent or awaits_update(session, optimizer)):
        hooks = session.hooks.of(optimizer)
        before_step(run.masks, owned_keys(session, optimizer), hooks)


def _decide(session: Session, due: bool) -> None:
    """Let penalties prepare, and update, if it is time."""
    run = session.run
    prepare = [p.prepare for p in run.plan.penalties if p.prepare is not None]
    for part in prepare:
        part(_net_view(session))
    if run.plan.gates is not None:
        gates.learn(session.net, run)
    if due:
        scheduled(session, run.step + 1)
    if due and run.plan.grow is not None and run.plan.grow.skips_step:
        for parameter in chain.from_iterable(map(owned_parameters, session.hooks.optimizers)):
            parameter.grad = None


def _net_view(session: Session) -> NetView:
    return NetView(
        names=tuple(session.run.masks.layers),
        layer=partial(view, session.net, session.run),
        step=session.run.step + 1,
        memory=session.run.network_memory,
        would_drop=partial(would_drop, session),
        learning_rate=partial(learning_rate, session),
        synops=partial(spikes.mean_synops, session.run),
    )


def _penalize(session: Session, optimizer: Optimizer) -> None:
    """Add the gradient terms, now: the update may have brought the masks of this rank."""
    step = step_in_hand(session, optimizer)
    for penalty in session.run.plan.penalties:
        if penalty.gradient is not None:
            for name in moved_layers(session, optimizer, penalty.of):
                layer = view(session.net, session.run, name, step)
                gamma = gamma_of(session.net, session.run, name)
                moved = layer.grad if penalty.of == "weight" or gamma is None else gamma.grad
                if moved is not None:  # frozen, or absent from the batch: it does not step
                    penalty.gradient(layer)


def _evaluate(session: Session, optimizer: Optimizer) -> None:
    """Mask the weights for an evaluation inside a step: LBFGS moves all along its history."""
    if not session.run.plan.emergent:
        session.run.masks.enforce(owned_keys(session, optimizer), ())


def _after(session: Session, optimizer: Optimizer) -> None:
    run, masks = session.run, session.run.masks
    keys = owned_keys(session, optimizer)
    written = _absorb(session, optimizer)
    counted = counts(session, optimizer)
    for part in (finish := [p.finish for p in run.plan.penalties if counted and p.finish]):
        part(_net_view(session))
    if run.plan.emergent:
        masks.adopt_zeros(keys)
    else:
        after_step(masks, keys, session.hooks.of(optimizer), written=written or bool(finish))
    if counted:
        _count(session)


def _absorb(session: Session, optimizer: Optimizer) -> bool:
    """Let hidden variables take over what the step did to the weights; then the proximal terms.

    Returns:
        Whether the plan has either, and weights may have been written.
    """
    run, binding = session.run, session.run.plan.binding
    proximal = [p.proximal for p in run.plan.penalties if p.proximal is not None]
    if not (proximal or isinstance(binding, Hidden)):
        return False
    step = step_in_hand(session, optimizer)
    for name in moved_layers(session, optimizer):
        layer = view(session.net, run, name, step)
        if isinstance(binding, Hidden):
            binding.transform.absorb(layer.state, layer.weight)
        for part in proximal:
            part(layer, learning_rate(session, name))
        weight = run.masks.weight(name).detach()
        if not layer.weight.is_set_to(weight):  # silent rows are shown as they are awake: a copy
            weight.copy_(layer.weight)
        if isinstance(binding, Hidden):
            layer.weight.copy_(binding.transform.weight(layer.state))
    return True


def _count(session: Session) -> None:
    """Count one completed step of the optimizer that owns the masked weights."""
    run = session.run
    run.step += 1
    if run.meter is not None:
        run.meter.clear()
    if run.plan.emergent and run.plan.schedule.due(run.step):
        session.agreement.check_masks(run.step)
        record_emergent(run, run.step, session.agreement.log_level)
    switch_recording(session)
