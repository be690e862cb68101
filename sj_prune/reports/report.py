"""A report: sizes, activity and cost per layer, before => after, as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, fields
from os import PathLike

from sj_prune.reports import cost
from sj_prune.reports.tables import before_after, optional, shape_text, table, write

_SLOW = (
    "Zeros alone make torch no faster: sj_prune.deploy(net, x_seq) turns these counts into time on "
    "a CPU, as hardware that skips zeros does."
)
_COMPACT = (
    " Whole channels can be cut out: sj_prune.compact(model.finalize(), example_input) returns a "
    "smaller network with the same outputs."
)
_SAME_SPIKES = "all weights counted against the kept ones, on the same measured spikes; "
_OWN_SPIKES = "the dense network, measured before it was pruned, against this one; "
_BEFORE = (
    "per sample, over all time steps; MACs multiply spikes like any number, operations are SynOps "
    f"and analog MACs. {cost.MEANING} Fans are weights at one neuron and from one input, mean and "
    "most."
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
        synops_dense: synaptic operations per sample with every weight: on the dense network's own
            spikes where it was measured before it was pruned (`Report.measured_before`), else on
            the spikes of the network as it is.
        synops: with the kept ones, those that have just been regrown and are 0 still too.
        total_macs_dense: multiply-accumulates per sample with every weight, likewise, spikes
            multiplied like any number.
        total_macs: with the kept ones.
        macs_dense: those of `total_macs_dense` on inputs that are no spikes.
        macs: with the kept ones.
        events_dense: `synops_dense` where averages and sums of spikes count as the spikes in them,
            as on a chip that passes spikes on.
        events: with the kept ones.
        fan_in: mean number of kept weights that an output adds up.
        fan_in_max: largest.
        fan_out: mean number of kept weights that an input meets.
        fan_out_max: largest.
        note: why it is not pruned, or not measured; else empty.
        channels: number of output channels, where whole channels are pruned; else None.
        channels_kept: number of them that are kept.
        survival: fraction of what updates regrew here that survived the prune of the next one; None
            if nothing was regrown that a prune followed.
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
    total_macs_dense: float
    total_macs: float
    macs_dense: float
    macs: float
    events_dense: float
    events: float
    fan_in: float
    fan_in_max: float
    fan_out: float
    fan_out_max: float
    note: str = ""
    channels: int | None = None
    channels_kept: int | None = None
    survival: float | None = None

    def cells(self) -> list[str]:
        """Return the texts of the table."""
        kinds = (
            ("SynOps", self.synops_dense, self.synops),
            ("analog MACs", self.macs_dense, self.macs),
        )
        operations = [f"{before_after(b, a)} {kind}" for kind, b, a in kinds if b or a]
        same = (self.events_dense, self.events) == (self.synops_dense, self.synops)
        return [
            self.name,
            shape_text(self.shape),
            "" if self.channels is None else f"{self.channels} => {self.channels_kept}",
            f"{self.density:.4f}",
            f"{self.kept:,} / {self.total:,}",
            f"{self.dropped:,}",
            f"{self.regrown:,}",
            "" if self.survival is None else f"{100 * self.survival:.1f} %",
            optional(self.firing_rate),
            optional(self.criticality),
            f"{self.fan_in:.1f} (<= {self.fan_in_max:.0f})",
            f"{self.fan_out:.1f} (<= {self.fan_out_max:.0f})",
            " + ".join(operations) or ("0 SynOps" if self.binary_input else "-"),
            "" if same else before_after(self.events_dense, self.events),
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
    "survived",
    "firing rate",
    "criticality",
    "fan-in",
    "fan-out",
    "operations per sample, before => after",
    "events",
    "note",
)


@dataclass(frozen=True)
class Report:
    """Sizes, activity and cost of a network under its masks; `str` gives the table.

    Attributes:
        rows: one a layer.
        totals: sums over layers. ``parameters`` and ``parameters_kept`` are those of the whole
            network, biases and norms included; ``weights`` and ``weights_kept`` those of the
            layers that are pruned; ``synops``, ``events``, ``total_macs``, ``macs``, ``energy`` and
            ``energy_loihi`` (pJ, without and with memory access) are per sample, each with its
            ``..._dense`` before; ``memory`` (bytes of all weights) and ``memory_csr`` of the kept
            ones, each weight with its bits; ``survival`` is that of all regrown units, if there is
            any.
        measured_before: "before" is what the dense network did, measured before it was pruned, as
            `sj_prune.prune` has it; else every weight counts on the present spikes.
    """

    rows: tuple[ReportRow, ...]
    totals: dict[str, float]
    measured_before: bool = False

    def __str__(self) -> str:
        return self.to_text()

    def _closing(self) -> str:
        t = self.totals
        channels = f"{int(t['channels'])} => {int(t['channels_kept'])}" if "channels" in t else ""
        parts = (
            *([f"channels: {channels}"] if channels else []),
            f"parameters: {before_after(t['parameters'], t['parameters_kept'])}",
            f"SynOps: {before_after(t['synops_dense'], t['synops'])}",
            f"MACs: {before_after(t['total_macs_dense'], t['total_macs'])}",
            f"analog MACs: {before_after(t['macs_dense'], t['macs'])}",
            f"events: {before_after(t['events_dense'], t['events'])}",
            f"energy: {before_after(t['energy_dense'], t['energy'], 'J', -12)}",
            f"on Loihi: {before_after(t['energy_loihi_dense'], t['energy_loihi'], 'J', -12)}",
            f"memory, all => kept as CSR: {before_after(t['memory'], t['memory_csr'], 'B')}",
        )
        return ", ".join(parts)

    def to_text(self) -> str:
        """Return the table, the totals and what they mean, as plain text."""
        text = table(_REPORT_HEADERS, (row.cells() for row in self.rows), markdown=False)
        sparsity = f"sparsity of the pruned layers: {self.totals['sparsity']:.4f}"
        closing = f"{self._closing()}; {sparsity}"
        return "\n".join([text, "", closing, *self._regrowth(), self._before(), self._slow()])

    def to_markdown(self) -> str:
        """Return the same in GitHub's Markdown."""
        text = table(_REPORT_HEADERS, (row.cells() for row in self.rows), markdown=True)
        parts = [text, f"**{self._closing()}**", *self._regrowth(), self._before(), self._slow()]
        return "\n\n".join(parts)

    def _regrowth(self) -> list[str]:
        if "survival" not in self.totals:
            return []
        rate = f"{100 * self.totals['survival']:.1f} %"
        return [f"Regrowth: {rate} of what an update regrew survived the prune of the next one."]

    def _before(self) -> str:
        return f"Before => after: {_OWN_SPIKES if self.measured_before else _SAME_SPIKES}{_BEFORE}"

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
