"""A deployed network as a file of tensors and plain values: nothing in it is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from sj_prune.deploy.graph import Graph, Value
from sj_prune.deploy.plan import Form, Layer, Plan, Step
from sj_prune.deploy.proof import Finding
from sj_prune.deploy.tuner import Timing
from sj_prune.deploy.weights import Entries, Weights
from sj_prune.neurons.reference import Equations

_FORMAT = 1
_GRAPH = ("output", "timed", "sequence", "steps")


class Parts(NamedTuple):
    """What a deployed network is made of."""

    plan: Plan
    weights: Mapping[int, Weights]
    kernels: Mapping[int, str]
    timings: Mapping[int, Timing]
    findings: Mapping[int, Finding]
    difference: float | None


def to_plain(parts: Parts) -> dict[str, Any]:
    """Return tensors and plain values, fit for ``torch.save``.

    Raises:
        ValueError: if a part of the network stayed in torch.
    """
    steps = []
    for step in parts.plan.steps:
        if isinstance(step, Step) and step.module is not None:
            raise ValueError(
                f"Expected a network without parts that stay in torch but {step.name} does: "
                "save the network itself, and deploy it again"
            )
        steps.append({"kind": type(step).__name__, **_shallow(step)})
    graph = parts.plan.graph
    return {
        "format": _FORMAT,
        "steps": steps,
        "values": [asdict(v) for v in parts.plan.values],
        "forms": {k: asdict(v) for k, v in parts.plan.forms.items()},
        "graph": {k: getattr(graph, k) for k in _GRAPH},
        "weights": {k: _weights(v) for k, v in parts.weights.items()},
        "kernels": dict(parts.kernels),
        "timings": {k: asdict(v) for k, v in parts.timings.items()},
        "findings": {k: asdict(v) for k, v in parts.findings.items()},
        "difference": parts.difference,
    }


def _shallow(step: Layer | Step) -> dict[str, Any]:
    left_out = ("weight", "bias", "parts", "module")  # weights are kept apart
    plain = {f.name: getattr(step, f.name) for f in fields(step) if f.name not in left_out}
    if isinstance(step, Layer):
        plain["eq"] = None if step.eq is None else asdict(step.eq)
    return plain


def _weights(weights: Weights) -> dict[str, Any]:
    plain = {f.name: getattr(weights, f.name) for f in fields(weights)}
    kept = weights.by_output
    plain["by_output"] = None if kept is None else (kept.start, kept.entries)
    return plain


def from_plain(plain: Mapping[str, Any]) -> Parts:
    """Return what `to_plain` was given.

    Raises:
        ValueError: for a file of another kind or a later release.
    """
    if not isinstance(plain, Mapping) or plain.get("format") != _FORMAT:
        raise ValueError("Expected a file that SparseNetwork.save wrote, in a format known here")
    values = [Value(**v) for v in plain["values"]]
    graph = Graph(values, [], **plain["graph"])
    steps = [_step(dict(s)) for s in plain["steps"]]
    forms = {k: Form(**v) for k, v in plain["forms"].items()}
    weights = {k: _read_weights(v) for k, v in plain["weights"].items()}
    parts = Parts(
        Plan(steps, values, forms, graph),
        weights,
        dict(plain["kernels"]),
        {k: Timing(**v) for k, v in plain["timings"].items()},
        {k: Finding(**v) for k, v in plain["findings"].items()},
        plain["difference"],
    )
    _check_weights(parts)
    return parts


def _step(plain: dict[str, Any]) -> Layer | Step:
    if plain.pop("kind") == "Step":
        return Step(**plain)
    eq = plain.pop("eq")
    return Layer(**plain, eq=None if eq is None else Equations(**eq))


def _read_weights(plain: Mapping[str, Any]) -> Weights:
    kept = plain["by_output"]
    return Weights(**{**plain, "by_output": None if kept is None else Entries(*kept)})


def _check_weights(parts: Parts) -> None:
    """A damaged file must not make the engine read beyond its tensors."""
    for layer in parts.plan.steps:
        kept = parts.weights.get(layer.output)
        if kept is None or not isinstance(layer, Layer):
            continue
        channels = parts.plan.values[layer.output].shape[0]
        kernel = math.prod(layer.geometry["kernel"])
        planes = max(1, parts.plan.forms[layer.input].planes)
        rows = kernel * planes * parts.plan.values[layer.input].shape[0]
        whole = kept.by_output is None or _is_whole(kept.by_output, channels, rows)
        if kept.by_input is not None:
            whole &= kept.by_input.numel() >= rows * channels
        if not whole:
            raise ValueError(f"Expected whole weights of {layer.name} but the file is damaged")


def _is_whole(matrix: Entries, channels: int, rows: int) -> bool:
    start, used = matrix.start, matrix.entries[: int(matrix.start[-1])]
    rises = bool((start[1:] >= start[:-1]).all()) and int(start[0]) == 0
    within = bool((used & 0xFFFFFFFF < rows).all())
    return rises and within and len(start) == channels + 1 and len(used) == int(start[-1])
