"""From traced labels to groups of units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sj_prune.network.coupling.groups import Coupling, Group

if TYPE_CHECKING:
    from sj_prune.network.coupling.tracer import _Tracer

__all__ = ["assemble"]

_KINDS = ("producers", "norms", "consumers", "neurons")
#: one unit: (kind, module name) -> its channels there
_Unit = dict[tuple[str, str], list[int]]


def assemble(net: nn.Module, tracer: _Tracer) -> Coupling:
    """Return the groups of a traced network, and why layers are not in any."""
    _freeze_shared_weights(net, tracer)
    units = _units(tracer)
    for root, unit in units.items():
        if not any(kind == "consumers" for kind, _ in unit):  # an output by some other way?
            tracer.partition.freeze(
                torch.tensor([root], device="cpu"), "no layer reads its channels"
            )
    groups: dict[tuple[tuple[str, str, int], ...], list[_Unit]] = defaultdict(list)
    for root, unit in units.items():
        if tracer.partition.reason(root) is None and any(kind == "producers" for kind, _ in unit):
            signature = tuple((kind, name, len(where)) for (kind, name), where in unit.items())
            groups[signature].append(unit)
    names: set[str] = set()
    built = tuple(_group(members, tracer, names) for members in groups.values())
    return Coupling(built, _frozen(net, tracer), _scoring_norms(tracer), tracer.neuron_dims)


def _freeze_shared_weights(net: nn.Module, tracer: _Tracer) -> None:
    """Two layers with one weight, or a weight used outside of its layer, stay as they are."""
    for names in tracer.shared():
        for name in names:
            others = ", ".join(other for other in names if other != name)
            tracer.frozen_layers.setdefault(name, f"it shares a parameter with {others}")
    for name, reason in tracer.frozen_layers.items():
        for table in (tracer.outputs, tracer.inputs, tracer.norms):
            if name in table:
                tracer.partition.freeze(table[name], reason)


def _units(tracer: _Tracer) -> dict[int, _Unit]:
    """Return class -> its channels in every module, in the order of the forward."""
    tables = (tracer.outputs, tracer.norms, tracer.inputs, tracer.neurons)
    units: dict[int, _Unit] = defaultdict(dict)
    for kind, table in zip(_KINDS, tables, strict=True):
        for name, ids in table.items():
            for channel, root in enumerate(tracer.partition.roots(ids)):
                units[root].setdefault((kind, name), []).append(channel)
    return dict(sorted(units.items()))


def _indices(units: Iterable[_Unit], kind: str) -> dict[str, Tensor]:
    units = list(units)
    names = [name for k, name in units[0] if k == kind]
    return {
        name: torch.tensor([unit[kind, name] for unit in units], device="cpu") for name in names
    }


def _group(units: list[_Unit], tracer: _Tracer, names: set[str]) -> Group:
    found = {kind: _indices(units, kind) for kind in _KINDS}
    name = next(iter(found["norms"] or found["producers"]))
    if name in names:  # a norm over a concatenation has several groups
        name = next(iter(found["producers"]))
    number, base = 1, name
    while name in names:
        number += 1
        name = f"{base}#{number}"
    names.add(name)
    producers = found["producers"]
    # A producer whose norm is one of the group's is silenced there, unless others read it too.
    unnormed = {p for p in producers if tracer.norm_of.get(p) not in found["norms"]}
    return Group(
        name=name,
        units=len(units),
        bare=frozenset(producers) & (tracer.bare | unnormed),
        norm_of={p: tracer.norm_of[p] for p in producers if p in tracer.norm_of},
        **found,
    )


def _frozen(net: nn.Module, tracer: _Tracer) -> dict[str, str]:
    """Return layer -> why some of its channels stay."""
    frozen = {}
    for name, ids in tracer.outputs.items():
        reasons = [tracer.partition.reason(root) for root in tracer.partition.roots(ids)]
        known = next((reason for reason in reasons if reason is not None), None)
        if known is not None:
            frozen[name] = tracer.frozen_layers.get(name, known)
    for name in tracer.layers:
        if name not in tracer.outputs:
            frozen[name] = "it did not run as a module, or it is not a plain layer"
    return frozen


def _scoring_norms(tracer: _Tracer) -> dict[str, tuple[str, Tensor]]:
    """Return layer -> the norm behind it and its channels there, each norm channel once."""
    found: dict[str, tuple[str, Tensor]] = {}
    taken: dict[str, set[int]] = defaultdict(set)
    for layer, norm in tracer.norm_of.items():
        places: dict[int, list[int]] = defaultdict(list)
        for channel, root in enumerate(tracer.partition.roots(tracer.norms[norm])):
            if channel not in taken[norm]:
                places[root].append(channel)
        roots = tracer.partition.roots(tracer.outputs[layer])
        channels = [places[root].pop(0) if places[root] else -1 for root in roots]
        if -1 not in channels:  # else another layer has taken them, or some never get there
            taken[norm].update(channels)
            found[layer] = (norm, torch.tensor(channels, device="cpu"))
    return found
