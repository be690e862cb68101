"""What a run did to a network: sizes, activity and cost per layer, before => after."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sj_prune.masks.select import count
from sj_prune.methods.base import LayerActivity
from sj_prune.network.inputs import as_args
from sj_prune.network.topology import NeuronFacts, Topology, trace
from sj_prune.neurons.convert import recording_nodes
from sj_prune.neurons.nodes import RecordingNode
from sj_prune.neurons.recording import temporary_activity
from sj_prune.reports import cost
from sj_prune.reports.explain import why_dense
from sj_prune.reports.tables import before_after, optional, shape_text, table, write
from sj_prune.run import history
from sj_prune.run.update import scoring_neurons

if TYPE_CHECKING:
    from os import PathLike

    from sj_prune.wrapper import PruningWrapper

__all__ = ["Report", "ReportRow", "channel_criticality", "report"]

_SHOWN = ("firing_rate", "criticality_max")
_SLOW = (
    "A masked dense network is not faster on a CPU or GPU: hardware that skips zeros turns these "
    "counts into time."
)
_COMPACT = (
    " Whole channels can be cut out: sj_prune.compact(model.finalize(), example_input) returns a "
    "smaller network with the same outputs."
)
_BEFORE = (
    "Before => after: all weights counted against the kept ones, on the same measured spikes; "
    f"operations and energy per sample, over all time steps ({cost.PICOJOULES_PER_MAC} pJ a MAC, "
    f"{cost.PICOJOULES_PER_AC} pJ a SynOp, memory traffic left out)."
)


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
        firing_rate: spikes per neuron and step of the neurons that score it (of whole channels,
            those behind a flatten or a concatenation too); None without any.
        criticality: mean over channels of their ``criticality_max``; None without any.
        binary_input: it received spikes only.
        synops_dense: synaptic operations per sample with every weight.
        synops: with the kept ones, those that have just been regrown and are 0 still too.
        macs_dense: multiply-accumulates per sample with every weight.
        macs: with the kept ones.
        note: why it is not pruned, or not measured; else empty.
        channels: number of output channels, where whole channels are pruned; else None.
        channels_kept: number of them that are kept.
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
    channels: int | None = None
    channels_kept: int | None = None

    def cells(self) -> list[str]:
        """Return the texts of the table."""
        kinds = (("SynOps", self.synops_dense, self.synops), ("MACs", self.macs_dense, self.macs))
        operations = [f"{before_after(b, a)} {kind}" for kind, b, a in kinds if b]
        return [
            self.name,
            shape_text(self.shape),
            "" if self.channels is None else f"{self.channels} => {self.channels_kept}",
            f"{self.density:.4f}",
            f"{self.kept:,} / {self.total:,}",
            f"{self.dropped:,}",
            f"{self.regrown:,}",
            optional(self.firing_rate),
            optional(self.criticality),
            " + ".join(operations) or ("0 SynOps" if self.binary_input else "-"),
            self.note,
        ]


_REPORT_HEADERS = (
    "layer",
    "shape",
    "channels",
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
        channels = f"{int(t['channels'])} => {int(t['channels_kept'])}" if "channels" in t else ""
        parts = (
            *([f"channels: {channels}"] if channels else []),
            f"parameters: {before_after(t['parameters'], t['parameters_kept'])}",
            f"SynOps: {before_after(t['synops_dense'], t['synops'])}",
            f"MACs: {before_after(t['macs_dense'], t['macs'])}",
            f"energy: {before_after(t['energy_dense'], t['energy'], 'J', -12)}",
        )
        return ", ".join(parts)

    def to_text(self) -> str:
        """Return the table, the totals and what they mean, as plain text."""
        text = table(_REPORT_HEADERS, (row.cells() for row in self.rows), markdown=False)
        sparsity = f"sparsity of the pruned layers: {self.totals['sparsity']:.4f}"
        return "\n".join([text, "", f"{self._closing()}; {sparsity}", _BEFORE, self._slow()])

    def to_markdown(self) -> str:
        """Return the same in GitHub's Markdown."""
        text = table(_REPORT_HEADERS, (row.cells() for row in self.rows), markdown=True)
        return "\n\n".join([text, f"**{self._closing()}**", _BEFORE, self._slow()])

    def _slow(self) -> str:
        return _SLOW + (_COMPACT if "channels" in self.totals else "")

    def to_csv(self, path: str | PathLike[str] | None = None) -> str:
        """Return the rows as CSV, and write it to `path`, if given.

        A shape is written as ``64x3x3x3``; None is an empty field; numbers are exact.
        """
        text = io.StringIO()
        names = [field.name for field in fields(ReportRow)]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), "shape": shape_text(row.shape)} for row in self.rows)
        return write(text.getvalue(), path)

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """Return rows and totals as JSON, and write it to `path`, if given."""
        content = {"rows": [asdict(row) for row in self.rows], "totals": self.totals}
        return write(json.dumps(content, indent=2) + "\n", path)


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
            topology = trace(wrapper.net, wrapper.layers, as_args(example_input))
        for name, node in nodes.items():
            node.recording = topology.facts.get(name, NeuronFacts()).problem is None
            node.activity.clear()
        yield topology, nodes


