"""What a deployed network says of itself: a row a layer, and totals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sj_prune.deploy.plan import Layer, Plan
from sj_prune.deploy.proof import Finding
from sj_prune.deploy.tuner import Timing
from sj_prune.deploy.weights import Weights
from sj_prune.reports.tables import optional, readable, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEADERS = (
    "layer",
    "neurons",
    "density",
    "rate",
    "kernel",
    "ms",
    "dense ms",
    "speed-up",
    "bytes",
    "open",
)


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: of the layer, or of neurons that stand alone.
        neurons: name of the neurons in it, or "".
        density: fraction of weights that are not 0, or None without weights.
        rate: fraction of its inputs that are not 0 at a step, on the input of `deploy`.
        kernel: "bits" (packed spikes), "reals", "events", "dense" (torch's convolution), "neurons"
            (no weights) or "torch" (left as it was).
        seconds: processor time of one thread on `samples` of the input of `deploy`, or None.
        dense_seconds: the same by torch's dense convolution, neurons included.
        samples: on which it was timed.
        bytes: of its weights.
        spikes: outputs that the proof compared.
        open: outputs that float64 does not decide, see `sj_prune.deploy.proof`.
    """

    name: str
    neurons: str
    density: float | None
    rate: float | None
    kernel: str
    seconds: float | None
    dense_seconds: float | None
    samples: int
    bytes: int
    spikes: int
    open: int

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the table."""
        ms, dense = (None if s is None else 1e3 * s for s in (self.seconds, self.dense_seconds))
        gain = f"{dense / ms:.1f}" if ms and dense else ""
        return (
            self.name,
            self.neurons,
            optional(self.density),
            optional(self.rate),
            self.kernel,
            optional(ms),
            optional(dense),
            gain,
            readable(self.bytes, "B"),
            f"{self.open} of {self.spikes}" if self.spikes else "",
        )


@dataclass(frozen=True)
class DeployReport:
    """A table of layers; ``print`` it.

    Attributes:
        rows: one a layer.
        checked: the layers were proved.
        difference: the largest difference of the outputs from the network's own, or None.
    """

    rows: tuple[Row, ...]
    checked: bool
    difference: float | None

    def __str__(self) -> str:
        return self.to_text()

    def _closing(self) -> str:
        timed = [r for r in self.rows if r.seconds is not None and r.dense_seconds is not None]
        ours = sum(r.seconds or 0.0 for r in timed)
        dense = sum(r.dense_seconds or 0.0 for r in timed)
        text = f"weights: {readable(sum(r.bytes for r in self.rows), 'B')}"
        if ours:
            text += (
                f"; layers, one thread, N = {timed[0].samples}: {1e3 * dense:.3g} ms dense => "
                f"{1e3 * ours:.3g} ms ({dense / ours:.1f} times faster)"
            )
        if not self.checked:
            return f"{text}; not checked"
        total, unknown = (sum(getattr(r, k) for r in self.rows) for k in ("spikes", "open"))
        text += f"; open: {unknown} of {total} outputs"
        if self.difference is not None:
            text += f"; largest difference of the network's outputs: {self.difference:.3g}"
        return text

    def to_text(self) -> str:
        """Return the table and the totals as plain text."""
        rows = table(_HEADERS, (row.cells() for row in self.rows), markdown=False)
        return f"{rows}\n\n{self._closing()}"

    def to_markdown(self) -> str:
        """Return the same in GitHub's Markdown."""
        rows = table(_HEADERS, (row.cells() for row in self.rows), markdown=True)
        return f"{rows}\n\n**{self._closing()}**"

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the time of each layer, dense and as deployed, and how many times faster it is.

        Raises:
            ImportError: without matplotlib.
        """
        from sj_prune.plots.axes import COLORS, axes, grid, legend_above, name_ticks

        timed = [r for r in self.rows if r.seconds is not None and r.dense_seconds is not None]
        figure, ax = axes(ax, width=max(6.4, 0.55 * len(timed)))
        for shift, color, name in ((-0.2, COLORS[1], "dense"), (0.2, COLORS[0], "deployed")):
            key = "dense_seconds" if name == "dense" else "seconds"
            heights = [1e3 * getattr(r, key) for r in timed]
            places = [i + shift for i in range(len(timed))]
            ax.bar(places, heights, 0.4, color=color, label=name)
        for place, row in enumerate(timed):
            ours, dense = row.seconds or 0.0, row.dense_seconds or 0.0
            gain = dense / ours if ours else 0.0
            text = f"{gain:.{0 if gain >= 10 else 1}f}x"
            ax.text(place, 1e3 * max(ours, dense), text, ha="center", va="bottom", fontsize="small")
        ax.margins(y=0.1)
        ax.set_xlabel("layer")
        ax.set_ylabel("time of one thread (ms)")
        name_ticks(ax, [r.name for r in timed])
        grid(ax, "y")
        legend_above(figure, ax)
        return figure, ax


def rows_of(
    made: Plan,
    weights: Mapping[int, Weights],
    kernels: Mapping[int, str],
    timings: Mapping[int, Timing],
    findings: Mapping[int, Finding],
) -> tuple[Row, ...]:
    """Return a row for each layer, and for each module that stayed in torch."""
    rows = []
    for step in made.steps:
        if isinstance(step, Layer):
            rows.append(_row(step, weights, kernels, timings, findings))
        elif step.op == "torch":
            rows.append(Row(step.name, "", None, None, "torch", None, None, 0, 0, 0, 0))
    return tuple(rows)


def _row(
    layer: Layer,
    weights: Mapping[int, Weights],
    kernels: Mapping[int, str],
    timings: Mapping[int, Timing],
    findings: Mapping[int, Finding],
) -> Row:
    kept, timing = weights.get(layer.output), timings.get(layer.output)
    kernel, found = kernels[layer.output], findings.get(layer.output, Finding())
    return Row(
        layer.name,
        layer.neuron or "",
        kept.density if kept else None,
        timing.rate if timing else None,
        kernel,
        timing.seconds[kernel] if timing else None,
        timing.seconds.get("dense") if timing else None,
        timing.samples if timing else 0,
        kept.bytes() if kept else 0,
        found.spikes,
        found.open,
    )
