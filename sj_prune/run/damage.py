"""Refuses damaged checkpoints: all of one is compared with what this run would have made itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.masks.bindings import Hidden
from sj_prune.network.inputs import from_plain
from sj_prune.neurons.convert import sensors
from sj_prune.neurons.statistics import check_statistics
from sj_prune.run.history import UpdateRecord
from sj_prune.run.scores import AWAKE, GROWN_AT
from sj_prune.run.state import Run
from sj_prune.run.views import initial_memory, initial_network_memory

#: the one key that a wrapper's state_dict has beside ``net.*``
EXTRA_STATE = "_extra_state"
_MAPPINGS = (
    *("method", "masks", "aside", "statistics", "generator", "memory", "network_memory"),
    "previous",
)
#: what is in it beside the format
PARTS = (*_MAPPINGS, "step", "inputs", "history", "regrown", "uncounted")


def check_weights(mine: Mapping[str, Any], state: Mapping[str, Any], trained: set[str]) -> None:
    """Refuse tensors of the network that `mine` cannot take over.

    Args:
        mine: what `PruningWrapper.state_dict` returns now.
        state: the checkpoint.
        trained: names of parameters, whose values have to be finite; buffers may be infinite.

    Raises:
        ValueError: naming the first key that does not fit.
    """
    for key, value in mine.items():
        if not isinstance(value, Tensor) or key not in state:
            continue
        other = state[key]
        shape = tuple(other.shape) if isinstance(other, Tensor) else type(other).__name__
        if shape != tuple(value.shape):
            raise ValueError(
                f"Expected shape {tuple(value.shape)} at {key!r} but the checkpoint has {shape}: "
                "it comes from another architecture"
            )
        if _kind(other) != _kind(value):
            _refuse(key, f"a tensor of {value.dtype}", other.dtype)
        if other.isnan().any() or (key in trained and not other.isfinite().all()):
            _refuse(key, "finite values", "nan or infinity", "training had diverged, or it")


def _kind(value: Tensor) -> tuple[bool, bool]:
    return value.is_floating_point(), value.is_complex()


def _refuse(key: str, wanted: str, got: object, what: str = "it") -> None:
    raise ValueError(
        f"Expected {wanted} at {key!r} of the checkpoint but got {got}: {what} is damaged"
    )


def _expect(right: bool, key: str, wanted: str, got: object) -> None:
    if not right:
        _refuse(f"{EXTRA_STATE}.{key}", wanted, got)


def _count(key: str, value: object, least: int = 0, most: int | None = None) -> None:
    right = type(value) is int and value >= least and (most is None or value <= most)
    limit = "" if most is None else f" and at most {most}"
    _expect(right, key, f"an integer of at least {least}{limit}", repr(value))


def _mapping(key: str, value: object) -> None:
    _expect(isinstance(value, Mapping), key, "a mapping", type(value).__name__)


def _like(key: str, value: object, shape: Iterable[int], dtype: torch.dtype) -> None:
    """Refuse what is no tensor of this shape and type, or holds a nan."""
    got = (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else type(value).__name__
    _expect(got == (tuple(shape), dtype), key, f"a tensor of {tuple(shape)}, {dtype}", got)
    assert isinstance(value, Tensor)  # noqa: S101 (for the type checker)
    _expect(not value.isnan().any(), key, "numbers", "nan")


def check_parts(state: Mapping[str, Any], device: torch.device) -> None:
    """Refuse an extra state whose parts have not the types that a run writes.

    Raises:
        ValueError: naming the first part.
    """
    if absent := [key for key in PARTS if key not in state]:
        raise ValueError(f"Expected {absent} in {EXTRA_STATE!r} of the checkpoint: it is damaged")
    for key in _MAPPINGS:
        _mapping(key, state[key])
    _count("step", state["step"])
    seed = state["generator"].get("seed")
    _expect(type(seed) is int, "generator.seed", "an integer", repr(seed))
    _count("generator.draws", state["generator"].get("draws"))
    for key in ("masks", "previous"):
        for name, mask in state[key].items():
            right = isinstance(mask, Tensor) and mask.dtype == torch.bool
            got = getattr(mask, "dtype", type(mask).__name__)
            _expect(right, f"{key}.{name}", "a tensor of torch.bool", got)
    _mapping("regrown", state["regrown"] or {})
    _expect(isinstance(state["uncounted"], list), "uncounted", "a list", state["uncounted"])
    for name, tensors in state["memory"].items():
        _mapping(f"memory.{name}", tensors)
    named = {"network_memory": state["network_memory"]}
    named |= {f"memory.{name}": tensors for name, tensors in state["memory"].items()}
    named |= {f"aside.{name}": dict(enumerate(values)) for name, values in state["aside"].items()}
    for where, tensors in named.items():
        for key, value in tensors.items():
            right = isinstance(value, Tensor)
            _expect(right, f"{where}.{key}", "a tensor", type(value).__name__)
    try:
        from_plain({"value": None} if state["inputs"] is None else state["inputs"], device)
    except Exception as error:
        _expect(False, "inputs", "shapes of inputs", f"{type(error).__name__}: {error}")


def check_fits(net: nn.Module, run: Run, state: Mapping[str, Any], old: bool) -> None:
    """Refuse an extra state that this run could not have written.

    Args:
        net: the network.
        run: its run, with masks known where the checkpoint has any.
        state: the extra state, whose parts have been checked.
        old: it is of an earlier format, which knew less.

    Raises:
        ValueError: naming the first part.
    """
    run.masks.check_state(state["masks"])
    _check_history(run, state)
    right = bool(state["masks"]) or not state["history"]
    _expect(right, "masks", "those of the last update in history", "none")
    _check_kept(run, state)
    run.masks.check_aside(state["masks"], state["aside"])
    _check_regrown(run, state["regrown"] or {})
    for name in state["uncounted"]:
        right = name in state["masks"] and bool(state["masks"][name].all())
        _expect(right, "uncounted", "names of whole masks", repr(name))
    wanted = set(run.masks) if run.plan.emergent else set()
    right = set(state["previous"]) == wanted
    _expect(right, "previous", f"masks of {sorted(wanted)}", list(state["previous"]))
    for name, mask in state["previous"].items():
        _like(f"previous.{name}", mask, run.masks[name].shape, torch.bool)
    wanted, theirs = set(initial_network_memory(run)), state["network_memory"]
    _expect(old or wanted <= theirs.keys(), "network_memory", f"{sorted(wanted)}", list(theirs))
    for key in theirs.keys() & run.network_memory.keys():
        mine = run.network_memory[key]
        _like(f"network_memory.{key}", theirs[key], mine.shape, mine.dtype)
    _check_memory(net, run, state, old)
    _check_statistics(net, run, state, old)


def _check_history(run: Run, state: Mapping[str, Any]) -> None:
    history, last = state["history"], 0
    sizes = {name: scope.size for name, scope in run.masks.scopes.items()}
    _expect(isinstance(history, list), "history", "a list", type(history).__name__)
    names = {field.name for field in fields(UpdateRecord)}
    for number, record in enumerate(history):
        where = f"history.{number}"
        _mapping(where, record)
        right = record.keys() <= names and names - record.keys() <= {"pruned", "survived"}
        _expect(right, where, f"the fields {sorted(names)}", sorted(map(str, record)))
        # An update whose step then failed has a record, and the step is not counted.
        _count(f"{where}.step", record["step"], last, state["step"] + 1)
        last = record["step"]
        for key in ("target", "sparsity"):
            value = record[key]
            right = type(value) in (int, float) and 0 <= value <= 1
            _expect(right, f"{where}.{key}", "a fraction", repr(value))
        for key in ("kept", "dropped", "grown"):
            _mapping(f"{where}.{key}", record[key])
            found = record[key].keys()
            _expect(
                found <= sizes.keys(), f"{where}.{key}", f"numbers of {list(sizes)}", list(found)
            )
            for name, value in record[key].items():
                _count(f"{where}.{key}.{name}", value, 0, sizes[name])
    due = run.plan.schedule.next_due(last)
    if due is not None:
        # The update in it would be in the history.
        _count("step", state["step"], max(0, last - 1), due - 1)
    draws, updates = state["generator"]["draws"], len(history)
    right = draws <= updates if run.plan.emergent else draws == updates
    _expect(right, "generator.draws", f"the number {updates} of updates in history", draws)


def _check_regrown(run: Run, regrown: Mapping[str, Any]) -> None:
    for name, places in regrown.items():
        size = run.masks.scopes[name].size if name in run.masks.scopes else 0
        right = name in run.masks.scopes and isinstance(places, Tensor)
        right = right and places.ndim == 1 and places.dtype == torch.int64
        right = right and (not len(places) or 0 <= int(places.min()) <= int(places.max()) < size)
        _expect(right, f"regrown.{name}", f"places of units below {size}", "others")


def _check_kept(run: Run, state: Mapping[str, Any]) -> None:
    """Refuse masks that are not those of the last update; where weights decide, they do so anew."""
    if run.plan.emergent or isinstance(run.plan.binding, Hidden):
        return
    last = {name: scope.size for name, scope in run.masks.scopes.items()}
    last |= state["history"][-1]["kept"] if state["history"] else {}
    for name, mask in state["masks"].items():
        kept, floor = int(mask.sum()), run.masks.scopes[name].floor
        right = kept == last[name] and kept >= floor
        wanted = f"the {last[name]} units that history says are kept, at least {floor},"
        _expect(right, f"masks.{name}", wanted, kept)
        if state["history"] and name in state["history"][-1].get("pruned", {}):
            pruned = (~mask).nonzero().flatten().tolist()
            right = pruned == state["history"][-1]["pruned"][name]
            _expect(right, f"masks.{name}", "the units that history says are pruned", pruned)


def _check_memory(net: nn.Module, run: Run, state: Mapping[str, Any], old: bool) -> None:
    unknown = [name for name in state["memory"] if name not in run.layers]
    _expect(not unknown, "memory", "that of pruned layers", unknown)
    old = old or not state["masks"]  # from before units were known
    for name in run.masks.layers:
        theirs, mine = state["memory"].get(name, {}), initial_memory(net, run, name)
        absent = [key for key in mine if key not in theirs]
        _expect(old or not absent, f"memory.{name}", f"{list(mine)}", list(theirs))
        mine = {**run.memory.get(name, {}), **mine}
        for key, value in theirs.items():
            where = f"memory.{name}.{key}"
            if key == AWAKE:
                kind = value.dtype if value.is_floating_point() else torch.float32
                _like(where, value, run.masks.layer_mask(name).shape, kind)
            elif key in mine:
                both = value.is_floating_point() and mine[key].is_floating_point()
                _like(where, value, mine[key].shape, value.dtype if both else mine[key].dtype)
    grow = run.plan.grow
    if grow is None or not grow.grace or not state["history"]:
        return
    scored = {name for record in state["history"] for name in record["grown"]}
    for name, scope in run.masks.scopes.items():
        if name not in scored:
            continue  # it has never been updated
        grown_at = state["memory"].get(scope.layers[0], {}).get(GROWN_AT)
        shape = run.masks.alive(name).shape
        _like(f"memory.{scope.layers[0]}.{GROWN_AT}", grown_at, shape, torch.int64)


def _check_statistics(net: nn.Module, run: Run, state: Mapping[str, Any], old: bool) -> None:
    nodes, topology = sensors(net), run.anatomy.topology
    facts = {} if topology is None else topology.facts
    channels = {name: fact.channels for name, fact in facts.items() if fact.problem is None}
    for name in state["statistics"]:
        if name not in nodes:
            raise ValueError(
                f"Expected no statistics of neuron layer {name!r}, which this network does not "
                "have: the checkpoint comes from another architecture"
            )
    absent = [name for name in nodes if name not in state["statistics"]]
    _expect(old or not absent, "statistics", "those of all neuron layers", f"none of {absent}")
    for name, found in state["statistics"].items():
        where, node = f"statistics.{name}", nodes[name]
        _mapping(where, found)
        needed = run.plan.statistics - getattr(node, "missing", {}).keys()
        if topology is None and node.how == "observed":
            needed = frozenset()  # which of them it lacks is known once it has run
        _check_activity(where, found, needed, channels.get(name))


def _check_activity(
    where: str, found: Mapping[str, Any], needed: Iterable[str], channels: int | None
) -> None:
    absent = {"names", "sums", "samples"} - found.keys()
    _expect(not absent, where, "names, sums and samples", list(found))
    names, sums, samples = found["names"], found["sums"], found["samples"]
    known: tuple[str, ...] | None = None
    with suppress(TypeError, ValueError):
        known = check_statistics(names)
    right = known is not None and list(known) == names and set(needed) <= set(known)
    _expect(right, f"{where}.names", f"statistics, {sorted(needed)} among them,", names)
    if sums is None or samples is None:
        _expect(sums is samples, f"{where}.samples", "sums and samples or neither", samples)
        return
    if channels is None and isinstance(sums, Tensor) and sums.ndim:
        channels = sums.shape[0]
    _like(f"{where}.sums", sums, (channels or 0, len(names)), torch.float64)
    _expect(bool(sums.isfinite().all()), f"{where}.sums", "finite sums", "infinity")
    _like(f"{where}.samples", samples, (), torch.int64)
    _count(f"{where}.samples", int(samples))
