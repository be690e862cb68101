"""What a forward tells of the network: which norms and neurons follow, which channels couple."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.compaction import couple_checked
from sj_prune.masks.manager import MaskManager
from sj_prune.network.coupling import Coupling
from sj_prune.network.facts import Topology, scoring_neurons
from sj_prune.network.inputs import (
    as_args,
    few_samples,
    from_plain,
    shapes_of,
    to_plain,
    zeros_of,
)
from sj_prune.network.layers import Layer, prunable_layers
from sj_prune.network.topology import trace
from sj_prune.neurons.convert import sensor_of, sensors
from sj_prune.run.arguments import SettingsError, check_names, check_sparsity, select_groups
from sj_prune.run.idle import listen, told
from sj_prune.run.start import start_masks
from sj_prune.run.state import Run

logger = logging.getLogger("sj_prune")


def remember_inputs(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep the shapes of inputs: the graph cannot be walked from inside of a compiled forward."""
    run.anatomy.inputs = (shapes_of(args), shapes_of(kwargs))


def learn(net: nn.Module, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run one forward, with the network's state preserved, and learn from it.

    Where units are whole channels, the first time makes the masks.
    """
    remember_inputs(run, args, kwargs)
    topology = trace(net, layers_of(net, run), args, kwargs)
    _leave_out_incomplete(net, run, topology)
    built = run.masks.known
    if not built:
        run.masks = _masks(net, run, args, kwargs, topology)
    anatomy = run.anatomy
    anatomy.topology = topology
    anatomy.scoring = {n: scoring_neurons(topology, anatomy.coupling, n) for n in run.layers}
    if not built:
        start_masks(net, run)
    told(run, topology.places)
    if run.plan.statistics and not any(anatomy.scoring.values()):
        logger.warning(
            "%s reads neurons but none that records follows a prunable layer: "
            "print(model.explain()) says why",
            run.plan.name,
        )


def _leave_out_incomplete(net: nn.Module, run: Run, topology: Topology) -> None:
    """Let neurons score nothing that lack a statistic which the plan reads."""
    for name, fact in topology.facts.items():
        sensor = sensor_of(net.get_submodule(name))
        missing = run.plan.statistics & getattr(sensor, "missing", {}).keys()
        if fact.problem is None and missing:
            reasons = (f"no {key}: {sensor.missing[key]}" for key in sorted(missing))  # type: ignore[union-attr]
            fact.problem = "; ".join(reasons)
            topology.leave_out(name)


def check_sensed(run: Run) -> None:
    """Refuse to train with a plan whose statistics no neuron gives.

    Raises:
        RuntimeError: naming why.
    """
    topology = run.anatomy.topology
    if topology is None or not run.plan.statistics or any(run.anatomy.scoring.values()):
        return
    listed = "; ".join(dict.fromkeys(topology.problems.values())) or "no neuron layer follows any"
    raise RuntimeError(
        f"Expected neurons with {sorted(run.plan.statistics)} behind some prunable layer, for "
        f"{run.plan.name}, but there are none ({listed}): print(model.explain()) lists all neurons"
    )


def layers_of(net: nn.Module, run: Run) -> dict[str, Layer]:
    """Return the layers that may be pruned, by name."""
    return {name: net.get_submodule(name) for name in run.layers}  # type: ignore[misc]


def _masks(
    net: nn.Module, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any], topology: Topology
) -> MaskManager:
    """Return the masks of the channels that live and die together."""
    plan = run.plan
    skip = [name for name in prunable_layers(net) if name not in run.layers]
    coupling = _coupling(net, args, kwargs, skip)
    groups, dense = select_groups(
        plan, coupling, net, lambda layer: bool(scoring_neurons(topology, coupling, layer))
    )
    masks = plan.structure.masks(net, run.layers, groups, plan.binding)
    check_names(masks)
    check_sparsity(plan, masks.scopes.values(), plan.sparsity)
    run.anatomy.coupling, run.anatomy.dense = coupling, dense
    return masks


def _coupling(
    net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], skip: Sequence[str]
) -> Coupling:
    """Return the groups of channels; a few samples tell as much as the whole batch."""
    *fewer, whole = few_samples(args)
    for some in fewer:
        with suppress(Exception):  # where samples lie along another dimension
            return couple_checked(net, some, kwargs, skip=tuple(skip))
    return couple_checked(net, whole, kwargs, skip=tuple(skip))


def ensure_topology(net: nn.Module, run: Run) -> None:
    """Learn which neurons a weight feeds, if only compiled forwards have run so far.

    Raises:
        RuntimeError: if no forward has run.
    """
    if run.anatomy.topology is not None:
        return
    if run.anatomy.inputs is None:
        wanted = (
            f"statistics of neuron layers {list(sensors(net))}"
            if run.masks.known
            else f"a forward of the wrapper, to learn which {run.plan.structure.unit} are coupled"
        )
        raise RuntimeError(
            f"Expected {wanted}, for {run.plan.name}, but no forward with "
            "gradients has run: call model(x), not net(x), or pass example_input="
        )
    args, kwargs = run.anatomy.inputs
    learn(net, run, zeros_of(args), zeros_of(kwargs))


def ensure_masks(net: nn.Module, run: Run, *, optional: bool = False) -> None:
    """Learn the units, if no eager forward has told them yet.

    Args:
        net: the network.
        run: its run.
        optional: do nothing where no forward has run at all.

    Raises:
        RuntimeError: if none has run.
    """
    if run.masks.known:
        return
    if not (optional and run.anatomy.inputs is None):
        ensure_topology(net, run)
    elif "no forward" not in run.said:
        run.said.add("no forward")
        logger.warning(
            "an optimizer steps but no forward of the wrapper has run, so no channels are "
            "known and nothing is penalized or pruned: call model(x), not net(x), or pass "
            "example_input="
        )


def restore_inputs(net: nn.Module, run: Run, plain: Any) -> None:  # noqa: ANN401
    """Take the shapes of the inputs from another run, and learn what they tell."""
    if plain is not None and run.anatomy.topology is None:
        device = next(net.parameters()).device
        run.anatomy.inputs = from_plain(plain, device)
        ensure_masks(net, run)


def follow_statistics(net: nn.Module, run: Run) -> None:
    """Learn whose channels a checkpoint's statistics are, or leave it to the next forward."""
    if not run.plan.statistics or run.anatomy.topology is not None:
        return
    with suppress(Exception):  # not all that a forward takes is in a checkpoint
        learn_seen(net, run)
    if run.anatomy.topology is None:
        run.anatomy.inputs = None


def plain_inputs(run: Run) -> Any:  # noqa: ANN401
    """Return the shapes of the inputs seen, as plain values; None before any forward."""
    return None if run.anatomy.inputs is None else to_plain(run.anatomy.inputs)


def learn_from(net: nn.Module, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Learn from a forward that is about to run, if it is the first that can tell; say whether."""
    if torch.compiler.is_compiling():
        # The graph cannot be walked from inside; the next optimizer step makes up for it.
        remember_inputs(run, args, kwargs)
        return False
    gradients = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    if run.anatomy.topology is not None or not gradients:
        return False
    if not run.plan.needs_graph:
        if run.anatomy.inputs is None:
            remember_inputs(run, args, kwargs)
        listen(net, run)
        return False
    learn(net, run, args, kwargs)
    return True


def learn_seen(net: nn.Module, run: Run) -> None:
    """Learn what a plan had no need of, from zeros of the inputs seen; no neuron fires on those."""
    if run.anatomy.topology is None and run.anatomy.inputs is not None:
        ensure_topology(net, run)
        for fact in run.anatomy.topology.facts.values():  # type: ignore[attr-defined]
            fact.firing_rate = fact.criticality = None


def learn_example(net: nn.Module, run: Run, example_input: Any) -> None:  # noqa: ANN401
    """Learn from an example.

    Raises:
        ValueError: if it is no input of the network, or if settings do not fit what it shows.
    """
    try:
        learn(net, run, as_args(example_input), {})
    except SettingsError:
        raise  # the forward went well
    except Exception as error:
        _refuse_static(net, run, as_args(example_input), error)
        raise ValueError(
            "Expected example_input to be an input of the network (a tuple of several) but its "
            f"forward raised {type(error).__name__}: {error}"
        ) from error


def _refuse_static(net: nn.Module, run: Run, args: tuple[Any, ...], error: Exception) -> None:
    """Say so, if the network would take an input once it were repeated over time.

    Raises:
        ValueError: if it would.
    """
    if len(args) != 1 or not isinstance(args[0], Tensor):
        return
    (x,) = args
    try:
        trace(net, layers_of(net, run), (x.expand(2, *x.shape),))
    except Exception:
        return  # something else is wrong
    dims = "C, H, W" if x.ndim == 4 else "*"
    raise ValueError(
        f"Expected inputs [T, N, {dims}], time first, but got shape {tuple(x.shape)}, which is "
        f"[N, {dims}] without time: repeat it along T, x.unsqueeze(0).repeat(T, "
        f"{', '.join('1' * x.ndim)}), in the batches of a loader too"
    ) from error
