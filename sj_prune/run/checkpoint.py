"""What a wrapper saves beside the network's weights, and how a checkpoint is checked first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.methods.identity import check_same
from sj_prune.neurons.activity import Activity
from sj_prune.neurons.convert import sensors
from sj_prune.run import processes
from sj_prune.run.anatomy import plain_inputs, restore_inputs
from sj_prune.run.history import UpdateRecord
from sj_prune.run.install import rest
from sj_prune.run.state import Run
from sj_prune.run.views import clear_sums

#: the one key that a wrapper's state_dict has beside ``net.*``
EXTRA_STATE = "_extra_state"
_FORMAT = 4
# What format 2 called things.
_RENAMED = {"asleep": "aside", "method_state": "memory"}
# What is there from which format on, and what it is in those before.
_SINCE: dict[str, tuple[int, Any]] = {
    "network_memory": (3, {}),
    "regrown": (4, None),
    "uncounted": (4, []),
}


def extra_state(net: nn.Module, run: Run) -> dict[str, Any]:
    """Return plain values and tensors only: safe for ``torch.load(weights_only=True)``."""
    nodes = sensors(net)
    return {
        "format": _FORMAT,
        "method": run.identity,
        "step": run.step,
        "inputs": plain_inputs(run),
        "masks": run.masks.state_dict(),
        "uncounted": sorted(run.masks.uncounted),
        "aside": run.masks.aside(),
        "statistics": {name: node.activity.state_dict() for name, node in nodes.items()},
        "generator": {"seed": run.seed, "draws": run.draws},
        "memory": {name: _cloned(state) for name, state in run.memory.items()},
        "network_memory": _cloned(run.network_memory),
        "previous": _cloned(run.previous),
        "regrown": None if run.regrown is None else _cloned(run.regrown),
        "history": [record.to_dict() for record in run.history],
    }


def _cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def check(
    net: nn.Module,
    run: Run,
    method: object,
    mine: Mapping[str, Any],
    state_dict: Mapping[str, Any],
    strict: bool,
) -> None:
    """Refuse a checkpoint that does not fit, before anything is changed.

    Args:
        net: the network that it is to be loaded into.
        run: its run.
        method: of the wrapper.
        mine: what `PruningWrapper.state_dict` returns there now.
        state_dict: what it returned for the checkpoint.
        strict: as in `torch.nn.Module.load_state_dict`.

    Raises:
        TypeError: if it is no mapping.
        ValueError: naming the first key that does not fit.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"Expected state_dict to be a mapping but got {type(state_dict).__name__}")
    missing = [key for key in mine if key not in state_dict]
    unknown = [key for key in state_dict if key not in mine]
    if strict and (missing or unknown):
        raise ValueError(
            f"Expected the keys of this wrapper but the checkpoint lacks {missing[:5]} and has "
            f"{unknown[:5]} beside them: it comes from another architecture, or from a bare "
            "network (load that into model.net)"
        )
    for key, value in mine.items():
        other = state_dict.get(key, value)
        if isinstance(value, Tensor) and tuple(getattr(other, "shape", ())) != tuple(value.shape):
            raise ValueError(
                f"Expected shape {tuple(value.shape)} at {key!r} but the checkpoint has "
                f"{tuple(getattr(other, 'shape', ()))}: it comes from another architecture"
            )
    if EXTRA_STATE in state_dict:
        _checked(net, run, method, state_dict[EXTRA_STATE])


