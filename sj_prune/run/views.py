"""What a plan sees of one layer now: its weight, gradient, mask, norm, and what its neurons say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.masks.bindings import Hidden
from sj_prune.methods.view import LayerActivity, LayerView
from sj_prune.network.layers import TRANSPOSED
from sj_prune.neurons.activity import Activity
from sj_prune.neurons.convert import sensor_of
from sj_prune.run.state import Run


def _seed(run: Run, name: str) -> int:
    """Return a seed for one layer and update; a function of the counter, not of an order."""
    text = f"{run.seed}/{run.draws}/{name}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def generator_of(run: Run) -> torch.Generator:
    """Return the random numbers of the next update, on the CPU."""
    return torch.Generator("cpu").manual_seed(_seed(run, ""))


def view(net: nn.Module, run: Run, name: str, step: int | None = None) -> LayerView:
    """Return what the plan sees of one layer now.

    Args:
        net: the network.
        run: its run.
        name: of the layer.
        step: the optimizer step, from 1; by default the one after those counted.
    """
    first = name not in run.memory
    state = run.memory.setdefault(name, {})
    found = _view(net, run, name, state, run.step + 1 if step is None else step)
    for key, value in state.items():
        state[key] = value.to(found.weight.device)
    if first:  # not before: weights may be loaded into a network that is wrapped already
        state.update(_initial_memory(run, found))
    return found


def initial_network_memory(run: Run) -> dict[str, Tensor]:
    """Return what the plan's penalties remember of the whole network, as it is at first."""
    numbers = (item for penalty in run.plan.penalties for item in penalty.remembers.items())
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers}


def initial_memory(net: nn.Module, run: Run, name: str) -> dict[str, Tensor]:
    """Return the tensors that the plan keeps of a layer, as they would be made now."""
    return _initial_memory(run, _view(net, run, name, {}, run.step + 1))


def _view(net: nn.Module, run: Run, name: str, state: dict[str, Tensor], step: int) -> LayerView:
    layer, masks = net.get_submodule(name), run.masks
    weight, bias = masks.weight(name), layer._parameters.get("bias")
    norm, norm_channels = _norm(run, name)
    scoring = run.anatomy.scoring.get(name, {})
    for node, channels in scoring.items():  # to where they are read, once
        scoring[node] = None if channels is None else channels.to(weight.device)
    return LayerView(
        name=name,
        weight=masks.scored(name),
        grad=weight.grad,
        mask=masks.layer_mask(name),
        activity=_activity(net, run, scoring),
        inputs=_activity(net, run, _before(run, name)),
        norm=None if norm is None else net.get_submodule(norm),
        step=step,
        seed=_seed(run, name),
        norm_channels=None if norm_channels is None else norm_channels.to(weight.device),
        state=state,
        bias=None if bias is None else masks.scored(name, "bias"),
        bias_grad=None if bias is None else bias.grad,
        places=run.anatomy.places.get(name),
        transposed=layer.groups if isinstance(layer, TRANSPOSED) else 0,
    )


def _initial_memory(run: Run, layer: LayerView) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if isinstance(run.plan.binding, Hidden):
        found.update(run.plan.binding.transform.start(layer.weight, layer.state))
    made = [score.sums for score in run.plan.accumulating]
    for make in made + [p.keeps for p in run.plan.penalties if p.keeps is not None]:
        sums = make(layer)
        if shared := found.keys() & sums.keys():
            raise ValueError(
                f"Expected sums of different names from the scores of {run.plan.name} but "
                f"{sorted(shared)} is that of two: name what a score adds up after the score"
            )
        found.update(sums)
    return found


def _activity(
    net: nn.Module, run: Run, neurons: Mapping[str, Tensor | None]
) -> LayerActivity | None:
    if run.anatomy.topology is None and not run.plan.needs_graph:
        # Nothing is traced: what reads it all the same is told to say so.
        return LayerActivity([SimpleNamespace(activity=Activity(), peak=None)])
    if not neurons:
        return None
    nodes: list[Any] = [sensor_of(net.get_submodule(node)) for node in neurons]
    return LayerActivity(nodes, list(neurons.values()))


def _before(run: Run, name: str) -> dict[str, Tensor | None]:
    """Return the recording neuron layers that a layer's input comes from."""
    topology = run.anatomy.topology
    found = () if topology is None else topology.before.get(name, ())
    return {node: None for node in found if topology and topology.facts[node].problem is None}


def _norm(run: Run, name: str) -> tuple[str | None, Tensor | None]:
    """Return the norm that scores a layer's channels, and which channels of it they are."""
    anatomy = run.anatomy
    if anatomy.coupling is not None:
        return anatomy.coupling.norms.get(name, (None, None))
    return (None if anatomy.topology is None else anatomy.topology.norms.get(name)), None


def gamma_of(net: nn.Module, run: Run, name: str) -> Tensor | None:
    """Return the weight of the norm that scores a layer's channels, if it has one."""
    norm, _ = _norm(run, name)
    return None if norm is None else net.get_submodule(norm)._parameters.get("weight")


def scored_parameters(net: nn.Module, run: Run) -> list[Tensor]:
    """Return the parameters whose gradients a plan may score, each once."""
    found: list[nn.Module] = []
    for name in run.masks.layers:
        norm, _ = _norm(run, name)
        found.append(net.get_submodule(name))
        found += [] if norm is None else [net.get_submodule(norm)]
    parameters = (m._parameters.get(key) for m in found for key in ("weight", "bias"))
    return list({id(p): p for p in parameters if p is not None}.values())


def clear_sums(net: nn.Module, run: Run, *, lasting: bool = False) -> None:
    """Forget what scores have added up; what lasts too, if asked for."""
    for score in run.plan.accumulating:
        if getattr(score, "lasting", False) and not lasting:
            continue
        for name in run.memory:
            layer = view(net, run, name)
            for key in score.sums(layer):
                layer.state[key].zero_()
