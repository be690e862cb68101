"""Inputs of a forward remembered by shape, type and device: no memory is held.

Small integer tensors, such as the lengths of sequences, keep their values: zeros in their place
would break a forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_MOST_VALUES = 4096  # elements of an integer tensor that is kept whole


@dataclass(frozen=True)
class TensorShape:
    """What is remembered of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def as_args(example_input: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Return the positional inputs that an example stands for."""
    return example_input if isinstance(example_input, tuple) else (example_input,)


def _map(replace: Callable[[Any], Any], inputs: Any) -> Any:  # noqa: ANN401
    """Return nested dicts, lists and tuples with every leaf replaced."""
    if isinstance(inputs, dict):
        return {key: _map(replace, value) for key, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        values = [_map(replace, value) for value in inputs]
        if isinstance(inputs, list):
            return values
        return type(inputs)(*values) if hasattr(inputs, "_fields") else tuple(values)
    return replace(inputs)


def shapes_of(inputs: Any) -> Any:  # noqa: ANN401
    """Return `inputs`, nested dicts, lists and tuples, with a `TensorShape` for every tensor.

    Integer and bool tensors of at most 4096 elements are copied instead.
    """

    def shape_of(x: Any) -> Any:  # noqa: ANN401
        if not isinstance(x, Tensor):
            return x
        if not (x.is_floating_point() or x.is_complex()) and x.numel() <= _MOST_VALUES:
            return x.detach().clone()
        return TensorShape(tuple(x.shape), x.dtype, x.device)

    return _map(shape_of, inputs)


def zeros_of(shapes: Any) -> Any:  # noqa: ANN401
    """Return what `shapes_of` was given, with zeros for every `TensorShape`."""

    def zeros(x: Any) -> Any:  # noqa: ANN401
        if isinstance(x, TensorShape):
            return torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        return x.clone() if isinstance(x, Tensor) else x

    return _map(zeros, shapes)


def to_plain(shapes: Any) -> Any:  # noqa: ANN401
    """Return shapes as plain values for a checkpoint."""
    tensors = [x for x in tree_leaves(shapes) if isinstance(x, (Tensor, TensorShape))]
    mixed = any(x.device.type != "cpu" for x in tensors)

    def plain(x: Any) -> Any:  # noqa: ANN401
        if isinstance(x, dict):
            return {"dict": {key: plain(value) for key, value in x.items()}}
        if isinstance(x, (list, tuple)):
            values = [plain(value) for value in x]
            return {"list": values} if isinstance(x, list) else {"tuple": values}
        if isinstance(x, (Tensor, TensorShape)):
            dtype = str(x.dtype).removeprefix("torch.")
            found: dict[str, Any] = {"shape": list(x.shape), "dtype": dtype}
            if isinstance(x, Tensor):
                found["values"] = x.flatten().tolist()
                # Lengths stay on the CPU beside inputs on a GPU: torch packs sequences by such.
                found["on_cpu"] = mixed and x.device.type == "cpu"
            return found
        # What else a forward takes is kept if it is plain; a network is not traced without it.
        return {"value": x if isinstance(x, (bool, int, float, str)) else None}

    return plain(shapes)


def from_plain(plain: Any, device: torch.device) -> Any:  # noqa: ANN401
    """Return the shapes that `to_plain` was given, on a device."""
    if "dict" in plain:
        return {key: from_plain(value, device) for key, value in plain["dict"].items()}
    if "list" in plain:
        return [from_plain(value, device) for value in plain["list"]]
    if "tuple" in plain:
        return tuple([from_plain(value, device) for value in plain["tuple"]])
    if "shape" not in plain:
        return plain["value"]
    shape, dtype = tuple(plain["shape"]), getattr(torch, plain["dtype"])
    if "values" not in plain:
        return TensorShape(shape, dtype, device)
    where = torch.device("cpu") if plain["on_cpu"] else device
    return torch.tensor(plain["values"], dtype=dtype, device=where).view(shape)


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
