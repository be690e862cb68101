"""Inputs of a forward remembered by shape, type and device: no memory is held."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["as_args", "materialize", "outline"]


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
