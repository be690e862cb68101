"""What a method is going to do to a network, and what stands in its way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from sj_prune import _host
from sj_prune.masks.schedule import Schedule
from sj_prune.masks.structure import Channels
from sj_prune.network.layers import prunable_layers
from sj_prune.network.topology import NeuronFacts, Topology
from sj_prune.neurons.convert import recording_nodes
from sj_prune.neurons.nodes import RecordingNode
from sj_prune.neurons.surrogates import autograd_derivative
from sj_prune.reports import cost
from sj_prune.reports.tables import shape_text, table

if TYPE_CHECKING:
    from sj_prune.wrapper import PruningWrapper

__all__ = ["Explanation", "ExplanationRow", "explain", "why_dense"]


@dataclass(frozen=True)
class ExplanationRow:
    """What will happen to one layer.

    Attributes:
        name: module name of the layer.
        shape: of its weight.
        norm: name of the norm behind it; None if there is none or nothing was traced.
        neurons: names of the neuron layers whose statistics it is scored by.
        group: what it is pruned together with; None for single weights.
        prunable: it is masked.
        status: "yes", or why not, or with which restriction.
    """

    name: str
    shape: tuple[int, ...]
    norm: str | None
    neurons: tuple[str, ...]
    group: str | None
    prunable: bool
    status: str


_EXPLANATION_HEADERS = ("layer", "shape", "norm", "neurons", "coupled group", "prunable")


@dataclass(frozen=True)
class Explanation:
    """What a method is going to do to a network; `str` gives the table.

    Attributes:
        rows: one a convolution or linear layer.
        warnings: what will not work as one may expect, one sentence each.
        schedule: method, sparsity and update steps in one line.
        traced: a forward has told which norms and neurons follow.
    """

    rows: tuple[ExplanationRow, ...]
    warnings: tuple[str, ...]
    schedule: str
    traced: bool

    def __str__(self) -> str:
        warnings = [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([self._rows(markdown=False), "", self.schedule, *warnings])

    def to_markdown(self) -> str:
        """Return table, schedule and warnings in GitHub's Markdown."""
        warnings = "\n".join(f"- **warning:** {warning}" for warning in self.warnings)
        parts = (self._rows(markdown=True), self.schedule, warnings)
        return "\n\n".join(part for part in parts if part)

    def _rows(self, markdown: bool) -> str:
        unknown = "-" if self.traced else "?"
        cells = [
            [
                row.name,
                shape_text(row.shape),
                row.norm or unknown,
                ", ".join(row.neurons) or unknown,
                row.group or "-",
                row.status,
            ]
            for row in self.rows
        ]
        return table(_EXPLANATION_HEADERS, cells, markdown)


def explain(wrapper: PruningWrapper) -> Explanation:
    """Tell what `wrapper` is going to prune and why, from what it has seen so far."""
    topology = wrapper.topology
    known = Topology() if topology is None else topology
    rows = tuple(
        ExplanationRow(
            name,
            tuple(layer.weight.shape),
            known.norms.get(name),
            tuple(wrapper.updater.neurons(name)),
            _group(name, wrapper),
            name in _pruned_layers(wrapper),
            _status(name, wrapper),
        )
        for name, layer in cost.weighted_layers(wrapper.net).items()
    )
    schedule = _schedule_line(wrapper)
    return Explanation(rows, tuple(_warnings(wrapper)), schedule, topology is not None)


def _pruned_layers(wrapper: PruningWrapper) -> list[str]:
    """Return the layers that are masked; before channels are traced, all that may be."""
    unknown = isinstance(wrapper.method.structure, Channels) and wrapper.coupling is None
    return list(wrapper.layers) if unknown else wrapper.masks.layers


def why_dense(name: str, wrapper: PruningWrapper) -> str:
    """Return why a layer is not masked."""
    if name not in prunable_layers(wrapper.net):
        return "its weight is parametrized, so there is no parameter to mask"
    if name not in wrapper.layers:
        return "skipped by name"
    return wrapper.dense.get(name, "its channels are not traced yet")


def _group(name: str, wrapper: PruningWrapper) -> str | None:
    """Return what a layer's channels are pruned together with; None for single weights."""
    masks = wrapper.masks
    scopes = [s for s in masks.scopes if name in masks.members(s)] if masks.widths() else []
    texts = []
    for scope in scopes:
        others = len(masks.members(scope)) - 1
        coupled = f", with {others} other layer{'s' * (others > 1)}" if others else ""
        texts.append(f"{scope} ({masks.units()[scope]}{coupled})")
    return "; ".join(texts) or None


def _grows_by_activity(wrapper: PruningWrapper) -> bool:
    method = wrapper.method
    by_gradient = method.gradient != "never"
    return bool(method.needs) and method.regrow_schedule is not None and not by_gradient


def _status(name: str, wrapper: PruningWrapper) -> str:
    """Return "yes" or why a layer is not pruned, or not regrown."""
    if name not in _pruned_layers(wrapper):
        return f"no: {why_dense(name, wrapper)}"
    if name in wrapper.dense:
        return f"in part: {wrapper.dense[name]}"
    first_dense = getattr(wrapper.method.allocation, "first_dense", False)
    if first_dense and name == next(iter(_pruned_layers(wrapper)), None):
        return "yes, but kept whole: first layer (first_dense=True)"
    if wrapper.topology is None:
        return "yes"
    neurons, spread = wrapper.updater.neurons(name), wrapper.topology.spread.get(name, ())
    counted = spread and all(node in neurons for node in spread)
    problem = None if counted else wrapper.topology.problems.get(name)
    if _grows_by_activity(wrapper) and not neurons:
        reason = problem or "no recording neuron follows"
        return f"yes: pruned, never regrown ({reason})"
    return f"yes (not counted: {problem})" if problem else "yes"