def _activity(
    neurons: Mapping[str, Tensor | None], nodes: Mapping[str, RecordingNode]
) -> tuple[float | None, float | None]:
    """Return firing rate and criticality, means over a layer's channels, if neurons recorded."""
    seen = {
        name: own for name, own in neurons.items() if name in nodes and nodes[name].activity.count
    }
    if not seen:
        return None, None
    found = LayerActivity([nodes[name] for name in seen], list(seen.values()))
    rate, criticality = (float(found.mean(kind).mean()) for kind in _SHOWN)
    return rate, criticality


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
    if name not in wrapper.masks.layers:
        notes.append(why_dense(name, wrapper))
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
        masks = wrapper.masks.element_masks()
        costs = cost.measure(wrapper.net, example_input, masks=masks)
        activity = {
            name: _activity(scoring_neurons(topology, wrapper.coupling, name), nodes)
            for name in costs
        }
    kept = {name: found.parameters for name, found in costs.items()}
    kept |= dict(zip(masks, count(list(masks.values())), strict=True))
    dropped, regrown = (_by_layer(wrapper, kind) for kind in ("dropped", "grown"))
    widths = wrapper.masks.widths()
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
            channels=widths[name][0] if name in widths else None,
            channels_kept=widths[name][1] if name in widths else None,
        )
        for name, found in costs.items()
    ]
    return Report(tuple(rows), _totals(wrapper, rows, costs.values()))


def _by_layer(wrapper: PruningWrapper, kind: str) -> dict[str, int]:
    """Return how much was dropped or grown over the run, by layer; coupled ones alike."""
    masks = wrapper.masks
    totals = history.totals(wrapper.history, kind)
    return {layer: n for scope, n in totals.items() for layer in masks.members(scope)}


def _totals(
    wrapper: PruningWrapper, rows: Sequence[ReportRow], costs: Iterable[cost.LayerCost]
) -> dict[str, float]:
    costs = list(costs)
    parameters = sum(p.numel() for p in wrapper.net.parameters())
    masks = wrapper.masks
    touched = masks.element_masks()
    pruned = [row for row in rows if row.name in touched]
    weights, kept = sum(row.total for row in pruned), sum(row.kept for row in pruned)
    units, kept_units = masks.units(), masks.kept_units()
    channels = {"channels": sum(units.values()), "channels_kept": sum(kept_units.values())}
    return {
        **(channels if masks.widths() else {}),
        "parameters": parameters,
        "parameters_kept": parameters - masks.removed_parameters(),
        "weights": weights,
        "weights_kept": kept,
        "sparsity": 1.0 - kept / weights if weights else 0.0,
        "dropped": sum(history.totals(wrapper.history, "dropped").values()),
        "regrown": sum(history.totals(wrapper.history, "grown").values()),
        "synops_dense": sum(c.synops_dense for c in costs),
        "synops": sum(c.synops for c in costs),
        "macs_dense": sum(c.macs_dense for c in costs),
        "macs": sum(c.macs for c in costs),
        "energy_dense": sum(c.energy_dense for c in costs),
        "energy": sum(c.energy for c in costs),
    }
