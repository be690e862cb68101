"""What a run did to a network (`report`), and what a method is going to do (`explain`)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate
from torch import Tensor, nn

from sj_prune import _host, cost, history
from sj_prune.masks.schedule import Schedule
from sj_prune.neurons.convert import recording_nodes
from sj_prune.neurons.nodes import RecordingNode
from sj_prune.topology import NeuronFacts, Topology, prunable_layers, temporary_activity, trace

if TYPE_CHECKING:
    from os import PathLike

    from sj_prune.wrapper import PruningWrapper

__all__ = [
    "Explanation",
    "ExplanationRow",
    "Report",
    "ReportRow",
    "channel_criticality",
    "explain",
    "readable",
    "report",
]

_SLOW = (
    "A masked dense network is not faster on a CPU or GPU: only compaction (channel methods) or "
    "hardware that skips zeros turns these counts into time."
)
_BEFORE = (
    "Before => after: all weights counted against the nonzero ones, on the same measured spikes; "
    f"operations and energy per sample, over all time steps ({cost.PICOJOULES_PER_MAC} pJ a MAC, "
    f"{cost.PICOJOULES_PER_AC} pJ a SynOp, memory traffic left out)."
)


# ---- numbers as text ---------------------------------------------------------------------------


def readable(value: float, unit: str = "", exponent: int = 0) -> str:
    """Return ``value * 10**exponent`` with three digits and a prefix: ``1.23 M``.

    Args:
        value: any number.
        unit: put behind the prefix, such as ``"J"``.
        exponent: of 10, a multiple of 3; -12 for a value in pico-units.
    """
    prefixes = {-12: "p", -9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}
    # 999.6 would print as 1e+03: what rounds up to the next prefix takes it.
    while abs(value) >= 999.5 and exponent < 12:
        value, exponent = value / 1000, exponent + 3
    return f"{value:.3g} {prefixes[exponent]}{unit}".rstrip()


def _change(before: float, after: float) -> str:
    """Return the relative change, or nothing where there is none."""
    return f" ({100 * (after / before - 1):+.1f} %)" if before and before != after else ""


def _before_after(before: float, after: float, unit: str = "", exponent: int = 0) -> str:
    texts = readable(before, unit, exponent), readable(after, unit, exponent)
    return f"{texts[0]} => {texts[1]}{_change(before, after)}"


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]], markdown: bool) -> str:
    """Return a table of finished texts; columns that are empty throughout are left out."""
    cells = list(rows)
    used = [i for i in range(len(headers)) if any(row[i] for row in cells)]
    return tabulate(
        [[row[i] for i in used] for row in cells],
        headers=[headers[i] for i in used],
        tablefmt="github" if markdown else "simple",
        disable_numparse=True,
    )


def _write(text: str, path: str | PathLike[str] | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


# ---- report ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportRow:
    """One layer of a report, in plain numbers.

    Attributes:
        name: module name of the layer.
        shape: of its weight.
        density: fraction of the weights kept.
        kept: number of weights kept.
        total: number of weights.
        dropped: weights dropped over the run.
        regrown: weights regrown over the run.
        firing_rate: spikes per neuron and step of the neurons it feeds; None without any.
        criticality: mean over channels of their ``criticality_max``; None without any.
        binary_input: it received spikes only.
        synops_dense: synaptic operations per sample with every weight.
        synops: with the nonzero ones.
        macs_dense: multiply-accumulates per sample with every weight.
        macs: with the nonzero ones.
        note: why it is not pruned, or not measured; else empty.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    kept: int
    total: int
    dropped: int
    regrown: int
    firing_rate: float | None
    criticality: float | None
    binary_input: bool
    synops_dense: float
    synops: float
    macs_dense: float
    macs: float
    note: str = ""

    def cells(self) -> list[str]:
        """Return the texts of the table."""
        kinds = (("SynOps", self.synops_dense, self.synops), ("MACs", self.macs_dense, self.macs))
        operations = [f"{_before_after(b, a)} {kind}" for kind, b, a in kinds if b]
        return [
            self.name,
            _shape(self.shape),
            f"{self.density:.4f}",
            f"{self.kept:,} / {self.total:,}",
            f"{self.dropped:,}",
            f"{self.regrown:,}",
            _optional(self.firing_rate),
            _optional(self.criticality),
            " + ".join(operations) or ("0 SynOps" if self.binary_input else "-"),
            self.note,
        ]


_REPORT_HEADERS = (
    "layer",
    "shape",
    "density",
    "weights kept",
    "dropped",
    "regrown",
    "firing rate",
    "criticality",
    "operations per sample, before => after",
    "note",
)


