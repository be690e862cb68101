"""prune(): a trained network, a loader, a method; one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune._checks import check_steps
from sj_prune.chips.limits import Chip
from sj_prune.masks.bindings import AtUpdates, Strict
from sj_prune.masks.schedule import Manual
from sj_prune.methods.base import ScheduledMethod
from sj_prune.methods.parts import Dense
from sj_prune.methods.plan import Plan, Rewrite, plan_of
from sj_prune.network.restore import restored_on_error
from sj_prune.reports import cost
from sj_prune.reports.measured import report as measured
from sj_prune.reports.report import Report
from sj_prune.run.start import many_zeros
from sj_prune.run.update import check_ready, install_now
from sj_prune.run.views import view
from sj_prune.trained.budget import check_budget, sparsity_for
from sj_prune.trained.calibration import (
    Loss,
    batches_of,
    calibrate,
    inputs_of,
    look_again,
    mean_cross_entropy,
)
from sj_prune.trained.hardware import chip_in, fitted
from sj_prune.trained.norms import estimate, say_few
from sj_prune.wrapper import PruningWrapper

logger = logging.getLogger("sj_prune")

Batches = list[tuple[tuple[Any, ...], Any]]


class Pruned(NamedTuple):
    """What `prune` returns."""

    net: nn.Module
    report: Report


def prune(
    net: nn.Module,
    loader: Iterable[Any],
    method: Any,  # noqa: ANN401
    *,
    batches: int = 16,
    budget: Mapping[str, Any] | None = None,
    loss: Loss = mean_cross_entropy,
    fine_tune: Callable[[PruningWrapper], object] | None = None,
    renormalize: bool = True,
    skip: Iterable[str] = (),
    seed: int = 0,
) -> Pruned:
    """Prune a trained network at once.

    ::

        net, report = sj_prune.prune(net, loader, sj_prune.methods.FilterNorm(sparsity=0.5))
        small = sj_prune.compact(net, x_seq)     # channel methods: a smaller network

    Statistics and gradients that the method scores are calibrated on some batches in eval mode,
    masks are installed, the running statistics of batch norms are estimated anew, and, if asked
    for, the network is fine-tuned with the masks on. Schedules do not count: there is one update.
    Modes and gradients are left as they are, neurons are reset.

    Args:
        net: a trained SpikingJelly network, in multi-step mode. Pruned in place.
        loader: yields ``(x, y)`` as the network and the loss take them, or `x` alone where no
            gradient is scored; the first `batches` of it are held in memory, on the network's
            device, and no more are drawn.
        method: any scoring method, single weights or channels.
        batches: how many batches to calibrate on.
        budget: instead of the method's sparsity, what is to remain of the dense network:
            ``{"synops": 0.3}``, ``{"macs": 0.5}`` or ``{"parameters": 0.1}``, as the report counts
            them, met within 1 % on the first batch, before any fine-tuning, unless single channels
            are larger than that (then a warning says so) or groups keep multiples of channels (then
            it is the nearest below, and one line at INFO says which); ``{"sparsity": 0.9}``, what
            goes; or hardware that the network is to fit, pruned as little as that takes:
            ``{"chip": "speck2f"}`` or a `sj_prune.chips.Chip`, or limits of one's own among
            `fan_in`, `fan_out`, `mean_fan_in`, `mean_fan_out`, `cores`, `neurons_per_core` and
            `synapses_per_core` (each layer on one core where `cores` is not given).
        loss: of methods that score gradients, called as ``loss(output, y)``; by default the cross
            entropy of the output's mean over time.
        fine_tune: called with the wrapped network, to train it: ``model.attach(optimizer)`` and
            run any loop; masks stay as they are.
        renormalize: estimate the batch norms anew after pruning.
        skip: names of layers that stay dense.
        seed: of every random choice.

    Returns:
        The network, stock SpikingJelly classes with zeros burnt in, and the report of what was
        done to it, measured on the first batch: the dense network before it was pruned, and what
        is returned.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: for a method that cannot prune at once, an empty loader or one with nan or
            infinite numbers, a budget out of reach. The network is as it was then, and likewise if
            a callback raises.
    """
    plan = at_once(method)
    chip = chip_in(budget)
    known = budget is None or chip is not None
    kind, value = ("sparsity", plan.sparsity) if known else check_budget(budget)
    if (only := plan.structure.sparsity) is not None and (chip or kind != "sparsity"):
        raise ValueError(
            f"Expected no budget but that of sparsity, for structure={plan.structure!r} ends at "
            f"one, {only:g}, but got {budget!r}: leave it out, and see what fits() says"
        )
    # Where it is searched for, no sparsity is out of reach beforehand.
    final = value if kind == "sparsity" and chip is None else 0.0
    rewrite = plan.rewrite
    if isinstance(plan.binding, AtUpdates):  # no other update follows that zeroes what comes back
        plan = replace(plan, binding=Strict())
    plan = replace(plan, schedule=Manual(final=final), rewrite=None)
    _check_arguments(net, batches, loss, fine_tune)
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    found = list(batches_of(loader, batches, device))
    with restored_on_error(net):
        model = PruningWrapper(net, plan, example_input=found[0][0], skip=skip, seed=seed)
        if found_zeros := many_zeros(model.net, model.session.run):
            logger.warning(
                "%d of %d prunable weights (%.1f %%) are 0 already, which budgets and the report "
                "count as kept: prune the dense network once, as far as it is to go",
                *found_zeros,
            )
        try:
            before = cost.measure(model.net, found[0][0])
            _update(model, found, chip or (kind, value), loss, renormalize, rewrite)
            if fine_tune is not None:
                _fine_tune(model, fine_tune)
            report = measured(model.net, model.session.run, found[0][0], before)
        except BaseException:
            model.discard()
            raise
        net = model.finalize()
        _host.reset_net(net)
    return Pruned(net, report)


def _update(
    model: PruningWrapper,
    found: Batches,
    budget: Chip | tuple[str, float],
    loss: Loss,
    renormalize: bool,
    rewrite: Rewrite | None,
) -> None:
    def prepare() -> dict[str, list[float]]:
        return estimate(model.net, inputs_of(found)) if renormalize else {}

    gradients = {p: p.grad for p in model.parameters()}
    calibrate(model, found, loss)
    args, session = found[0][0], model.session
    if isinstance(budget, Chip):
        check_ready(model.net, session.run, session.hooks)
        install_now(session, fitted(model, budget, args))
    else:
        kind, value = budget
        if kind != "sparsity":
            check_ready(model.net, session.run, session.hooks)
            with torch.no_grad():
                value = sparsity_for(model, kind, value, args, prepare)
        model.update_masks(value)
    if rewrite is not None:
        _rewrite(model, rewrite, found)
    for parameter in model.parameters():
        parameter.grad = gradients.get(parameter)
    say_few(prepare())


@torch.no_grad()
def _rewrite(model: PruningWrapper, rewrite: Rewrite, batches: Batches) -> None:
    """Let the plan change the weights that are kept, layer by layer, on inputs of those before."""
    run = model.session.run
    for name in run.masks.layers:
        if run.plan.needs_inputs:
            look_again(model, batches, name)
        layer = view(model.net, run, name)
        found = rewrite(layer)
        if not isinstance(found, Tensor) or found.shape != layer.weight.shape:
            raise ValueError(
                f"Expected rewrite= to return a weight of shape {tuple(layer.weight.shape)} for "
                f"layer {name!r} but got {getattr(found, 'shape', found)!r}"
            )
        run.masks.weight(name).copy_(found)
    run.masks.settle()
    run.masks.enforce()


def at_once(method: object) -> Plan:
    """Return the plan of a method that can prune a trained network.

    Raises:
        TypeError: if it is no method.
        ValueError: if it prunes in training alone.
    """
    plan = plan_of(method)
    if plan.emergent or not isinstance(plan.start, Dense):
        how = "lets sparsity emerge in training" if plan.emergent else "trains sparse networks"
        raise ValueError(
            f"Expected a method that can prune a trained network at once but {plan.name} {how}: "
            "use sj_prune.PruningWrapper"
        )
    # Penalties too know that no update is scheduled.
    return plan_of(replace(method, end=None)) if isinstance(method, ScheduledMethod) else plan


def _fine_tune(model: PruningWrapper, fine_tune: Callable[[PruningWrapper], object]) -> None:
    fine_tune(model)
    if not model.optimizers:
        logger.warning(
            "fine_tune attached no optimizer: masks were not held while it ran, and what it made "
            "of pruned weights is zeroed now; call model.attach(optimizer) in it"
        )
    model.masks.burn()  # so that the report is of the network that is returned


def _check_arguments(net: object, batches: object, loss: object, fine_tune: object) -> None:
    _host.check_module(net)
    check_steps("batches", batches)
    for name, callback in (("loss", loss), ("fine_tune", fine_tune)):
        if not callable(callback) and (name == "loss" or callback is not None):
            raise TypeError(f"Expected {name} to be callable but got {callback!r}")
