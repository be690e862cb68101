"""From traced labels to groups of units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from sj_prune.network.coupling.groups import Coupling, Group
from sj_prune.network.coupling.traced import Traced

_KINDS = ("producers", "norms", "consumers", "neurons")
#: one unit: (kind, module name) -> its channels there
_Unit = dict[tuple[str, str], list[int]]


def assemble(traced: Traced) -> Coupling:
    """Return the groups of a traced network, and why layers are not in any."""
    _freeze_shared_weights(traced)
    units = _units(traced)
    for root, unit in units.items():
        if "consumers" not in {kind for kind, _ in unit}:  # an output by some other way?
            traced.partition.freeze(
                torch.tensor([root], device="cpu"), "no layer reads its channels"
            )
    groups: dict[tuple[tuple[str, str, int], ...], list[_Unit]] = defaultdict(list)
    for root, unit in units.items():
        if traced.partition.reason(root) is None and "producers" in {kind for kind, _ in unit}:
            signature = tuple((kind, name, len(where)) for (kind, name), where in unit.items())
            groups[signature].append(unit)
    names: set[str] = set()
    built = tuple(_group(members, traced, names) for members in groups.values())
    return Coupling(built, _frozen(traced), _scoring_norms(traced), traced.neuron_dims)


def _freeze_shared_weights(traced: Traced) -> None:
    """Two layers with one weight, or a weight used outside of its layer, stay as they are."""
    for names in traced.owners.values():
        for name in names if len(names) > 1 else ():
            others = ", ".join(other for other in names if other != name)
            traced.frozen_layers.setdefault(name, f"it shares a parameter with {others}")
    for name, reason in traced.frozen_layers.items():
        for table in (traced.outputs, traced.inputs, traced.norms):
            if name in table:
                traced.partition.freeze(table[name], reason)


def _units(traced: Traced) -> dict[int, _Unit]:
    """Return class -> its channels in every module, in the order of the forward."""
    tables = (traced.outputs, traced.norms, traced.inputs, traced.neurons)
    units: dict[int, _Unit] = defaultdict(dict)
    for kind, table in zip(_KINDS, tables, strict=True):
        for name, ids in table.items():
            for channel, root in enumerate(traced.partition.roots(ids)):
                units[root].setdefault((kind, name), []).append(channel)
    return dict(sorted(units.items()))


def _indices(units: Iterable[_Unit], kind: str) -> dict[str, Tensor]:
    units = list(units)
    names = [name for k, name in units[0] if k == kind]
    return {
        name: torch.tensor([unit[kind, name] for unit in units], device="cpu") for name in names
    }


def _group(units: list[_Unit], traced: Traced, names: set[str]) -> Group:
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
    unnormed = {p for p in producers if traced.norm_of.get(p) not in found["norms"]}
    return Group(
        name=name,
        units=len(units),
        bare=frozenset(producers) & (traced.bare | unnormed),
        norm_of={p: traced.norm_of[p] for p in producers if p in traced.norm_of},
        **found,
    )


def _frozen(traced: Traced) -> dict[str, str]:
    """Return layer -> why some of its channels stay."""
    frozen = {}
    for name, ids in traced.outputs.items():
        reasons = [traced.partition.reason(root) for root in traced.partition.roots(ids)]
        known = next((reason for reason in reasons if reason is not None), None)
        if known is not None:
            frozen[name] = traced.frozen_layers.get(name, known)
    for name in traced.layers:
        if name not in traced.outputs:
            frozen[name] = traced.frozen_layers.get(name, "it did not run as a module")
    return frozen


def _scoring_norms(traced: Traced) -> dict[str, tuple[str, Tensor | None]]:
    """Return layer -> the norm behind it and its channels there, each norm channel once."""
    found: dict[str, tuple[str, Tensor | None]] = {}
    taken: dict[str, set[int]] = defaultdict(set)
    for layer, norm in traced.norm_of.items():
        places: dict[int, list[int]] = defaultdict(list)
        for channel, root in enumerate(traced.partition.roots(traced.norms[norm])):
            if channel not in taken[norm]:
                places[root].append(channel)
        roots = traced.partition.roots(traced.outputs[layer])
        channels = [places[root].pop(0) if places[root] else -1 for root in roots]
        if -1 not in channels:  # else another layer has taken them, or some never get there
            taken[norm].update(channels)
            whole = channels == list(range(len(traced.norms[norm])))
            found[layer] = (norm, None if whole else torch.tensor(channels, device="cpu"))
    return found
