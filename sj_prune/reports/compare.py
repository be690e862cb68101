"""Two networks side by side: layer widths, size, operations and latency, before => after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sj_prune.network.layers import output_channels
from sj_prune.reports import cost
from sj_prune.reports.tables import before_after, shape_text, table

_HEADERS = ("layer", "shape", "weights", "MACs, zeros too", "MACs", "SynOps", "events")
#: totals, and what of a layer's cost they sum up
_SUMS = {
    **{"macs_dense": "total_macs_dense", "macs": "total_macs"},
    **{name: name for name in ("synops", "events", "energy", "memory", "memory_csr")},
}
_MEANING = (
    "Per sample, over all time steps: MACs of the weights that are not 0, spikes multiplied like "
    "any number, and of the zeros too, as a CPU or GPU does them; SynOps on the spikes of each "
    f"network. {cost.MEANING} Memory of the weights of layers, as they are and as CSR."
)


@dataclass(frozen=True)
class ComparisonRow:
    """One layer in both networks.

    `shapes` are those of its weight; `channels` those of its output, which a transposed convolution
    counts in the second dimension.
    """

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    weights: tuple[int, int]
    macs_dense: tuple[float, float]
    macs: tuple[float, float]
    synops: tuple[float, float]
    events: tuple[float, float]
    channels: tuple[int, int]

    def cells(self) -> list[str]:
        """Return the texts of the table."""
        first, second = (shape_text(shape) for shape in self.shapes)
        return [
            self.name,
            first if first == second else f"{first} => {second}",
            before_after(*self.weights),
            before_after(*self.macs_dense),
            before_after(*self.macs),
            before_after(*self.synops),
            before_after(*self.events) if self.events != self.synops else "",
        ]


@dataclass(frozen=True)
class Comparison:
    """Rows and totals of two networks; `str` gives the table.

    Attributes:
        rows: one a layer.
        totals: name -> (before, after): ``parameters`` (nonzero ones in ``nonzero``), ``macs``
            (with zero weights in ``macs_dense``), ``synops``, ``events``, and in pJ ``energy`` and
            ``energy_loihi`` (with memory access) per sample, ``memory`` and ``memory_csr``, bytes
            of the layers' weights, zeros too and as sparse rows (quantized ones with their bits),
            and ``latency`` in seconds for the whole batch, where it was measured.
    """

    rows: tuple[ComparisonRow, ...]
    totals: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        lines = table(_HEADERS, (row.cells() for row in self.rows), markdown=False)
        return "\n".join([lines, "", self._closing(), _MEANING])

    def to_markdown(self) -> str:
        """Return the same in GitHub's Markdown."""
        lines = table(_HEADERS, (row.cells() for row in self.rows), markdown=True)
        return "\n\n".join([lines, f"**{self._closing()}**", _MEANING])

    def _milliseconds(self) -> dict[str, tuple[float, float]]:
        pair = self.totals.get("latency")
        return {} if pair is None else {"latency": (1e3 * pair[0], 1e3 * pair[1])}

    def _closing(self) -> str:
        units: Mapping[str, tuple[str, int]] = {
            **{"energy": ("J", -12), "energy_loihi": ("J", -12), "latency": ("s", -3)},
            **{"memory": ("B", 0), "memory_csr": ("B", 0)},
        }
        titles = {
            **{"macs_dense": "MACs, zeros too", "macs": "MACs", "synops": "SynOps"},
            **{"memory_csr": "memory as CSR", "energy_loihi": f"energy on {cost.LOIHI.name}"},
        }
        return ", ".join(
            f"{titles.get(name, name)}: {before_after(*pair, *units.get(name, ('', 0)))}"
            for name, pair in (self.totals | self._milliseconds()).items()
        )


def compare(
    before: nn.Module,
    after: nn.Module,
    example_input: Any,  # noqa: ANN401
    *,
    latency: bool = True,
) -> Comparison:
    """Measure two networks on one batch, in eval mode; both come back as they were.

    Args:
        before: the dense or masked network.
        after: the pruned one, such as `sj_prune.compact` returns; layers of the same names.
        example_input: a batch as both take it, or a tuple of positional inputs.
        latency: time forwards of both too.

    Raises:
        ValueError: if they have no layer in common.
    """
    first, second = (cost.measure(net, example_input) for net in (before, after))
    names = [name for name in first if name in second]
    if not names:
        raise ValueError(
            f"Expected two forms of one network but their layers {list(first)[:3]} and "
            f"{list(second)[:3]} have no name in common: of a wrapper give model.net"
        )
    channels = {
        name: (_channels(before.get_submodule(name)), _channels(after.get_submodule(name)))
        for name in names
    }
    rows = tuple(_row(name, first[name], second[name], channels[name]) for name in names)
    totals = {
        "parameters": (_parameters(before), _parameters(after)),
        "nonzero": (_nonzero(before), _nonzero(after)),
        **{name: (first.total(kind), second.total(kind)) for name, kind in _SUMS.items()},
        "energy_loihi": (first.energy(cost.LOIHI), second.energy(cost.LOIHI)),
    }
    if latency:
        totals["latency"] = _latencies(before, after, example_input)
    return Comparison(rows, totals)


def _latencies(before: nn.Module, after: nn.Module, example_input: Any) -> tuple[float, float]:  # noqa: ANN401
    """Return the latencies of both, in turns: a machine's mood changes."""
    pairs = [
        [cost.latency(net, example_input, repeats=3, warm_up=1) for net in (before, after)]
        for _ in range(3)
    ]
    first, second = zip(*pairs, strict=True)
    return sorted(first)[1], sorted(second)[1]


def _channels(layer: Any) -> int:  # noqa: ANN401
    return output_channels(layer)


def _row(
    name: str, first: cost.LayerCost, second: cost.LayerCost, channels: tuple[int, int]
) -> ComparisonRow:
    return ComparisonRow(
        name=name,
        shapes=(first.shape, second.shape),
        weights=(first.parameters_nonzero, second.parameters_nonzero),
        macs_dense=(first.total_macs_dense, second.total_macs_dense),
        macs=(first.total_macs, second.total_macs),
        synops=(first.synops, second.synops),
        events=(first.events, second.events),
        channels=channels,
    )


def _parameters(net: nn.Module) -> float:
    return float(sum(p.numel() for p in net.parameters()))


def _nonzero(net: nn.Module) -> float:
    return float(sum(int(p.count_nonzero()) for p in net.parameters()))