@dataclass(frozen=True)
class Report:
    """Sizes, activity and cost of a network under its masks; `str` gives the table.

    Attributes:
        rows: one a layer.
        totals: sums over layers. ``parameters`` and ``parameters_kept`` are those of the whole
            network, biases and norms included; ``weights`` and ``weights_kept`` those of the
            layers that are pruned; ``synops``, ``macs`` and ``energy`` (pJ) are per sample, each
            with its ``..._dense`` before.
    """

    rows: tuple[ReportRow, ...]
    totals: dict[str, float]

    def __str__(self) -> str:
        return self.to_text()

    def _closing(self) -> str:
        t = self.totals
        parts = (
            f"parameters: {_before_after(t['parameters'], t['parameters_kept'])}",
            f"SynOps: {_before_after(t['synops_dense'], t['synops'])}",
            f"MACs: {_before_after(t['macs_dense'], t['macs'])}",
            f"energy: {_before_after(t['energy_dense'], t['energy'], 'J', -12)}",
        )
        return ", ".join(parts)

    def to_text(self) -> str:
        """Return the table, the totals and what they mean, as plain text."""
        table = _table(_REPORT_HEADERS, (row.cells() for row in self.rows), markdown=False)
        sparsity = f"sparsity of the pruned layers: {self.totals['sparsity']:.4f}"
        return "\n".join([table, "", f"{self._closing()}; {sparsity}", _BEFORE, _SLOW])

    def to_markdown(self) -> str:
        """Return the same in GitHub's Markdown."""
        table = _table(_REPORT_HEADERS, (row.cells() for row in self.rows), markdown=True)
        return "\n\n".join([table, f"**{self._closing()}**", _BEFORE, _SLOW])

    def to_csv(self, path: str | PathLike[str] | None = None) -> str:
        """Return the rows as CSV, and write it to `path`, if given.

        A shape is written as ``64x3x3x3``; None is an empty field; numbers are exact.
        """
        text = io.StringIO()
        names = [field.name for field in fields(ReportRow)]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), "shape": _shape(row.shape)} for row in self.rows)
        return _write(text.getvalue(), path)

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """Return rows and totals as JSON, and write it to `path`, if given."""
        content = {"rows": [asdict(row) for row in self.rows], "totals": self.totals}
        return _write(json.dumps(content, indent=2) + "\n", path)


def _arguments(example_input: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return example_input if isinstance(example_input, tuple) else (example_input,)


@contextmanager
def _nodes_kept(net: nn.Module) -> Iterator[dict[str, RecordingNode]]:
    """As `temporary_activity`, and what else a forward or a trace leaves in the nodes."""
    nodes = recording_nodes(net)
    kept = {n: (m.channel_dim, m.trace, m.h_seq, m.g_seq) for n, m in nodes.items()}
    try:
        with temporary_activity(net):
            for node in nodes.values():
                node.trace = False  # the user's traced potentials stay as they are
            yield nodes
    finally:
        for name, node in nodes.items():
            node.channel_dim, node.trace, node.h_seq, node.g_seq = kept[name]


@contextmanager
def _measuring(
    wrapper: PruningWrapper,
    example_input: Any,  # noqa: ANN401
) -> Iterator[tuple[Topology, dict[str, RecordingNode]]]:
    """Let all nodes that can do so record what is run inside this block, in eval mode too."""
    with _nodes_kept(wrapper.net) as nodes:
        topology = wrapper.topology
        if topology is None:
            # Not kept: a report changes nothing, the first training forward will tell.
            topology = trace(wrapper.net, wrapper.layers, _arguments(example_input))
        for name, node in nodes.items():
            node.recording = topology.facts.get(name, NeuronFacts()).problem is None
            node.activity.clear()
        yield topology, nodes


def _mean(names: Iterable[str], nodes: Mapping[str, RecordingNode], kind: str) -> float | None:
    """Return the mean over channels and neuron layers of a statistic, if one recorded it."""
    activities = [nodes[name].activity for name in names if name in nodes]
    values = [float(a.mean(kind).mean()) for a in activities if a.count]
    return sum(values) / len(values) if values else None


def channel_criticality(
    wrapper: PruningWrapper,
    example_input: Any = None,  # noqa: ANN401
) -> dict[str, Tensor]:
    """Return ``criticality_max`` per channel of every neuron layer that has it, ``[C]`` each.

    Args:
        wrapper: a wrapper; nothing in it changes.
        example_input: what to measure on, in eval mode; by default what the neurons have recorded
            since the last mask update.
    """
    if example_input is None:
        return _recorded(recording_nodes(wrapper.net))
    with _measuring(wrapper, example_input) as (_, nodes):
        cost.measure(wrapper.net, example_input, layers={}, samples=1)  # for its careful forward
        return _recorded(nodes)


def _recorded(nodes: Mapping[str, RecordingNode]) -> dict[str, Tensor]:
    kind = "criticality_max"
    return {
        name: node.activity.mean(kind)
        for name, node in nodes.items()
        if kind in node.activity.names and node.activity.count
    }


def _note(name: str, wrapper: PruningWrapper, found: cost.LayerCost) -> str:
    notes = []
    if name not in wrapper.masks:
        parametrized = name not in prunable_layers(wrapper.net)
        notes.append("parametrized weight, not pruned" if parametrized else "skipped")
    if found.calls == 0:
        notes.append("its operations were not seen: it was not called as a module")
    return "; ".join(notes)


def report(wrapper: PruningWrapper, example_input: Any) -> Report:  # noqa: ANN401
    """Measure a wrapped network on one batch; nothing in it changes.

    Args:
        wrapper: the wrapper, in any state before ``finalize``.
        example_input: a batch as the network takes it, or a tuple of positional inputs.
    """
    with _measuring(wrapper, example_input) as (topology, nodes):
        costs = cost.measure(wrapper.net, example_input)
        activity = {
            name: [
                _mean(topology.neurons.get(name, ()), nodes, kind)
                for kind in ("firing_rate", "criticality_max")
            ]
            for name in costs
        }
    kept = {name: found.parameters for name, found in costs.items()} | wrapper.masks.kept()
    dropped, regrown = (history.totals(wrapper.history, kind) for kind in ("dropped", "grown"))
    layers = cost.weighted_layers(wrapper.net)
    rows = [
        ReportRow(
            name=name,
            shape=tuple(layers[name].weight.shape),
            density=kept[name] / found.parameters,
            kept=kept[name],
            total=found.parameters,
            dropped=dropped.get(name, 0),
            regrown=regrown.get(name, 0),
            firing_rate=activity[name][0],
            criticality=activity[name][1],
            binary_input=found.binary_input,
            synops_dense=found.synops_dense,
            synops=found.synops,
            macs_dense=found.macs_dense,
            macs=found.macs,
            note=_note(name, wrapper, found),
        )
        for name, found in costs.items()
    ]
    return Report(tuple(rows), _totals(wrapper, rows, costs.values()))


def _totals(
    wrapper: PruningWrapper, rows: Sequence[ReportRow], costs: Iterable[cost.LayerCost]
) -> dict[str, float]:
    costs = list(costs)
    parameters = sum(p.numel() for p in wrapper.net.parameters())
    pruned = [row for row in rows if row.name in wrapper.masks]
    weights, kept = sum(row.total for row in pruned), sum(row.kept for row in pruned)
    return {
        "parameters": parameters,
        "parameters_kept": parameters - (weights - kept),
        "weights": weights,
        "weights_kept": kept,
        "sparsity": 1.0 - kept / weights,
        "dropped": sum(row.dropped for row in rows),
        "regrown": sum(row.regrown for row in rows),
        "synops_dense": sum(c.synops_dense for c in costs),
        "synops": sum(c.synops for c in costs),
        "macs_dense": sum(c.macs_dense for c in costs),
        "macs": sum(c.macs for c in costs),
        "energy_dense": sum(c.energy_dense for c in costs),
        "energy": sum(c.energy for c in costs),
    }


# ---- explanation -------------------------------------------------------------------------------


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
                _shape(row.shape),
                row.norm or unknown,
                ", ".join(row.neurons) or unknown,
                row.group or "-",
                row.status,
            ]
            for row in self.rows
        ]
        return _table(_EXPLANATION_HEADERS, cells, markdown)


