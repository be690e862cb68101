"""The only module that tells SpikingJelly releases apart.

Two libraries share the name: 2.0.0 and later (no backends, custom ops, cached reset lists) and
0.0.0.0.14 (TorchScript in eval mode, a ``backend`` attribute). Everything else in `sj_prune` sees
the small surface below.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import base, functional, neuron
from spikingjelly.activation_based import surrogate as surrogate
from torch import nn

IFNode = neuron.IFNode
LIFNode = neuron.LIFNode
ParametricLIFNode = neuron.ParametricLIFNode
SurrogateFunctionBase = surrogate.SurrogateFunctionBase
reset_net = functional.reset_net

_HAS_RESET_CACHE = hasattr(functional, "invalidate_reset_cache")
# Neuron layers whose forward in eval mode lets no gradient through: TorchScript on 0.0.0.0.14, a
# step function in place of the surrogate on 2.0.0. The spikes are those of train mode.
_CUT_IN_EVAL = ("OTTTLIFNode", "SLTTLIFNode", "ComplementaryLIFNode")
_CUTTING: tuple[type, ...] = (
    tuple(getattr(neuron, name) for name in _CUT_IN_EVAL if hasattr(neuron, name))
    if _HAS_RESET_CACHE
    else (IFNode, LIFNode)
)

_NEURON_PACKAGE = "spikingjelly.activation_based.neuron"
_LAYER_PACKAGE = "spikingjelly.activation_based.layer"
_LEGACY_PACKAGE = "spikingjelly.clock_driven"
_WITHOUT_STEPS: tuple[type, ...] = (
    IFNode,
    LIFNode,
    ParametricLIFNode,
    *(getattr(neuron, name) for name in ("QIFNode", "EIFNode", "IzhikevichNode")),
)


def release() -> str:
    """Return the installed SpikingJelly version, or ``"unknown"`` for a source checkout."""
    try:
        return version("spikingjelly")
    except PackageNotFoundError:
        return "unknown"


def check_module(value: object, name: str = "net") -> None:
    """Refuse what is no module.

    Raises:
        TypeError: naming the argument and the type that came.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(f"Expected {name} to be a torch.nn.Module but got {type(value).__name__}")


def is_neuron(module: nn.Module) -> bool:
    """Tell whether `module` is a SpikingJelly neuron layer or a user's subclass of one."""
    return any(base.__module__.startswith(_NEURON_PACKAGE) for base in type(module).__mro__)


def is_host_neuron(module: nn.Module) -> bool:
    """Tell whether `module` is a neuron layer of SpikingJelly itself, or a recording one."""
    kind = type(module)
    return kind.__module__.startswith((_NEURON_PACKAGE, "sj_prune.neurons.")) and is_neuron(module)


def is_stock_neuron(module: nn.Module) -> bool:
    """Tell whether `module` computes what the host's IF, LIF or PLIF node does."""
    return is_host_neuron(module) and isinstance(module, (IFNode, LIFNode, ParametricLIFNode))


def is_surrogate(function: object) -> bool:
    """Tell whether `function` is a surrogate function of SpikingJelly, or of a class of it."""
    kinds = (SurrogateFunctionBase, getattr(surrogate, "MultiArgsSurrogateFunctionBase", None))
    return isinstance(function, tuple(kind for kind in kinds if kind is not None))


def neuron_classes(*names: str) -> tuple[type[Any], ...]:
    """Return those of the host's neuron classes of these names that this release has."""
    return tuple(getattr(neuron, name) for name in names if hasattr(neuron, name))


def step_mode(node: nn.Module) -> str | None:
    """Return ``"s"`` or ``"m"``, or None for a module that is no step module of SpikingJelly."""
    mode = getattr(node, "step_mode", None)
    if mode is None and isinstance(node, base.MultiStepModule):
        return "m"  # PSN has no attribute for it
    return mode if mode in ("s", "m") else None


def needs_single_steps(node: nn.Module) -> bool:
    """Tell whether a multi-step call of `node` takes its surrogate's exact class only."""
    return isinstance(node, neuron_classes("ILIFNode"))


def runs_without_steps(node: nn.Module) -> bool:
    """Tell whether a multi-step call of `node` may call none of its single-step methods.

    Since 2.0.0 the nodes below hand a whole sequence to a function of the host, with the standard
    reset: subclasses with another single step too, unless they store their potentials.
    """
    names = ("multi_step_forward", "multi_step_functional_forward")
    methods = [getattr(type(node), name, None) for name in names]
    return isinstance(node, _WITHOUT_STEPS) and all(
        getattr(method, "__module__", "").startswith(_NEURON_PACKAGE) for method in methods
    )


