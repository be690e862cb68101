"""What an interrupted training needs beside the network: optimizers, schedules, random numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def state_of(part: Any) -> Any:  # noqa: ANN401
    """Return the state of what changes while training.

    Raises:
        TypeError: if it has none that can be saved.
    """
    if isinstance(part, torch.Generator):
        return part.get_state()
    if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
        raise TypeError(
            "Expected optimizers, schedules and torch generators in training.run(...), with a "
            f"state_dict, but got a {type(part).__name__}"
        )
    return part.state_dict()


def put_back(parts: Sequence[Any], states: Sequence[Any]) -> None:
    """Load what `state_of` returned of each part.

    Raises:
        ValueError: if there are more or fewer parts.
    """
    if len(parts) != len(states):
        raise ValueError(
            f"Expected the {len(states)} parts that were saved in training.run(...) but got "
            f"{len(parts)}: give the same ones in the same order"
        )
    for part, state in zip(parts, states, strict=True):
        if isinstance(part, torch.Generator):
            part.set_state(state)
        else:
            part.load_state_dict(state)


def random_state() -> dict[str, Any]:
    """Return the states of the global generators, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (kind, [int(key) for key in keys], *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the global generators back."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
