"""What stands in a plan's way: sentences for `explain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from sj_prune.methods.plan import Plan
from sj_prune.network.facts import NeuronFacts
from sj_prune.neurons.convert import recording_nodes, sensors
from sj_prune.neurons.nodes import RecordingNode
from sj_prune.neurons.surrogates import autograd_derivative
from sj_prune.run.state import Run


def warnings_of(net: nn.Module, run: Run) -> Iterator[str]:
    """Yield what will not work as one may expect, one sentence each."""
    topology = run.anatomy.topology
    if topology is None:
        yield (
            "nothing is traced yet, so it is unknown which norms and neurons follow a layer: run a "
            "forward with gradients, or pass example_input to the wrapper or to explain()."
        )
    else:
        yield from _warn_of_activity(net, run.plan, topology.facts)
        yield from _warn_of_idle(run)
    yield from _warn_of_neurons(net)
    frozen = [n for n in run.layers if not net.get_submodule(n).weight.requires_grad]
    if frozen:
        yield (
            f"weights that do not train (requires_grad is False) are pruned all the same: "
            f"{', '.join(frozen)}; name them in skip to keep them."
        )


def _warn_of_idle(run: Run) -> Iterator[str]:
    topology, left_out = run.anatomy.topology, run.masks.idle
    idle = [name for name in run.layers if topology and name not in topology.places]
    if not idle:
        return
    counted = [name for name in idle if name not in left_out]
    text = f"these layers did not run as modules in the traced forward: {', '.join(idle)}; "
    text += "they stay dense as long as they do not, and the sparsity is met on what runs."
    if counted:
        text += (
            f" But {', '.join(counted)} {'is' if len(counted) == 1 else 'are'} pruned already and "
            "counted: name what never runs in skip to keep it."
        )
    yield text


def _warn_of_activity(
    net: nn.Module, plan: Plan, facts: Mapping[str, NeuronFacts]
) -> Iterator[str]:
    dead = [name for name, fact in facts.items() if fact.firing_rate == 0]
    if dead:
        yield (
            f"these neurons never fired on the traced input: {', '.join(dead)}; nothing behind "
            "them learns from it: check the input's scale, the threshold and the norms."
        )
    flat = [name for name, fact in facts.items() if fact.criticality == 0]
    if flat and any(need.startswith("criticality") for need in plan.statistics):
        yield (
            f"the growth signal is zero at {', '.join(flat)}: no potential on the traced input "
            "came to where the surrogate has a derivative, so weights there are regrown last; a "
            "surrogate with wider support (ATan, Sigmoid) would tell them apart."
        )
    dead_ends = _without_growth_signal(net, plan)
    if dead_ends:
        yield (
            f"the growth signal of a sleeping channel is zero at {', '.join(dead_ends)}: at rest "
            "the surrogate has no derivative, so no gradient reaches gamma; such channels are "
            "ranked by the score they had while awake. ATan or Sigmoid would let it through."
        )
    idle = [name for name in sensors(net) if name not in facts]
    if idle:
        yield f"these neurons did not run in the traced forward: {', '.join(idle)}."
    broken = [f"{name} ({fact.problem})" for name, fact in facts.items() if fact.problem]
    if broken:
        yield f"these neurons keep no statistics: {', '.join(broken)}."


def _without_growth_signal(net: nn.Module, plan: Plan) -> list[str]:
    """Return the neuron layers whose surrogate is flat at rest, where growth needs its gradient."""
    if not plan.structure.sleeps or plan.gradient != "update":
        return []
    nodes = recording_nodes(net)
    return [name for name, node in nodes.items() if not any(_slope_at_rest(node))]


def _slope_at_rest(node: RecordingNode) -> list[float]:
    rest = 0.0 if node.v_reset is None else node.v_reset
    u = torch.tensor([rest - node.v_threshold], device="cpu")
    return autograd_derivative(node.surrogate_function, u).tolist()


def _warn_of_neurons(net: nn.Module) -> Iterator[str]:
    found = sensors(net)
    partly = [f"{n} ({s.why})" for n, s in found.items() if s.how == "observed" and s.why]
    if partly:
        yield f"these neurons do not have every statistic: {', '.join(partly)}."
    if not found:
        yield "the network has no SpikingJelly neuron layer."
