"""Which layers do not run, and so are left out of the sparsity: another task's head, for one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn

from sj_prune.network.idle import noting_places
from sj_prune.neurons.convert import sensor_of
from sj_prune.run.state import Run


def listen(net: nn.Module, run: Run) -> None:
    """Let the forward that is about to begin tell which layers run, once one has not told."""
    compiled = any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in net.modules()
    )  # hooks would become a part of its graph
    if run.anatomy.places or compiled:
        return
    stack = ExitStack()
    layers: dict[str, Any] = {name: net.get_submodule(name) for name in run.layers}
    places = stack.enter_context(noting_places(net, layers))

    def over(_: nn.Module, __: Any, output: Any) -> None:  # noqa: ANN401
        stack.close()
        if output is not None:  # else it raised
            told(run, places)

    stack.callback(net.register_forward_hook(over, always_call=True).remove)


def told(run: Run, places: Mapping[str, float]) -> None:
    """Leave layers out of the sparsity that have not run in the first forward that tells.

    Those that have pruned weights already have run before, or are to be pruned from the start.
    """
    first = not run.anatomy.places
    run.anatomy.places.update(places)
    if not first:
        return
    masks = run.masks
    names = [n for n, s in masks.scopes.items() if places.keys().isdisjoint(s.layers)]
    found = frozenset(filter(masks.whole, names))
    if len(found) < len(masks.scopes) and not run.plan.emergent:
        masks.idle = found


def note_running(net: nn.Module, run: Run) -> None:
    """Count layers that run after all: they have a gradient now. Never a neuron's own matrix."""
    masks = run.masks
    if masks.idle:
        layers = {name: masks.scopes[name].layers for name in masks.idle}
        masks.idle = frozenset(
            name
            for name, parts in layers.items()
            if all(masks.weight(n).grad is None or _in_neuron(net, n) for n in parts)
        )


def _in_neuron(net: nn.Module, name: str) -> bool:
    """Tell whether a layer is a part of a neuron."""
    parts = name.split(".")[:-1]
    above = (net.get_submodule(".".join(parts[:n])) for n in range(len(parts) + 1))
    return any(sensor_of(module) is not None for module in above)
