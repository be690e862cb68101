"""Inputs of a forward remembered by shape, type and device: no memory is held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["as_args", "few_samples", "from_plain", "materialize", "outline", "to_plain"]


class _Outline(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def as_args(example_input: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Return the positional inputs that an example stands for."""
    return example_input if isinstance(example_input, tuple) else (example_input,)


def outline(inputs: Any) -> Any:  # noqa: ANN401
    """Return `inputs`, nested tuples and dicts, with every tensor replaced by its outline."""
    if isinstance(inputs, dict):
        return {key: outline(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple([outline(value) for value in inputs])
    if isinstance(inputs, Tensor):
        return _Outline(tuple(inputs.shape), inputs.dtype, inputs.device)
    return inputs


def materialize(inputs: Any) -> Any:  # noqa: ANN401
    """Return `inputs` with zeros for every outline."""
    if isinstance(inputs, dict):
        return {key: materialize(value) for key, value in inputs.items()}
    if isinstance(inputs, _Outline):
        return torch.zeros(inputs.shape, dtype=inputs.dtype, device=inputs.device)
    if isinstance(inputs, tuple):
        return tuple([materialize(value) for value in inputs])
    return inputs


def to_plain(inputs: Any) -> Any:  # noqa: ANN401
    """Return an outline as plain values for a checkpoint."""
    if isinstance(inputs, dict):
        return {"dict": {key: to_plain(value) for key, value in inputs.items()}}
    if isinstance(inputs, _Outline):
        return {"shape": list(inputs.shape), "dtype": str(inputs.dtype).removeprefix("torch.")}
    if isinstance(inputs, tuple):
        return {"tuple": [to_plain(value) for value in inputs]}
    # What else a forward takes is kept if it is plain; a network cannot be traced without it.
    return {"value": inputs if isinstance(inputs, (bool, int, float, str)) else None}


def from_plain(plain: Any, device: torch.device) -> Any:  # noqa: ANN401
    """Return the outline that `to_plain` was given, on a device."""
    if "dict" in plain:
        return {key: from_plain(value, device) for key, value in plain["dict"].items()}
    if "tuple" in plain:
        return tuple([from_plain(value, device) for value in plain["tuple"]])
    if "shape" in plain:
        return _Outline(tuple(plain["shape"]), getattr(torch, plain["dtype"]), device)
    return plain["value"]


def few_samples(args: tuple[Any, ...], number: int = 2) -> Iterator[tuple[Any, ...]]:
    """Yield inputs with fewer samples, the likeliest form first, and the inputs themselves last.

    Whether samples are counted by dimension 1, ``[T, N, *]``, or 0 only the network knows: where
    its forward fails, the next form has to be tried.
    """
    tensors = [x for x in args if isinstance(x, Tensor)]
    for dim in (1, 0):
        sizes = {x.shape[dim] if x.ndim > dim else None for x in tensors}
        if len(sizes) == 1 and None not in sizes and sizes != {0}:
            keep = min(number, sizes.pop() or 0)
            yield tuple(x.narrow(dim, 0, keep) if isinstance(x, Tensor) else x for x in args)
    yield args
