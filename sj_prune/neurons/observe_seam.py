"""The seam to a neuron of any class: its surrogate function, listened to.

Every eager path of the host, and most code written by users, calls ``surrogate_function(H - V_th)``
as an attribute of the neuron. A `Seam` takes the function's place: it is an instance of the
function's class and shares its attributes, so parameters, keys, ``spiking`` and ``alpha`` are the
same ones, and it knows the one neuron that calls it, although the host's nodes share one default
function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Listener(Protocol):
    """Who is told of a call."""

    def listens(self) -> bool:
        """Tell whether a call now is to be told."""

    def before(self, u: Tensor) -> None:
        """Hear that the function is about to be called with `u`."""

    def after(self, u: Tensor, spikes: Tensor) -> None:
        """Hear what the function returned."""

    def compiled(self) -> None:
        """Hear that the function runs inside a compiled graph, where no call is told."""

    def moved(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Hear that the tensors of the module go where `fn` puts them."""


class Seam:
    """Mix-in before the class of a surrogate function that is a module; made by `seam`."""

    # Not in the instance's dictionary, which belongs to the function itself.
    __slots__ = ("inner", "listener")

    inner: nn.Module
    listener: Listener | None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Return what the function returns of ``x = H - V_th``, and tell the listener."""
        call = super().forward  # type: ignore[misc]
        return _told(getattr(self, "listener", None), call, x, args, kwargs)

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        result = super()._apply(fn, *args, **kwargs)  # type: ignore[misc]
        if (listener := getattr(self, "listener", None)) is not None:
            listener.moved(fn)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (type(self.inner),), (self.inner, self.listener)

    def __setstate__(self, state: tuple[nn.Module, Listener]) -> None:
        _fill(self, *state)


class FunctionSeam:
    """Stands for a surrogate function that is a plain callable."""

    def __init__(self, inner: Callable[..., Tensor], listener: Listener) -> None:
        self.inner = inner
        self.listener = listener

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Return what the function returns of ``x = H - V_th``, and tell the listener."""
        return _told(self.listener, self.inner, x, args, kwargs)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__") or name == "inner":  # copies ask before there is an `inner`
            raise AttributeError(name)
        return getattr(self.inner, name)


def seam(function: Callable[..., Tensor], listener: Listener) -> Seam | FunctionSeam:
    """Return what takes the place of a surrogate function, told apart by nothing but its type."""
    if not isinstance(function, nn.Module):
        return FunctionSeam(function, listener)
    made = _blank(type(function))
    _fill(made, function, listener)
    return made


@cache
def _class_of(inner: type) -> type:
    # The module stays ours: SpikingJelly 2.0.0 knows its own functions by module and name, and
    # takes a fused path for them that calls no function.
    return type(inner.__name__, (Seam, inner), {"__module__": __name__, "__slots__": ()})


def _blank(inner: type) -> Seam:
    cls: Any = _class_of(inner)
    made: Seam = cls.__new__(cls)
    return made


def _fill(made: Seam, inner: nn.Module, listener: Listener) -> None:
    object.__setattr__(made, "__dict__", inner.__dict__)
    object.__setattr__(made, "inner", inner)
    object.__setattr__(made, "listener", listener)


def _told(
    listener: Listener | None,
    call: Callable[..., Tensor],
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    if listener is None:
        return call(x, *args, **kwargs)
    if torch.compiler.is_compiling():
        listener.compiled()
        return call(x, *args, **kwargs)
    if not listener.listens():
        return call(x, *args, **kwargs)
    listener.before(x)
    out = call(x, *args, **kwargs)
    if isinstance(out, Tensor):
        listener.after(x, out)
    return out
