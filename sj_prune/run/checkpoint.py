"""What a wrapper saves beside the network's weights, and how a checkpoint is checked first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sj_prune.methods.identity import check_same
from sj_prune.neurons.convert import sensors
from sj_prune.run import processes
from sj_prune.run.anatomy import follow_statistics, plain_inputs, restore_inputs
from sj_prune.run.arguments import SettingsError
from sj_prune.run.damage import EXTRA_STATE, check_fits, check_parts, check_weights
from sj_prune.run.history import UpdateRecord
from sj_prune.run.install import rest
from sj_prune.run.state import Run
from sj_prune.run.views import clear_sums, initial_memory, initial_network_memory

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
        "memory": _memory(net, run),
        "network_memory": _cloned(run.network_memory),
        "previous": _cloned(run.previous),
        "regrown": None if run.regrown is None else _cloned(run.regrown),
        "history": [record.to_dict() for record in run.history],
    }


def _cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def _memory(net: nn.Module, run: Run) -> dict[str, dict[str, Tensor]]:
    """Return the memory of all layers, of those not looked at yet as it would be made now."""
    names = dict.fromkeys([*run.masks.layers, *run.memory])
    absent = (name for name in names if name not in run.memory)
    found = {**run.memory, **{name: initial_memory(net, run, name) for name in absent}}
    return {name: _cloned(found[name]) for name in names}


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
    check_weights(mine, state_dict, {f"net.{name}" for name, _ in net.named_parameters()})
    if EXTRA_STATE in state_dict:
        _checked(net, run, method, state_dict[EXTRA_STATE])


def _checked(net: nn.Module, run: Run, method: object, state: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return an extra state in the present format, once it is known to fit."""
    got = state.get("format") if isinstance(state, Mapping) else type(state).__name__
    if type(got) is not int or got not in (2, 3, _FORMAT):
        raise ValueError(
            f"Expected {EXTRA_STATE!r} of format {_FORMAT} but got {got}: the checkpoint was "
            "written by another release of sj_prune"
        )
    found: dict[str, Any] = {_RENAMED.get(str(k), str(k)): v for k, v in state.items()}
    for key, (first, default) in _SINCE.items():
        if state["format"] < first:
            found[key] = default
    with _unlearned_on_error(net, run):
        check_parts(found, next(net.parameters()).device)
        check_same(method, found["method"], run.identity)
        _learn(net, run, found["inputs"])
        follow_statistics(net, run)
        check_fits(net, run, found, old=state["format"] != _FORMAT)
    return found


def _learn(net: nn.Module, run: Run, inputs: Any) -> None:  # noqa: ANN401
    try:
        restore_inputs(net, run, inputs)
    except SettingsError:
        raise  # the forward went well
    except Exception as error:
        raise ValueError(
            f"Expected inputs of the network at '{EXTRA_STATE}.inputs' of the checkpoint but its "
            f"forward raised {type(error).__name__}: {error}: it is damaged, or comes from another "
            "architecture"
        ) from error


@contextmanager
def _unlearned_on_error(net: nn.Module, run: Run) -> Iterator[None]:
    """Forget what the inputs of a checkpoint told, if it is refused after all."""
    dims = {node: node.channel_dim for node in sensors(net).values()}
    empty = [node.activity for node in dims if node.activity.sums is None]
    anatomy = replace(run.anatomy, places=dict(run.anatomy.places))
    before = run.masks, anatomy, run.draws, dict(run.memory), list(run.history)
    try:
        yield
    except Exception as error:
        run.masks, run.anatomy, run.draws, run.memory, run.history = before
        for node, dim in dims.items():
            node.channel_dim = dim
        for activity in empty:
            activity.sums = activity.samples = activity.overflowed = None
        if isinstance(error, ValueError):
            raise
        raise ValueError(
            f"Expected a whole {EXTRA_STATE!r} but it is damaged: {type(error).__name__}: {error}"
        ) from error


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
    memory = initial_network_memory(run) | _cloned(found["network_memory"])
    run.network_memory.clear()  # the meter has it too
    run.network_memory.update({name: value.to(device) for name, value in memory.items()})
    run.memory.clear()
    for name, theirs in found["memory"].items():
        device, tensors = run.masks.weight(name).device, dict(theirs)
        mine = initial_memory(net, run, name)
        for key, value in tensors.items():  # cast, as torch casts weights
            like = mine[key].dtype if key in mine else value.dtype
            tensors[key] = value.clone().to(device, like)
        run.memory[name] = tensors if found["format"] == _FORMAT else mine | tensors
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
        clear_sums(net, run, lasting=True)
