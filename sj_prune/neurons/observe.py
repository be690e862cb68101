"""Statistics of neurons that have no fused kernel: observed where they call their surrogate.

`observe` puts a `Seam` in the place of a neuron's surrogate function and follows the neuron's
steps. What is kept has the definitions of `Activity`, like a recording node's; nothing that the
network computes, no key and no class changes.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from inspect import getattr_static
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.neurons.nodes import RecordingNode
from sj_prune.neurons.observe_node import is_surrogate, surrogate_names
from sj_prune.neurons.observe_seam import FunctionSeam, Seam, seam
from sj_prune.neurons.observer import Observer

_KEY = "_sj_prune_observed"
# After each of these a step is over, so that `v` is the potential after reset.
_WATCHED = ("reset", "neuronal_reset", "single_step_forward", "single_step_functional_forward")


class _Watched:
    """Stands for a method of a node, and tells the observer when it is done."""

    def __init__(self, observer: Observer, name: str) -> None:
        self.observer = observer
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        node = self.observer.node
        compiling = torch.compiler.is_compiling()
        if self.name == "reset" and not compiling:
            self.observer.close_pass()
        result = getattr(type(node), self.name)(node, *args, **kwargs)
        if self.name != "reset" and not compiling:
            self.observer.finished(_potential_in(node, self.name, result))
        return result


class _StepByStep:
    """Multi-step forward of a node whose own takes its surrogate's exact class only."""

    def __init__(self, node: nn.Module) -> None:
        self.node = node

    def __call__(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        node: Any = self.node
        if node.store_v_seq:
            node.v_seq = None  # single steps append to it
        return torch.stack([node.single_step_forward(x, *args, **kwargs) for x in x_seq])


class _Fitting:
    """What was put into a node to observe it."""

    def __init__(self, node: nn.Module, observer: Observer) -> None:
        self.node = node
        self.observer = observer
        self.seam: tuple[str, Seam | FunctionSeam] | None = None
        self.handles: list[Any] = []
        self.methods: dict[str, object] = {}

    def put_in(self) -> None:
        """Take the surrogate function's place and hook the node."""
        (name,) = surrogate_names(self.node)
        home = _home(self.node, name)
        home[name] = seam(home[name], self.observer)
        self.seam = (name, home[name])
        self.handles = [
            self.node.register_forward_pre_hook(self.observer.entered, with_kwargs=True),
            self.node.register_forward_hook(self.observer.left),
        ]
        for method in _WATCHED:
            if isinstance(getattr_static(type(self.node), method, None), types.FunctionType):
                self._replace(method, _Watched(self.observer, method))
        if _host.needs_single_steps(self.node):
            self._replace("multi_step_forward", _StepByStep(self.node))

    def _replace(self, method: str, by: object) -> None:
        if method not in vars(self.node):
            self.methods[method] = vars(self.node)[method] = by

    def take_out(self) -> None:
        """Leave the node as it was."""
        for handle in self.handles:
            handle.remove()
        for method, mine in self.methods.items():
            if vars(self.node).get(method) is mine:
                del vars(self.node)[method]
        if self.seam is not None:
            name, seam_ = self.seam
            home = _home(self.node, name)
            if home.get(name) is seam_:  # else somebody gave the node another function since
                home[name] = seam_.inner


def _home(node: nn.Module, name: str) -> dict[str, Any]:
    """Return the dictionary of `node` that holds an attribute."""
    return node._modules if name in node._modules else vars(node)


def _potential_in(node: nn.Module, method: str, result: Any) -> Any:  # noqa: ANN401
    """Return the potential that a node has when one of its methods has returned `result`."""
    if method != "single_step_functional_forward":
        return getattr(node, "v", None)
    # States come and go as arguments: ``outputs, states``, in the order of the memories.
    memories = list(getattr(node, "_memories", ()))
    return result[1][memories.index("v")] if "v" in memories else None


def observe(net: nn.Module, skip: Iterable[str] = ()) -> dict[str, Observer]:
    """Observe the neurons of `net` that are not recording nodes, in place.

    A neuron is a module of SpikingJelly's neuron classes, or any module that has one of its
    surrogate functions as an attribute. Keys, classes, outputs and gradients stay as they are.
    Observers are copied and pickled with the network; observing twice is observing once.

    Args:
        net: any network, or a single neuron.
        skip: names of modules to leave alone.

    Returns:
        Observers by module name, those of neurons that cannot be observed among them: their `how`
        is ``"none"`` and `why` says the reason.
    """
    left_alone = set(skip)
    for name, node in list(net.named_modules()):
        if name in left_alone or isinstance(node, RecordingNode) or is_surrogate(node):
            continue
        if _KEY in vars(node) or not (_host.is_neuron(node) or surrogate_names(node)):
            continue
        names = surrogate_names(node)
        function = _home(node, names[0])[names[0]] if len(names) == 1 else None
        fitting = _Fitting(node, Observer(node, function))
        vars(node)[_KEY] = fitting
        if fitting.observer.how == "observed":
            fitting.put_in()
    return observers(net)


def observers(net: nn.Module) -> dict[str, Observer]:
    """Return the observers of the neurons of `net` by module name, each once."""
    found = ((name, observer_of(node)) for name, node in net.named_modules())
    return {name: observer for name, observer in found if observer is not None}


def observer_of(node: nn.Module) -> Observer | None:
    """Return the observer of one module, or None."""
    fitting = vars(node).get(_KEY)
    return None if fitting is None else fitting.observer


def unobserve(net: nn.Module) -> nn.Module:
    """Take all observers out of `net`, in place; it is as it was before `observe`.

    Returns:
        `net` itself.
    """
    for node in net.modules():
        fitting = vars(node).pop(_KEY, None)
        if fitting is not None:
            fitting.take_out()
    return net
