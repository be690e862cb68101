"""A forward of ours that nobody hears: monitors, counters and what a forward notes of itself."""

from __future__ import annotations

import dis
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.neurons.nodes import RecordingNode

_TABLES = ("_forward_pre_hooks", "_forward_hooks")
# Ours are meant to hear it; torch's compute (weight_norm sets the weight, lazy modules their size).
_NEEDED = ("sj_prune.", "torch.")
_OF_TORCH = frozenset(vars(nn.Module()))
_CONTAINERS = (list, dict, set, deque)


@contextmanager
def unheard(net: nn.Module, *, listeners_only: bool = False) -> Iterator[None]:
    """Let no forward in this block be heard by hooks of others or leave traces in attributes.

    Forward hooks of users are off. What modules reassign, buffers too, and lists, dicts, sets and
    tensors that they change in attributes are put back. Buffers written in place, neuron memories
    and random generators are `_host.preserved_state`'s.

    Args:
        net: the network.
        listeners_only: only hooks that certainly return nothing are off, SpikingJelly's monitors
            among them: one that replaces an output belongs to what the network computes.
    """
    put_back = [_muted(module, listeners_only) for module in net.modules()]
    put_back += [_kept(module) for module in net.modules()]
    try:
        yield
    finally:
        for part in put_back:
            part()
        # Up to torch 2.6 autocast keeps casts made without gradients for forwards that need them.
        torch.clear_autocast_cache()


def _muted(module: nn.Module, listeners_only: bool) -> Callable[[], None]:
    tables = [(vars(module)[name], dict(vars(module)[name])) for name in _TABLES]
    for table, hooks in tables:
        for key, hook in hooks.items():
            if _listens(hook) if listeners_only else not _home(hook).startswith(_NEEDED):
                del table[key]

    def put_back() -> None:
        for table, hooks in tables:
            table.clear()
            table.update(hooks)

    return put_back


def _function(hook: Any) -> Any:  # noqa: ANN401
    while isinstance(hook, partial):
        hook = hook.func
    return getattr(hook, "__func__", hook)


def _home(hook: Any) -> str:  # noqa: ANN401
    """Return the module that a hook was written in."""
    function = _function(hook)
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _listens(hook: Any) -> bool:  # noqa: ANN401
    """Tell whether a hook certainly returns nothing, so that it replaces nothing."""
    code, home = getattr(_function(hook), "__code__", None), _home(hook)
    if home.startswith(_NEEDED):
        return False
    return home.startswith("spikingjelly.") or (code is not None and _returns_nothing(code))


def _returns_nothing(code: CodeType) -> bool:
    steps = list(dis.get_instructions(code))
    for before, step in zip([None, *steps], steps, strict=False):
        if step.opname == "RETURN_CONST" and step.argval is not None:
            return False
        if step.opname == "RETURN_VALUE" and not (
            before is not None and before.opname == "LOAD_CONST" and before.argval is None
        ):
            return False
    return True


def _kept(module: nn.Module) -> Callable[[], None]:
    """Return what puts the attributes and the table of buffers of a module back."""
    buffers = dict(module._buffers)
    own: dict[str, Any] = {}
    if not isinstance(module, RecordingNode):  # what we have learnt of it stays
        own = {k: v for k, v in vars(module).items() if k not in _OF_TORCH and k != "_memories"}
    contents = [(value, value.copy()) for value in own.values() if type(value) in _CONTAINERS]
    tensors = [(v, v.detach().clone()) for v in own.values() if isinstance(v, Tensor)]

    def put_back() -> None:
        module._buffers.clear()
        module._buffers.update(buffers)
        if not isinstance(module, RecordingNode):
            for key in [k for k in vars(module) if k not in _OF_TORCH and k != "_memories"]:
                if key not in own:
                    del vars(module)[key]
            vars(module).update(own)
        for value, content in contents:
            _refill(value, content)
        for tensor, content in tensors:
            if not tensor.is_inference():
                tensor.data.copy_(content)

    return put_back


def _refill(value: Any, content: Any) -> None:  # noqa: ANN401
    value.clear()
    (value.extend if isinstance(value, list | deque) else value.update)(content)