def explain(wrapper: PruningWrapper) -> Explanation:
    """Tell what `wrapper` is going to prune and why, from what it has seen so far."""
    topology = wrapper.topology
    known = Topology() if topology is None else topology
    rows = tuple(
        ExplanationRow(
            name,
            tuple(layer.weight.shape),
            known.norms.get(name),
            known.neurons.get(name, ()),
            None,  # single weights are coupled with nothing
            name in wrapper.masks,
            _status(name, wrapper),
        )
        for name, layer in cost.weighted_layers(wrapper.net).items()
    )
    schedule = _schedule_line(wrapper)
    return Explanation(rows, tuple(_warnings(wrapper)), schedule, topology is not None)


def _grows_by_activity(wrapper: PruningWrapper) -> bool:
    return bool(wrapper.method.needs) and wrapper.method.regrow_schedule is not None


def _status(name: str, wrapper: PruningWrapper) -> str:
    """Return "yes" or why a layer is not pruned, or not regrown."""
    if name not in wrapper.masks:
        if name in prunable_layers(wrapper.net):
            return "no: skipped by name"
        return "no: its weight is parametrized, so there is no parameter to mask"
    first_dense = getattr(wrapper.method.allocation, "first_dense", False)
    if first_dense and name == next(iter(wrapper.masks)):
        return "yes, but kept whole: first layer (first_dense=True)"
    if wrapper.topology is None:
        return "yes"
    problem = wrapper.topology.problems.get(name)
    if _grows_by_activity(wrapper) and not wrapper.topology.neurons.get(name):
        reason = problem or "no recording neuron follows"
        return f"yes: pruned, never regrown ({reason})"
    return f"yes (not counted: {problem})" if problem else "yes"


def _schedule_line(wrapper: PruningWrapper) -> str:
    """Return method, sparsity and update steps: what `Schedule.due` says, in words."""
    method = wrapper.method
    name, kind = type(method).__name__, "record" if method.emergent else "update"
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
    idle = [name for name in recording_nodes(wrapper.net) if name not in facts]
    if idle:
        yield f"these neurons did not run in the traced forward: {', '.join(idle)}."
    shared = [f"{name} ({fact.problem})" for name, fact in facts.items() if _is_shared(fact)]
    if shared:
        yield f"these neurons keep no statistics: {', '.join(shared)}; give each layer its own."


def _is_shared(fact: NeuronFacts) -> bool:
    return (fact.problem or "").startswith("shared")


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