def is_plain_layer(module: nn.Module) -> bool:
    """Tell whether `module` computes what torch's convolution or linear layer does.

    Theirs, SpikingJelly's, and subclasses of either that compute nothing themselves.
    """
    kind, own = type(module), "weight" in module._parameters
    return (
        own
        and not hasattr(kind, "weight")
        and all(
            defined is None or _is_plain_class(defined)
            for defined in (_defines(kind, "forward"), _defines(kind, "_conv_forward"))
        )
    )


def _defines(kind: type, name: str) -> type | None:
    """Return the class that an attribute of `kind` comes from."""
    return next((base for base in kind.__mro__ if name in vars(base)), None)


_PLAIN_LAYERS = {f"Conv{kind}{n}d" for kind in ("", "Transpose") for n in (1, 2, 3)}
_PLAIN_LAYERS |= {"_ConvNd", "Linear"}


def _is_plain_class(kind: type) -> bool:
    return kind.__name__ in _PLAIN_LAYERS and kind.__module__.startswith(
        ("torch.nn.modules.", _LAYER_PACKAGE)
    )


def nir_importer() -> Callable[..., Any]:
    """Return SpikingJelly's reader of NIR graphs.

    Raises:
        ImportError: on 0.0.0.0.14, which has none.
    """
    try:
        from spikingjelly.activation_based.nir_exchange import import_from_nir
    except ImportError as error:
        raise ImportError(
            f"Expected SpikingJelly 2.0.0 or later, whose importer proves the file, but "
            f"{release()} is installed: prove=False writes it without"
        ) from error
    return import_from_nir


def find_legacy_node(net: nn.Module) -> str | None:
    """Return the name of the first ``clock_driven`` node of `net`, or None.

    Those classes of 0.0.0.0.14 are no subclasses of the ``activation_based`` ones.
    """
    for name, module in net.named_modules():
        if any(base.__module__.startswith(_LEGACY_PACKAGE) for base in type(module).__mro__):
            return name or type(module).__name__
    return None


def has_explicit_precision(node: nn.Module) -> bool:
    """Tell whether 2.0.0's precision tools gave `node` a storage type of its own."""
    return getattr(node, "_neuron_precision", None) is not None


def invalidate_reset_cache(net: nn.Module) -> None:
    """Make 2.0.0 collect the modules of `net` anew at the next ``reset_net``; no-op before."""
    invalidate = getattr(functional, "invalidate_reset_cache", None)
    if invalidate is not None:
        invalidate(net)


def eval_with_gradients(net: nn.Module) -> None:
    """Put `net` into eval mode, but neuron layers that cut gradients there into train mode."""
    net.eval()
    for module in net.modules():
        if isinstance(module, _CUTTING):
            module.train()


def _memory_of(module: nn.Module) -> dict[str, Any]:
    return dict(getattr(module, "_memories", {}))


def remembered(net: nn.Module) -> Callable[[], None]:
    """Return what puts buffers, neuron memories and training flags of `net` back as they are."""
    training = {module: module.training for module in net.modules()}
    memories = {module: _memory_of(module) for module in net.modules()}
    v_seqs = {m: vars(m)["v_seq"] for m in net.modules() if "v_seq" in vars(m)}
    buffers = [(buffer, buffer.detach().clone()) for buffer in net.buffers()]
    for module, values in memories.items():
        # 2.0.0 resets a tensor in place where the reset value is one too: let it have a copy.
        copies = {k: v.detach().clone() for k, v in values.items() if isinstance(v, torch.Tensor)}
        getattr(module, "_memories", {}).update(copies)

    def put_back() -> None:
        for module, flag in training.items():
            module.training = flag
        for module, values in memories.items():
            if values:
                vars(module)["_memories"].update(values)
        for module, v_seq in v_seqs.items():
            vars(module)["v_seq"] = v_seq
        with torch.no_grad():
            for buffer, value in buffers:
                # Past autograd's count of writes: a backward pass that still has to come would
                # refuse a norm's statistics that were written, though they are what they were.
                buffer.data.copy_(value)

    return put_back


@contextmanager
def preserved_state(net: nn.Module) -> Iterator[None]:
    """Put buffers, neuron memories, training flags and random state of `net` back on leaving.

    The generators of torch, NumPy and Python.
    """
    put_back = remembered(net)
    devices = sorted({p.device.index for p in net.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices), foreign_generators():
        try:
            yield
        finally:
            put_back()


@contextmanager
def foreign_generators() -> Iterator[None]:
    """Put the generators of NumPy and Python back on leaving; a forward may draw from them."""
    drawn, tossed = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(drawn)
        random.setstate(tossed)