def _schedule_line(wrapper: PruningWrapper) -> str:
    """Return method, sparsity and update steps: what `Schedule.due` says, in words."""
    method = wrapper.method
    name, kind = type(method).__name__, "record" if method.emergent else "update"
    if not method.schedule.updates:
        return f"{name}: sparsity reaches {method.sparsity:g}; no update is scheduled (end=None)."
    goal = "emerges towards" if method.emergent else "reaches"
    start = "" if method.dense_start else ", masks from the start"
    when = _when(method.schedule, kind)
    return f"{name}: sparsity {goal} {method.sparsity:g}{start}; {when}."


def _when(schedule: Schedule, kind: str) -> str:
    first, count = schedule.begin + schedule.interval, schedule.updates
    if count == 1:
        return f"1 {kind} at optimizer step {first}"
    second, last = first + schedule.interval, first + (count - 1) * schedule.interval
    if last > 2**53:  # a default that means "as long as the run lasts"
        return f"{kind}s at optimizer steps {first}, {second}, ... without end"
    steps = [first, second, "...", last] if count > 3 else [first, second, last][:count]
    return f"{count:,} {kind}s at optimizer steps {', '.join(map(str, steps))}"


def _warnings(wrapper: PruningWrapper) -> Iterator[str]:
    if wrapper.topology is None:
        yield (
            "nothing is traced yet, so it is unknown which norms and neurons follow a layer: run a "
            "forward with gradients, or pass example_input to the wrapper or to explain()."
        )
    else:
        yield from _warn_of_activity(wrapper, wrapper.topology.facts)
    yield from _warn_of_neurons(wrapper.net)
    frozen = [name for name, layer in wrapper.layers.items() if not layer.weight.requires_grad]
    if frozen:
        yield (
            f"weights that do not train (requires_grad is False) are pruned all the same: "
            f"{', '.join(frozen)}; name them in skip to keep them."
        )


def _warn_of_activity(wrapper: PruningWrapper, facts: Mapping[str, NeuronFacts]) -> Iterator[str]:
    dead = [name for name, fact in facts.items() if fact.firing_rate == 0]
    if dead:
        yield (
            f"these neurons never fired on the traced input: {', '.join(dead)}; nothing behind "
            "them learns from it: check the input's scale, the threshold and the norms."
        )
    flat = [name for name, fact in facts.items() if fact.criticality == 0]
    if flat and any(need.startswith("criticality") for need in wrapper.method.needs):
        yield (
            f"the growth signal is zero at {', '.join(flat)}: no potential on the traced input "
            "came to where the surrogate has a derivative, so weights there are regrown last; a "
            "surrogate with wider support (ATan, Sigmoid) would tell them apart."
        )
    dead_ends = _without_growth_signal(wrapper)
    if dead_ends:
        yield (
            f"the growth signal of a sleeping channel is zero at {', '.join(dead_ends)}: at rest "
            "the surrogate has no derivative, so no gradient reaches gamma; such channels are "
            "ranked by the score they had while awake. ATan or Sigmoid would let it through."
        )
    idle = [name for name in recording_nodes(wrapper.net) if name not in facts]
    if idle:
        yield f"these neurons did not run in the traced forward: {', '.join(idle)}."
    nodes = recording_nodes(wrapper.net)
    # Foreign neurons and single-step mode have warnings of their own.
    broken = [
        f"{name} ({fact.problem})"
        for name, fact in facts.items()
        if fact.problem and getattr(nodes.get(name), "step_mode", None) == "m"
    ]
    if broken:
        yield f"these neurons keep no statistics: {', '.join(broken)}."


def _without_growth_signal(wrapper: PruningWrapper) -> list[str]:
    """Return the neuron layers whose surrogate is flat at rest, where growth needs its gradient."""
    channels = isinstance(wrapper.method.structure, Channels)
    if not channels or wrapper.method.gradient != "update":
        return []
    nodes = recording_nodes(wrapper.net)
    return [name for name, node in nodes.items() if not any(_slope_at_rest(node))]


def _slope_at_rest(node: RecordingNode) -> list[float]:
    rest = 0.0 if node.v_reset is None else node.v_reset
    u = torch.tensor([rest - node.v_threshold], device="cpu")
    return autograd_derivative(node.surrogate_function, u).tolist()


def _warn_of_neurons(net: nn.Module) -> Iterator[str]:
    neurons = {name or "net": m for name, m in net.named_modules() if _host.is_neuron(m)}
    single = [name for name, m in neurons.items() if getattr(m, "step_mode", "m") != "m"]
    if single:
        yield (
            f"these neurons run in single-step mode and record nothing: {', '.join(single)}; call "
            "functional.set_step_mode(net, 'm') and feed [T, N, *]."
        )
    foreign = [
        f"{name} ({type(m).__name__})"
        for name, m in neurons.items()
        if not isinstance(m, RecordingNode)
    ]
    if foreign:
        yield (
            f"these neurons are not stock IF, LIF or ParametricLIF layers and record nothing: "
            f"{', '.join(foreign)}."
        )
    if not neurons:
        yield "the network has no SpikingJelly neuron layer."
