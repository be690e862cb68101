"""Learned gates behind neurons: hooks that apply them, and their step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.methods.parts import Gates
from sj_prune.methods.view import NeuronView
from sj_prune.network.layers import TRANSPOSED
from sj_prune.neurons.convert import sensor_of, sensors
from sj_prune.neurons.gate import SpikeGate, gated
from sj_prune.run import processes
from sj_prune.run.anatomy import ensure_topology
from sj_prune.run.state import Run


@dataclass
class GateHook:
    """A forward hook of a neuron layer.

    Attributes:
        gates: of the plan.
        name: of the neuron layer.
        memory: the plan's tensors of the whole network, where those of the gate are.
        leaf: the gate as the training forwards since the last step have it, which collects its
            gradient.
    """

    gates: Gates
    name: str
    memory: dict[str, Tensor]
    leaf: Tensor | None = field(default=None, compare=False)

    def __call__(self, node: nn.Module, args: tuple[Any, ...], spikes: Any) -> Any:  # noqa: ANN401
        """Return the spikes behind the gate; as they are before there is one."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"Expected an eager forward of {self.name!r} but it is being compiled: gates of "
                "neurons learn in eager mode; compile the network that finalize() returns"
            )
        trains = node.training and torch.is_grad_enabled()
        if trains and self._key("gate") not in self.memory:
            self._start(node, spikes)
        if (gate := self.memory.get(self._key("gate"))) is None:
            return spikes
        if trains and self.leaf is None:
            self.leaf = gate.to(spikes.device).detach().requires_grad_()
        return gated(spikes, gate if self.leaf is None or not trains else self.leaf, self.name)

    def _key(self, key: str) -> str:
        return f"{self.name}: {key}"

    def _start(self, node: nn.Module, spikes: Tensor) -> None:
        mode = _host.step_mode(node) or getattr(sensor_of(node), "mode", "m")
        like = torch.zeros_like(spikes[0] if mode == "s" else spikes[0, 0])
        for key, value in self.gates.start(like.detach()).items():
            self.memory[self._key(key)] = value

    def learn(self, fan_out: float, step: int) -> None:
        """Let the gate follow its gradient, if there is one yet."""
        start = self._key("")
        state = {k[len(start) :]: v for k, v in self.memory.items() if k.startswith(start)}
        if not state:
            return
        grad = None if self.leaf is None else self.leaf.grad
        grad = torch.zeros_like(state["gate"]) if grad is None else grad
        if processes.world_size() > 1:
            grad = processes.average(grad)
        state = {key: value.to(grad.device) for key, value in state.items()}
        self.gates.learn(NeuronView(self.name, state, grad, fan_out, step))
        self.memory.update({self._key(key): value for key, value in state.items()})
        self.leaf = None


def put(net: nn.Module, run: Run) -> None:
    """Put gates behind all neurons, if the plan has any, and no others."""
    take_off(net)
    if run.plan.gates is not None:
        for name in sensors(net):
            hook = GateHook(run.plan.gates, name, run.network_memory)
            net.get_submodule(name).register_forward_hook(hook)


def take_off(net: nn.Module) -> list[GateHook]:
    """Remove all gates; return them."""
    found = [
        (module, key, hook)
        for module in net.modules()
        for key, hook in module._forward_hooks.items()
        if isinstance(hook, GateHook)
    ]
    for module, key, _ in found:
        del module._forward_hooks[key]
    return [hook for _, _, hook in found]


@torch.no_grad()
def learn(net: nn.Module, run: Run) -> None:
    """Let all gates take their step."""
    ensure_topology(net, run)
    assert run.anatomy.topology is not None  # noqa: S101 (for the type checker)
    topology = run.anatomy.topology
    fans = dict.fromkeys(sensors(net), 0.0)
    for layer, neurons in (topology.ends | topology.before).items():
        for name in neurons:
            fans[name] += _fan_out(net.get_submodule(layer))
    for module in net.modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook, GateHook):
                hook.learn(fans[hook.name], run.step + 1)


def _fan_out(layer: Any) -> float:  # noqa: ANN401
    """Return ``C_out k_h k_w / stride^2``, of one group."""
    weight = layer.weight
    if isinstance(layer, TRANSPOSED):
        return weight[0].numel()
    each = weight[:, 0].numel() / getattr(layer, "groups", 1)
    return each / math.prod(getattr(layer, "stride", (1,)))


def settle(net: nn.Module) -> None:
    """Put a `SpikeGate` behind every neuron layer whose gates are not all 1, for good."""
    for hook in take_off(net):
        gate = hook.memory.get(hook._key("gate"))
        if gate is None or bool((gate == 1).all()):
            continue
        node = net.get_submodule(hook.name)
        both = nn.Sequential(node, SpikeGate(gate.clone())).train(node.training)
        for path, module in list(net.named_modules(remove_duplicate=False)):
            if module is node:
                parent, _, key = path.rpartition(".")
                setattr(net.get_submodule(parent), key, both)