def _checked(net: nn.Module, run: Run, method: object, state: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return an extra state in the present format, once it is known to fit."""
    if not isinstance(state, Mapping) or state.get("format") not in (2, 3, _FORMAT):
        got = state.get("format") if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"Expected {EXTRA_STATE!r} of format {_FORMAT} but got {got}: the checkpoint was "
            "written by another release of sj_prune"
        )
    found: dict[str, Any] = {_RENAMED.get(str(k), str(k)): v for k, v in state.items()}
    for key, (first, default) in _SINCE.items():
        if state["format"] < first:
            found[key] = default
    absent = [key for key in extra_state(net, run) if key not in found]
    if absent:
        raise ValueError(f"Expected {absent} in {EXTRA_STATE!r} of the checkpoint: it is damaged")
    _check_parts(found)
    check_same(method, found["method"], run.identity)
    with _unlearned_on_error(run):
        restore_inputs(net, run, found["inputs"])
        _check_fits(net, run, found)
    return found


@contextmanager
def _unlearned_on_error(run: Run) -> Iterator[None]:
    """Forget what the inputs of a checkpoint told, if it is refused after all."""
    before = run.masks, replace(run.anatomy), run.draws, dict(run.memory), list(run.history)
    try:
        yield
    except Exception as error:
        run.masks, run.anatomy, run.draws, run.memory, run.history = before
        if isinstance(error, ValueError):
            raise
        raise ValueError(
            f"Expected a whole {EXTRA_STATE!r} but it is damaged: {type(error).__name__}: {error}"
        ) from error


def _check_fits(net: nn.Module, run: Run, found: Mapping[str, Any]) -> None:
    run.masks.check_state(found["masks"])
    run.masks.check_aside(found["masks"], found["aside"])
    _check_regrown(run, found["regrown"] or {})
    for name in found["uncounted"]:
        if name not in found["masks"] or not found["masks"][name].all():
            raise ValueError(
                f"Expected a whole mask at {name!r}, which is not counted, but it is not: the "
                "checkpoint is damaged"
            )
    for kind in ("memory", "previous"):
        if unknown := [name for name in found[kind] if name not in run.layers]:
            raise ValueError(f"Expected no {kind} of layers {unknown}, which are not pruned here")
    for name in found["statistics"]:
        if name not in sensors(net):
            raise ValueError(
                f"Expected no statistics of neuron layer {name!r}, which this network does not "
                "have: the checkpoint comes from another architecture"
            )


def _check_regrown(run: Run, regrown: Mapping[str, Tensor]) -> None:
    scopes = run.masks.scopes
    for name, places in regrown.items():
        size = scopes[name].size if name in scopes else 0
        fits = places.ndim == 1 and places.dtype == torch.int64
        if not fits or (len(places) and not 0 <= int(places.min()) <= int(places.max()) < size):
            raise ValueError(
                f"Expected places of regrown units below {size} at {name!r} but the checkpoint has "
                "others: it is damaged"
            )


def _check_parts(state: Mapping[str, Any]) -> None:
    """Build once what loading is going to build, so that it cannot fail halfway."""
    try:
        dict(state["method"])
        int(state["step"]), int(state["generator"]["seed"]), int(state["generator"]["draws"])
        for record in state["history"]:
            UpdateRecord(**record)
        for activity in state["statistics"].values():
            Activity(activity["names"]).load_state_dict(activity)
        tensors = [*state["masks"].values(), *state["previous"].values()]
        tensors += (state["regrown"] or {}).values()
        tensors += state["network_memory"].values()
        tensors += [t for kept in state["memory"].values() for t in kept.values()]
        tensors += [t for kept in state["aside"].values() for t in kept]
        damaged = not all(isinstance(t, Tensor) for t in tensors)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"Expected a whole {EXTRA_STATE!r} but it is damaged: {error}") from error
    if damaged:
        raise ValueError(f"Expected tensors in {EXTRA_STATE!r} but it is damaged")


def load_extra_state(net: nn.Module, run: Run, method: object, state: Any) -> dict[str, Any]:  # noqa: ANN401
    """Take over an extra state, all but the statistics, and return it in the present format."""
    found = _checked(net, run, method, state)
    run.masks.load_state_dict(found["masks"])
    run.masks.load_aside(found["aside"])
    run.masks.uncounted = frozenset(found["uncounted"])
    rest(net, run)
    run.step = int(found["step"])
    run.seed = int(found["generator"]["seed"])
    run.draws = int(found["generator"]["draws"])
    run.previous = _cloned(found["previous"])
    run.regrown = None if found["regrown"] is None else _cloned(found["regrown"])
    device = run.masks.weight(run.layers[0]).device
    memory = _cloned(found["network_memory"])
    run.network_memory = {name: value.to(device) for name, value in memory.items()}
    run.memory.clear()
    for name, tensors in found["memory"].items():
        device = run.masks.weight(name).device
        run.memory[name] = {key: value.clone().to(device) for key, value in tensors.items()}
    run.history = [UpdateRecord(**record) for record in found["history"]]
    return found


def load_statistics(net: nn.Module, run: Run, state: Mapping[str, Any]) -> None:
    """Take over the statistics of a loaded extra state, and what scores had added up.

    A checkpoint is that of all ranks: the first takes them, and the others start with none.
    """
    nodes, device = sensors(net), run.masks.weight(run.layers[0]).device
    first = processes.rank() == 0
    for name, activity in state["statistics"].items():
        nodes[name].activity.load_state_dict(activity, device)
        if not first:
            nodes[name].activity.clear()
    if not first:
        clear_sums(net, run)
