"""What a method is going to do to a network, and what stands in its way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sj_prune.masks.schedule import Schedule
from sj_prune.methods.parts import Dense
from sj_prune.methods.plan import Plan
from sj_prune.network.facts import Topology, scoring_neurons
from sj_prune.network.layers import weighted_layers, why_not
from sj_prune.neurons.convert import sensors
from sj_prune.reports.tables import shape_text, table
from sj_prune.reports.warnings import warnings_of
from sj_prune.run.scores import unscored
from sj_prune.run.state import Run


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


@dataclass(frozen=True)
class NeuronRow:
    """How one neuron layer is sensed.

    Attributes:
        name: module name of the layer.
        kind: its class.
        how: "fused", "observed" or "none".
        why: what it does not keep, and why; else empty.
    """

    name: str
    kind: str
    how: str
    why: str


_NEURON_HEADERS = ("neurons", "class", "sensed", "why not")
_OBSERVING = (
    "Fused neurons record while they compute; observed ones take a second look at every step, and "
    "the time for it: docs/observing.md."
)
_UNSCORED = "no: its drop score is None, so it stays dense and the sparsity does not count it"
_EXPLANATION_HEADERS = ("layer", "shape", "norm", "neurons", "coupled group", "prunable")


@dataclass(frozen=True)
class Explanation:
    """What a method is going to do to a network; `str` gives the table.

    Attributes:
        rows: one a convolution or linear layer.
        warnings: what will not work as one may expect, one sentence each.
        schedule: method, sparsity and update steps in one line.
        traced: a forward has told which norms and neurons follow.
        neurons: how each neuron layer is sensed.
    """

    rows: tuple[ExplanationRow, ...]
    warnings: tuple[str, ...]
    schedule: str
    traced: bool
    neurons: tuple[NeuronRow, ...] = ()

    def __str__(self) -> str:
        warnings = [f"warning: {warning}" for warning in self.warnings]
        sensed = ["", *self._sensed(markdown=False)] if self.neurons else []
        return "\n".join([self._rows(markdown=False), *sensed, "", self.schedule, *warnings])

    def to_markdown(self) -> str:
        """Return table, schedule and warnings in GitHub's Markdown."""
        warnings = "\n".join(f"- **warning:** {warning}" for warning in self.warnings)
        parts = (self._rows(True), *self._sensed(True), self.schedule, warnings)
        return "\n\n".join(part for part in parts if part)

    def _sensed(self, markdown: bool) -> list[str]:
        cells = [[row.name, row.kind, row.how, row.why] for row in self.neurons]
        observed = any(row.how == "observed" for row in self.neurons)
        return [table(_NEURON_HEADERS, cells, markdown), *([_OBSERVING] if observed else [])]

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


def explain(net: nn.Module, run: Run) -> Explanation:
    """Tell what a run is going to prune and why, from what it has seen of the network so far."""
    topology = run.anatomy.topology
    known = Topology() if topology is None else topology
    scopes = run.masks.scopes
    unsaid = {layer for scope in unscored(net, run) for layer in scopes[scope].layers}
    rows = tuple(
        ExplanationRow(
            name,
            tuple(layer.weight.shape),
            known.norms.get(name),
            tuple(_neurons(name, run)),
            _group(name, run),
            name in _pruned_layers(run) and name not in unsaid | run.masks.idle,
            _UNSCORED if name in unsaid else _status(name, net, run),
        )
        for name, layer in weighted_layers(net).items()
    )
    schedule = _schedule_line(run.plan)
    traced = topology is not None
    return Explanation(rows, tuple(warnings_of(net, run)), schedule, traced, _neuron_rows(net))


def _neuron_rows(net: nn.Module) -> tuple[NeuronRow, ...]:
    return tuple(
        NeuronRow(name or "net", type(net.get_submodule(name)).__name__, sensor.how, sensor.why)
        for name, sensor in sensors(net).items()
    )


def _neurons(name: str, run: Run) -> dict[str, Tensor | None]:
    """Return the neuron layers that score any layer, pruned or not."""
    return scoring_neurons(run.anatomy.topology, run.anatomy.coupling, name)


def _pruned_layers(run: Run) -> list[str]:
    """Return the layers that are masked; before channels are traced, all that may be."""
    return run.masks.layers if run.masks.known else list(run.layers)


def why_dense(name: str, net: nn.Module, run: Run) -> str:
    """Return why a layer is not masked."""
    if (reason := why_not(net, name)) is not None:
        return reason
    if name in run.anatomy.dense:
        return run.anatomy.dense[name]
    if name not in run.layers:
        return "skipped by name"
    unscored = run.masks.known and name not in run.masks.layers
    return _UNSCORED if unscored else "its channels are not traced yet"


def _group(name: str, run: Run) -> str | None:
    """Return what a layer's channels are pruned together with; None for single weights."""
    texts = []
    for scope in run.masks.scopes.values():
        if scope.sleeps and name in scope.layers:
            others = len(scope.layers) - 1
            coupled = f", with {others} other layer{'s' * (others > 1)}" if others else ""
            texts.append(f"{scope.name} ({scope.size}{coupled})")
    return "; ".join(texts) or None


def _grows_by_activity(plan: Plan) -> bool:
    return bool(plan.statistics) and plan.grow is not None and plan.gradient == "never"


def _status(name: str, net: nn.Module, run: Run) -> str:
    """Return "yes" or why a layer is not pruned, or not regrown."""
    if name in run.masks.idle:
        return "no: it did not run as a module; left out of the sparsity until it does"
    if name not in _pruned_layers(run):
        return f"no: {why_dense(name, net, run)}"
    if name in run.anatomy.dense:
        return f"in part: {run.anatomy.dense[name]}"
    first_dense = getattr(run.plan.allocation, "first_dense", False)
    if first_dense and name == next(iter(_pruned_layers(run)), None):
        return "yes, but kept whole: first layer (first_dense=True)"
    topology = run.anatomy.topology
    if topology is None:
        return "yes"
    if name not in topology.places:
        return "yes, but it did not run as a module in the traced forward"
    neurons, spread = _neurons(name, run), topology.spread.get(name, ())
    counted = spread and all(node in neurons for node in spread)
    problem = None if counted else topology.problems.get(name)
    if _grows_by_activity(run.plan) and not neurons:
        reason = problem or "no recording neuron follows"
        return f"yes: pruned, never regrown ({reason})"
    return f"yes (not counted: {problem})" if problem else "yes"


def _schedule_line(plan: Plan) -> str:
    """Return method, sparsity and update steps: what `Schedule.due` says, in words."""
    kind = "record" if plan.emergent else "update"
    if not plan.schedule.updates:
        return (
            f"{plan.name}: sparsity reaches {plan.sparsity:g}; no update is scheduled (end=None)."
        )
    goal = "emerges towards" if plan.emergent else "reaches"
    start = "" if isinstance(plan.start, Dense) else ", masks from the start"
    when = _when(plan.schedule, kind)
    return f"{plan.name}: sparsity {goal} {plan.sparsity:g}{start}; {when}."


def _when(schedule: Schedule, kind: str) -> str:
    first, count = schedule.begin + schedule.interval, schedule.updates
    if count == 1:
        return f"1 {kind} at optimizer step {first}"
    second, last = first + schedule.interval, first + (count - 1) * schedule.interval
    if last > 2**53:  # a default that means "as long as the run lasts"
        return f"{kind}s at optimizer steps {first}, {second}, ... without end"
    steps = [first, second, "...", last] if count > 3 else [first, second, last][:count]
    return f"{count:,} {kind}s at optimizer steps {', '.join(map(str, steps))}"
