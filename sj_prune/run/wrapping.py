"""What happens when a network is wrapped, and when an optimizer is attached: checks first."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import Optimizer

from sj_prune import _host
from sj_prune._checks import check_integer
from sj_prune.masks.manager import MaskManager
from sj_prune.methods.identity import describe
from sj_prune.methods.plan import Plan, plan_of
from sj_prune.neurons.convert import sense, sensor_of, to_stock
from sj_prune.neurons.statistics import check_statistics
from sj_prune.run import gates, looks, spikes
from sj_prune.run.agreement import Agreement
from sj_prune.run.arguments import check_names, check_sparsity, select_layers
from sj_prune.run.hooks import Hooks, owned_parameters
from sj_prune.run.processes import check_whole
from sj_prune.run.recording import Recorder
from sj_prune.run.session import Session
from sj_prune.run.start import say_zeros, start_masks
from sj_prune.run.state import Anatomy, Run
from sj_prune.run.step import switch_recording
from sj_prune.run.views import initial_network_memory

logger = logging.getLogger("sj_prune")

# Network -> the session of the wrapper around it: effects do not outlive their owner.
_owners: weakref.WeakKeyDictionary[nn.Module, Callable[[], Session | None]] = (
    weakref.WeakKeyDictionary()
)


def wrap(
    net: nn.Module, method: object, skip: Iterable[str], seed: int
) -> tuple[Session, list[nn.Module]]:
    """Check everything, then let the neurons record; return the session and the nodes swapped.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the network cannot be pruned like this. It is untouched then.
    """
    _host.check_module(net, "net")
    check_whole(net)
    if any(getattr(module, "is_pruning_wrapper", False) for module in net.modules()):
        raise ValueError("Expected a bare network but it is wrapped already: finalize() it")
    plan = plan_of(method)
    seed = check_integer("seed", seed)
    _check_plan(plan)
    layers, dense = select_layers(net, skip, plan.structure)
    masks = _masks(net, plan, tuple(layers))
    found = [module for module in net.modules() if sensor_of(module) is None]
    for sensor in sense(net).values():
        if plan.statistics:
            sensor.statistics = plan.statistics
    _host.invalidate_reset_cache(net)
    run = Run(plan, describe(method), tuple(layers), seed, masks, Anatomy(dense=dense))
    run.previous = masks.masks if plan.emergent else {}
    run.network_memory = initial_network_memory(run)
    session = Session(net, run, Hooks(), Agreement(net, run), Recorder())
    return session, [module for module in found if sensor_of(module) is not None]


def _check_plan(plan: Plan) -> None:
    try:
        check_statistics(plan.statistics)
    except ValueError as error:
        raise ValueError(
            f"{error} in the @reads(...) of a score of {plan.name}, which may also read "
            "'gradient', 'gamma' or 'gamma gradient'"
        ) from None
    if plan.rewrite is not None:
        raise ValueError(
            f"Expected a plan without rewrite=, which changes the weights of a trained network "
            f"once, but {plan.name} has one: use sj_prune.prune(net, loader, method)"
        )


def _masks(net: nn.Module, plan: Plan, layers: tuple[str, ...]) -> MaskManager:
    """Return the masks of all layers; of channels, none before a forward has shown them."""
    if plan.structure.needs_forward:
        return MaskManager(net, known=False)
    masks = plan.structure.masks(net, layers, (), plan.binding)
    check_names(masks)
    check_sparsity(plan, masks.scopes.values(), plan.sparsity)
    return masks


def start(session: Session) -> None:
    """Install the masks that the plan starts from, where units are known already."""
    say_zeros(session.net, session.run)
    if not session.run.plan.structure.needs_forward:
        start_masks(session.net, session.run)
    _take_over(session)
    gates.put(session.net, session.run)  # before the terms, which act on what leaves
    spikes.penalize(session.net, session.run)
    switch_recording(session)


def _take_over(session: Session) -> None:
    """Let go of a wrapper around the same network, as a notebook cell that runs again leaves it."""
    before = _owners.get(session.net, lambda: None)()
    if before is not None and not before.closed:
        before.closed = True
        before.hooks.remove()
        logger.warning(
            "the network was wrapped already: the wrapper before lets go of it, weights stay as "
            "they are now, and its optimizers are to be attached to this one"
        )
    _owners[session.net] = weakref.ref(session)


def check_optimizer(net: nn.Module, optimizer: object) -> None:
    """Refuse what is no optimizer of this network.

    Raises:
        TypeError: if it is no optimizer, never ran ``Optimizer.__init__``, or if parameters are
            split over processes.
        ValueError: if it holds none of the network's parameters.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"Expected a torch.optim.Optimizer to attach but got {type(optimizer).__name__}"
        )
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):  # as public Lookaheads are written
        raise TypeError(
            f"Expected an optimizer with hooks around step() but {type(optimizer).__name__} never "
            "called super().__init__(): attach the optimizer that it wraps, whose step() it calls"
        )
    check_whole(net, owned_parameters(optimizer))
    mine = {id(p) for p in net.parameters()}
    if not any(id(p) in mine for p in owned_parameters(optimizer)):
        raise ValueError(
            "Expected an optimizer over this network's parameters but it holds none of them: "
            "build it with model.parameters() of the wrapped network"
        )


def discard(session: Session, swapped: Iterable[nn.Module]) -> None:
    """Take hooks and the nodes that were swapped off the network; its weights stay as they are."""
    session.closed = True
    session.hooks.remove()
    spikes.release(session.net)
    gates.take_off(session.net)
    for node in swapped:
        to_stock(node)
    _host.invalidate_reset_cache(session.net)


def finalize(session: Session) -> None:
    """Remove all hooks, bring stock classes back, and burn the zeros in."""
    net, masks = session.net, session.run.masks
    looks.applied(session)
    looks.say_unpruned(session)
    if not session.run.plan.emergent:
        masks.enforce(None, session.hooks.slot_owners)
        masks.burn()
    session.hooks.remove()
    spikes.release(net)
    session.closed = True
    to_stock(net)
    gates.settle(net)
    _host.invalidate_reset_cache(net)
