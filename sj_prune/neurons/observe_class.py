"""Which neuron classes compute what IF, LIF and PLIF do, and their recording classes.

A user's subclass that adds nothing to the dynamics gets a recording class of its own: made on the
way, named like it, with the recording node before it, so that an instance stays one of the user's
class, keeps its methods, and is copied and pickled by naming the user's class.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from sj_prune import _host
from sj_prune.neurons.nodes import (
    RecordingIFNode,
    RecordingLIFNode,
    RecordingParametricLIFNode,
)

_RECORDING: dict[type, type] = {
    _host.IFNode: RecordingIFNode,
    _host.LIFNode: RecordingLIFNode,
    _host.ParametricLIFNode: RecordingParametricLIFNode,
}
_STOCK = {recording: stock for stock, recording in _RECORDING.items()}
# What makes up the dynamics, on either release. The host's helpers that a subclass may override
# (`jit_hard_reset`, `neuronal_charge_decay_input`, ...) begin like one of these.
_DYNAMICS = (
    "__call__",
    "_append_v_seq",
    "_call_impl",
    "_v_seq_source",
    "apply_",
    "forward",
    "functional_forward",
    "jit_",
    "materialize_states",
    "multi_step_",
    "neuronal_",
    "single_step_",
    "v_float_to_tensor",
)
_PICKLING = ("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__deepcopy__")
# What a subclass may turn into something else than the plain value that the equations read.
_SETTINGS = ("v_threshold", "v_reset", "tau", "detach_reset", "decay_input")


def recording_class(node: nn.Module) -> type | None:
    """Return the class that records what `node` computes, or None if none does."""
    if _host.has_explicit_precision(node) or not _has_plain_settings(node):
        return None
    kind: type = type(node)
    return _recording_class(kind)


def stock_class(kind: type) -> type | None:
    """Return the class that a recording class was made for; None for any other class."""
    return vars(kind).get("_stock", _STOCK.get(kind))


def _has_plain_settings(node: nn.Module) -> bool:
    settings = (getattr(node, name, None) for name in _SETTINGS)
    return all(value is None or isinstance(value, int | float) for value in settings)


@cache
def _recording_class(kind: type) -> type | None:
    if kind in _RECORDING:
        return _RECORDING[kind]
    stock = next((base for base in kind.__mro__ if base in _RECORDING), None)
    if stock is None:
        return None
    own = kind.__mro__[: kind.__mro__.index(stock)]
    # A mix-in that stands before the stock class counts; what comes after it is overridden by it.
    if any(name.startswith(_DYNAMICS) or name in _PICKLING for c in own for name in vars(c)):
        return None
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": None}
    extra: dict[str, Any] = {"_stock": kind, "__reduce__": _reduce}
    try:
        return type(kind)(kind.__name__, (_RECORDING[stock], kind), {**names, **extra})
    except TypeError:  # a metaclass or __init_subclass__ that wants to know more
        return None


def _reduce(node: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return _rebuild, (type(node)._stock,), node.__getstate__()


def _rebuild(kind: type) -> Any:  # noqa: ANN401
    cls: Any = _recording_class(kind)
    return cls.__new__(cls)
