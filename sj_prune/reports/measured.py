"""Measures what a run has done to a network: one forward on a batch; nothing changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from torch import OutOfMemoryError, Tensor, nn

from sj_prune.masks.select import count
from sj_prune.methods.view import LayerActivity
from sj_prune.network.facts import NeuronFacts, Topology, scoring_neurons
from sj_prune.network.inputs import as_args
from sj_prune.network.topology import trace
from sj_prune.neurons.convert import Sensor, recording_nodes, sensors
from sj_prune.neurons.recording import temporary_activity
from sj_prune.reports import cost
from sj_prune.reports.explain import why_dense
from sj_prune.reports.report import Report, ReportRow
from sj_prune.run import history
from sj_prune.run.anatomy import layers_of, learn_example
from sj_prune.run.looks import applied
from sj_prune.run.session import Session
from sj_prune.run.state import Run

_Number = TypeVar("_Number", int, float)
_SHOWN = ("firing_rate", "criticality_max")


@contextmanager
def _nodes_kept(net: nn.Module) -> Iterator[dict[str, Sensor]]:
    """As `temporary_activity`, and what else a forward or a trace leaves in the nodes."""
    nodes = recording_nodes(net)
    dims = {sensor: sensor.channel_dim for sensor in sensors(net).values()}
    kept = {n: (m.trace, m.h_seq, m.g_seq) for n, m in nodes.items()}
    try:
        with temporary_activity(net) as found:
            for node in nodes.values():
                node.trace = False  # the user's traced potentials stay as they are
            yield found
    finally:
        for sensor, dim in dims.items():
            sensor.channel_dim = dim
        for name, node in nodes.items():
            node.trace, node.h_seq, node.g_seq = kept[name]


@contextmanager
def _explained(net: nn.Module, run: Run, example_input: Any) -> Iterator[None]:  # noqa: ANN401
    """Say of an input that the network does not take what `PruningWrapper.explain` says of it."""
    try:
        yield
    except (MemoryError, OutOfMemoryError):
        raise
    except Exception:
        try:
            trace(net, layers_of(net, run), as_args(example_input))
        except Exception:
            inputs = run.anatomy.inputs
            try:
                learn_example(net, run, example_input)  # raises: it fails as the trace did
            finally:
                run.anatomy.inputs = inputs  # a report changes nothing
        raise  # something else is wrong


@contextmanager
def _measuring(
    net: nn.Module,
    run: Run,
    example_input: Any,  # noqa: ANN401
) -> Iterator[tuple[Topology, dict[str, Sensor]]]:
    """Let all nodes that can do so record what is run inside this block, in eval mode too."""
    with _nodes_kept(net) as nodes, _explained(net, run, example_input):
        topology = run.anatomy.topology
        if topology is None:
            # Not kept: a report changes nothing, the first training forward will tell.
            topology = trace(net, layers_of(net, run), as_args(example_input))
        for name, node in nodes.items():
            node.recording = topology.facts.get(name, NeuronFacts()).problem is None
            node.activity.clear()
        yield topology, nodes


def _activity(
    neurons: Mapping[str, Tensor | None], nodes: Mapping[str, Sensor]
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


def channel_means(
    session: Session,
    example_input: Any = None,  # noqa: ANN401
    kind: str = "criticality_max",
) -> dict[str, Tensor]:
    """Return a statistic per channel of every neuron layer that has it, ``[C]`` each.

    Args:
        session: of a wrapped network; its masks are applied, nothing else changes.
        example_input: what to measure on, in eval mode; by default what the neurons have recorded
            since the last mask update.
        kind: name of the statistic.
    """
    net, run = session.net, applied(session)
    if example_input is None:
        return _recorded(sensors(net), kind)
    with _measuring(net, run, example_input) as (_, nodes):
        cost.measure(net, example_input, layers={}, samples=1)  # for its careful forward
        return _recorded(nodes, kind)


def _recorded(nodes: Mapping[str, Sensor], kind: str) -> dict[str, Tensor]:
    return {
        name: node.activity.mean(kind)
        for name, node in nodes.items()
        if kind in node.activity.names and node.activity.count
    }


def _note(name: str, net: nn.Module, run: Run, found: cost.LayerCost) -> str:
    notes = []
    if name not in run.masks.layers:
        notes.append(why_dense(name, net, run))
    if found.calls == 0:
        notes.append("its operations were not seen: it was not called as a module")
    return "; ".join(notes)


def report(
    net: nn.Module,
    run: Run,
    example_input: Any,  # noqa: ANN401
    before: cost.NetworkCost | None = None,
) -> Report:
    """Measure a wrapped network on one batch; nothing in it changes.

    Args:
        net: the network.
        run: its run, in any state before ``finalize``.
        example_input: a batch as the network takes it, or a tuple of positional inputs.
        before: what the dense network cost, measured before it was pruned; by default every weight
            counts on the spikes of the network as it is.
    """
    with _measuring(net, run, example_input) as (topology, nodes):
        masks = run.masks.element_masks()
        costs = cost.measure(net, example_input, masks=masks)
        activity = {
            name: _activity(scoring_neurons(topology, run.anatomy.coupling, name), nodes)
            for name in costs
        }
    energy = costs.energy(cost.LOIHI), (before or costs).energy(cost.LOIHI, "_dense")
    if before is not None:
        costs.update((name, _instead(each, before.get(name, each))) for name, each in costs.items())
    kept = {name: found.parameters for name, found in costs.items()}
    kept |= dict(zip(masks, count(list(masks.values())), strict=True))
    dropped = _by_layer(run, history.totals(run.history, "dropped"))
    regrown = _by_layer(run, history.totals(run.history, "grown"))
    survival = _by_layer(run, history.survival(run.history))
    widths = run.masks.widths()
    rows = [
        ReportRow(
            name=name,
            shape=found.shape,
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
            total_macs_dense=found.total_macs_dense,
            total_macs=found.total_macs,
            macs_dense=found.macs_dense,
            macs=found.macs,
            events_dense=found.events_dense,
            events=found.events,
            fan_in=found.fan_in[0],
            fan_in_max=found.fan_in[1],
            fan_out=found.fan_out[0],
            fan_out_max=found.fan_out[1],
            note=_note(name, net, run, found),
            channels=widths[name][0] if name in widths else None,
            channels_kept=widths[name][1] if name in widths else None,
            survival=survival.get(name),
        )
        for name, found in costs.items()
    ]
    totals = _totals(net, run, rows, costs)
    totals["energy_loihi"], totals["energy_loihi_dense"] = energy
    return Report(tuple(rows), totals, measured_before=before is not None)


def _instead(found: cost.LayerCost, before: cost.LayerCost) -> cost.LayerCost:
    """Return a layer's cost, with that of the dense network as its "dense"."""
    return replace(
        found,
        synops_dense=before.synops_dense,
        total_macs_dense=before.total_macs_dense,
        macs_dense=before.macs_dense,
        events_dense=before.events_dense,
    )


