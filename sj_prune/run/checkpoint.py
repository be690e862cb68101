"""What a wrapper saves beside the network's weights, and how a checkpoint is checked first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sj_prune.methods.base import check_same_method
from sj_prune.neurons.activity import Activity
from sj_prune.neurons.convert import recording_nodes
from sj_prune.run import processes as distributed
from sj_prune.run.history import UpdateRecord

if TYPE_CHECKING:
    from sj_prune.wrapper import PruningWrapper

__all__ = ["EXTRA_STATE", "check", "extra_state", "load_extra_state", "load_statistics"]

#: the one key that a wrapper's state_dict has beside ``net.*``
EXTRA_STATE = "_extra_state"
_FORMAT = 2


def extra_state(wrapper: PruningWrapper) -> dict[str, Any]:
    """Return plain values and tensors only: safe for ``torch.load(weights_only=True)``."""
    nodes = recording_nodes(wrapper.net)
    updater = wrapper.updater
    return {
        "format": _FORMAT,
        "method": wrapper.method.describe(),
        "step": wrapper.step,
        "inputs": wrapper.inputs,
        "masks": wrapper.masks.state_dict(),
        "asleep": wrapper.masks.asleep(),
        "statistics": {name: node.activity.state_dict() for name, node in nodes.items()},
        "generator": {"seed": wrapper.seed, "draws": updater.draws},
        "method_state": {
            name: {key: value.clone() for key, value in state.items()}
            for name, state in updater.state.items()
        },
        "previous": {name: mask.clone() for name, mask in updater.previous.items()},
        "history": [record.to_dict() for record in wrapper.history],
    }


def check(wrapper: PruningWrapper, state_dict: Mapping[str, Any], strict: bool) -> None:
    """Refuse a checkpoint that does not fit, before anything is changed.

    Args:
        wrapper: where it is to be loaded.
        state_dict: what `PruningWrapper.state_dict` returned.
        strict: as in `torch.nn.Module.load_state_dict`.

    Raises:
        TypeError: if it is no mapping.
        ValueError: naming the first key that does not fit.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"Expected state_dict to be a mapping but got {type(state_dict).__name__}")
    mine = wrapper.state_dict()
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
        _check_extra(wrapper, state_dict[EXTRA_STATE])


def _check_extra(wrapper: PruningWrapper, state: Any) -> None:  # noqa: ANN401
    if not isinstance(state, Mapping) or state.get("format") != _FORMAT:
        got = state.get("format") if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"Expected {EXTRA_STATE!r} of format {_FORMAT} but got {got}: the checkpoint was "
            "written by another release of sj_prune"
        )
    absent = [key for key in extra_state(wrapper) if key not in state]
    if absent:
        raise ValueError(f"Expected {absent} in {EXTRA_STATE!r} of the checkpoint: it is damaged")
    check_same_method(wrapper.method, state["method"])
    _check_parts(state)
    wrapper.restore_outline(state["inputs"])
    wrapper.masks.check_state(state["masks"])
    for kind in ("method_state", "previous"):
        if unknown := [name for name in state[kind] if name not in wrapper.layers]:
            raise ValueError(f"Expected no {kind} of layers {unknown}, which are not pruned here")
    for name in state["statistics"]:
        if name not in recording_nodes(wrapper.net):
            raise ValueError(
                f"Expected no statistics of neuron layer {name!r}, which this network does not "
                "have: the checkpoint comes from another architecture"
            )


def _check_parts(state: Mapping[str, Any]) -> None:
    """Build once what loading is going to build, so that it cannot fail halfway."""
    try:
        int(state["step"]), int(state["generator"]["seed"]), int(state["generator"]["draws"])
        for record in state["history"]:
            UpdateRecord(**record)
        for activity in state["statistics"].values():
            Activity(activity["names"]).load_state_dict(activity)
        tensors = [*state["masks"].values(), *state["previous"].values()]
        tensors += [t for kept in state["method_state"].values() for t in kept.values()]
        tensors += [t for kept in state["asleep"].values() for t in kept]
        damaged = not all(isinstance(t, Tensor) for t in tensors)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"Expected a whole {EXTRA_STATE!r} but it is damaged: {error}") from error
    if damaged:
        raise ValueError(f"Expected tensors in {EXTRA_STATE!r} but it is damaged")


def load_extra_state(wrapper: PruningWrapper, state: Mapping[str, Any]) -> None:
    """Take over a checked extra state, all but the statistics."""
    _check_extra(wrapper, state)
    updater = wrapper.updater
    wrapper.masks.load_state_dict(state["masks"])
    wrapper.masks.load_asleep(state["asleep"])
    wrapper.step = int(state["step"])
    wrapper.seed = int(state["generator"]["seed"])
    updater.draws = int(state["generator"]["draws"])
    updater.previous = {name: mask.clone() for name, mask in state["previous"].items()}
    updater.state.clear()
    for name, tensors in state["method_state"].items():
        device = wrapper.layers[name].weight.device
        updater.state[name] = {key: value.clone().to(device) for key, value in tensors.items()}
        if distributed.rank() != 0:
            for key in updater.state[name].keys() & set(wrapper.method.observed):
                updater.state[name][key].zero_()
    wrapper.history = [UpdateRecord(**record) for record in state["history"]]


def load_statistics(wrapper: PruningWrapper, state: Mapping[str, Any]) -> None:
    """Take over the statistics of a checked extra state.

    A checkpoint is that of all ranks: the first takes them, and the others start with none.
    """
    nodes = recording_nodes(wrapper.net)
    device = next(iter(wrapper.layers.values())).weight.device
    for name, activity in state["statistics"].items():
        nodes[name].activity.load_state_dict(activity, device)
        if distributed.rank() != 0:
            nodes[name].activity.clear()
