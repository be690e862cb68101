"""Masks and weights never part: whoever looks at a network sees its masks applied.

Weights get written outside of the hooked step: Lookahead, SAM, an EMA that is swapped in, a dense
checkpoint, ``p.data``. None of it leaves a trace to rely on, so every look applies the masks.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sj_prune.masks.bindings import Hidden
from sj_prune.masks.keys import Place
from sj_prune.run.hooks import Stepping, owned_parameters
from sj_prune.run.session import Session
from sj_prune.run.state import Run
from sj_prune.run.views import view

logger = logging.getLogger("sj_prune")


@torch.no_grad()
def applied(session: Session) -> Run:
    """Apply the masks, slots included, before somebody looks; return the run.

    Raises:
        RuntimeError: if a masked parameter is none any more.
    """
    run = session.run
    _whole(session)
    if isinstance(run.plan.binding, Hidden):
        absorb_written(session)
        run.masks.adopt_zeros(run.masks)
        return run
    if "written" not in run.said and run.masks.written():
        _say(run)
    run.masks.look(session.hooks.slot_owners)
    return run


def reported(session: Session) -> Run:
    """As `applied`, before a report, which says too that nothing steps."""
    run = applied(session)
    if session.hooks.stepping.forwards > 1:
        _say_idle(session, session.hooks.idle)
    return run


@torch.no_grad()
def before_forward(session: Session) -> None:
    """Apply the masks before an eager forward: where a sample shows need, in train mode.

    Raises:
        RuntimeError: if a masked parameter is none any more.
    """
    run = session.run
    own = _whole(session)
    if not own or isinstance(run.plan.binding, Hidden):
        return
    on_host = all(p.device.type == "cpu" for p in own)
    if session.net.training and on_host:
        if run.masks.written(few=True):
            _say(run)
            run.masks.look(session.hooks.slot_owners)
        return
    # On a device a question would wait for it, and the answer costs no more.
    if on_host and "written" not in run.said and run.masks.written(few=True):
        _say(run)
    run.masks.look()


def _whole(session: Session) -> list[Tensor]:
    """Return the masked parameters; none where somebody else's tensors stand in for them."""
    run = session.run
    found = [Place(session.net, name).parameter for name in run.layers]
    found += run.masks.parameters().values()
    # torch.func puts tensors of its own there, which are not ours to write.
    return found if all(isinstance(p, nn.Parameter) for p in found) else []


def _say(run: Run) -> None:
    if "written" not in run.said:
        run.said.add("written")
        logger.warning(
            "somebody wrote pruned weights outside of the attached optimizer's step (Lookahead, an "
            "EMA, a dense checkpoint, p.data?): they are 0 again, now and at every look; "
            "model.masks.apply_(other_net) prunes an averaged copy"
        )


def absorb_written(session: Session) -> None:
    """Make hidden variables anew from weights that somebody wrote since the last step."""
    run, binding = session.run, session.run.plan.binding
    if not isinstance(binding, Hidden):
        return
    for name in run.masks.layers:
        if not run.memory.get(name):
            continue  # made from the weight when it is first looked at
        layer = view(session.net, run, name)
        known = binding.transform.weight(layer.state).to(layer.weight.dtype)
        written = (known != layer.weight) & ~(known.isnan() & layer.weight.isnan())
        for key, value in binding.transform.start(layer.weight, layer.state).items():
            mine = layer.state[key]
            mine.copy_(torch.where(written, value.to(mine), mine))


# ---- optimizers that do not step, or step something else -----------------------------------------


def check_held(session: Session) -> None:
    """Refuse to step once a masked parameter was replaced by one that no attached optimizer holds.

    Raises:
        RuntimeError: naming it.
    """
    stepping, parameters = session.hooks.stepping, session.run.masks.parameters()
    lost = [k for k, p in stepping.moved.items() if k in parameters and parameters[k] is not p]
    if stepping.moved and not lost:
        return
    owned = {id(p) for o in session.hooks.optimizers for p in owned_parameters(o)}
    lost = [key for key in lost if id(parameters[key]) not in owned]
    if lost:
        raise RuntimeError(
            f"Expected the attached optimizer to hold the masked parameters {lost} but they were "
            "replaced by new ones after wrapping: write into them (p.data.copy_), or release the "
            "optimizer and attach one that is built from model.parameters() now"
        )
    stepping.moved = {key: p for key, p in parameters.items() if id(p) in owned}


def forget_steps(session: Session) -> None:
    """Start to watch anew, with another set of optimizers; what they moved before is known."""
    session.hooks.stepping = Stepping(moved=session.hooks.stepping.moved)


@torch.no_grad()
def watch_steps(session: Session) -> None:
    """Say at the first due update that attached optimizers do not step while weights move."""
    hooks, stepping = session.hooks, session.hooks.stepping
    if not hooks.optimizers or len(hooks.idle) < len(hooks.optimizers):
        return
    stepping.forwards += 1
    if stepping.probe is None:
        stepping.probe = _probe(session).clone()
        due = session.run.plan.schedule.next_due(session.run.step)
        stepping.ask_at = None if due is None else due - session.run.step + 1
    if stepping.ask_at is None or stepping.forwards < stepping.ask_at:
        return
    stepping.ask_at *= 2  # a question waits for the device
    if not torch.equal(stepping.probe, _probe(session)):
        _say_idle(session, hooks.idle)


def _probe(session: Session) -> Tensor:
    places = [Place(session.net, name) for name in session.run.layers]
    weights = [place.parameter for place in places]
    chosen = next((w for w in weights if w.requires_grad), weights[0])
    return chosen.detach()[:1].flatten()


def _say_idle(session: Session, idle: list[Optimizer]) -> None:
    masked = {id(p) for p in _whole(session)}
    names = [type(o).__name__ for o in idle if masked & {id(p) for p in owned_parameters(o)}]
    if names and "idle" not in session.run.said:
        session.run.said.add("idle")
        logger.warning(
            "step() of the attached %s has never run, so masks are never updated: attach the "
            "optimizer whose step() does run (the inner one of a SAM or Lookahead)",
            ", ".join(names),
        )


# ---- the end -------------------------------------------------------------------------------------


def say_unpruned(session: Session) -> None:
    """Say that a run ends less sparse than its method asks for, and why."""
    run, hooks = session.run, session.hooks
    if hooks.idle and hooks.stepping.forwards:
        session.run.said.discard("idle")  # the last occasion
        _say_idle(session, hooks.idle)
        return
    total = sum(run.masks.units().values())
    got = run.masks.sparsity()["total"]
    if total and round((1 - got) * total) <= round((1 - run.plan.sparsity) * total) + total // 100:
        return
    due = run.plan.schedule.next_due(run.step)
    if not hooks.ever_attached and not run.step:
        if run.history:
            return  # by hand
        why = "no optimizer was ever attached, and update_masks() was not called"
    elif due is None and not (run.history or run.plan.emergent):
        why = "its schedule has no update (end=None), and update_masks() was not called"
    elif due is None or run.plan.emergent:
        return
    else:
        why = f"step {run.step} is done and the next update comes in step {due}"
    logger.warning(
        "finalize() returns a network of sparsity %.4f, where %s asks for %.4f: %s",
        got,
        run.plan.name,
        run.plan.sparsity,
        why,
    )