def _by_layer(run: Run, by_scope: Mapping[str, _Number]) -> dict[str, _Number]:
    """Return what history says of scopes by layer; coupled ones alike."""
    scopes = run.masks.scopes.items()
    return {layer: by_scope[n] for n, scope in scopes if n in by_scope for layer in scope.layers}


def _totals(
    net: nn.Module, run: Run, rows: Sequence[ReportRow], costs: cost.NetworkCost
) -> dict[str, float]:
    parameters = sum(p.numel() for p in net.parameters())
    masks = run.masks
    touched = masks.element_masks()
    pruned = [row for row in rows if row.name in touched and row.name not in masks.idle]
    weights, kept = sum(row.total for row in pruned), sum(row.kept for row in pruned)
    units, kept_units = masks.units(), masks.kept_units()
    channels = {"channels": sum(units.values()), "channels_kept": sum(kept_units.values())}
    survival = history.survival(run.history)
    return {
        **(channels if masks.widths() else {}),
        **({"survival": survival["total"]} if survival else {}),
        "parameters": parameters,
        "parameters_kept": parameters - masks.removed_parameters(),
        "weights": weights,
        "weights_kept": kept,
        "sparsity": 1.0 - kept / weights if weights else 0.0,
        "dropped": sum(history.totals(run.history, "dropped").values()),
        "regrown": sum(history.totals(run.history, "grown").values()),
        **{
            name: costs.total(name)
            for kind in ("synops", "events", "total_macs", "macs", "energy")
            for name in (f"{kind}_dense", kind)
        },
        "memory": costs.total("memory"),
        "memory_csr": costs.total("memory_csr"),
    }
