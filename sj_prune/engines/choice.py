"""Which engine serves a call."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from sj_prune.engines.request import NAMES, requested

logger = logging.getLogger("sj_prune")

_MODULES = {name: f"sj_prune.engines.{name}_engine" for name in NAMES}
_BY_DEVICE = {"cuda": "cupy", "cpu": "cpp"}
_said: set[str] = set()


class Engine(Protocol):
    """What every engine module offers, as `torch_engine`; it fills tensors of the op."""

    available: Callable[[], str | None]
    partial_rows: Callable[[Tensor], int]
    forward: Callable[..., None]
    backward: Callable[..., None]


def say_once(message: str) -> None:
    """Log `message` at INFO the first time."""
    if message not in _said:
        _said.add(message)
        logger.info("%s", message)


def fits(name: str, device: torch.device) -> bool:
    """Tell whether the engine `name` is made for this kind of device."""
    return name == "torch" or _BY_DEVICE.get(device.type) == name


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Force an engine inside this block, as ``SJ_PRUNE_ENGINE`` does."""
    before = os.environ.get("SJ_PRUNE_ENGINE")
    os.environ["SJ_PRUNE_ENGINE"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["SJ_PRUNE_ENGINE"]
        else:
            os.environ["SJ_PRUNE_ENGINE"] = before


@functools.cache
def load(name: str) -> Engine:
    """Return the engine module `name`."""
    return importlib.import_module(_MODULES[name])  # type: ignore[return-value]


def choose(device: torch.device, dtype: torch.dtype) -> Engine:
    """Return the engine for tensors of `dtype` on `device`.

    Raises:
        RuntimeError: if ``SJ_PRUNE_ENGINE`` forces one that cannot serve them.
    """
    wanted = requested()
    if wanted == "torch":
        return load("torch")
    name = _BY_DEVICE.get(device.type) if wanted == "auto" else wanted
    reason = _refusal(name, device, dtype)
    if reason is None and name is not None:
        say_once(f"engine {name} runs neurons on {device.type}")
        return load(name)
    if wanted != "auto":
        raise RuntimeError(
            f"Expected engine {wanted!r} (SJ_PRUNE_ENGINE) to serve {dtype} on {device}, but "
            f"{reason}; unset it or set it to auto"
        )
    say_once(f"engine torch runs neurons on {device.type} ({dtype}): {reason}")
    return load("torch")


def check_without_closed_form(function: object) -> None:
    """Say once that a surrogate runs through autograd, on the torch engine.

    Raises:
        RuntimeError: if ``SJ_PRUNE_ENGINE`` forces another engine.
    """
    name, wanted = type(function).__name__, requested()
    if wanted not in ("auto", "torch"):
        raise RuntimeError(
            f"Expected engine {wanted!r} (SJ_PRUNE_ENGINE) to run the surrogate {name}, but it has "
            "no closed form there; unset SJ_PRUNE_ENGINE or set it to auto"
        )
    say_once(f"engine torch runs the surrogate {name}: it has no closed form in the others")


def _refusal(name: str | None, device: torch.device, dtype: torch.dtype) -> str | None:
    if name is None or not fits(name, device):
        return f"there is no {name or 'own'} engine for {device.type}"
    if name == "cupy" and dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return "the CUDA engine is for float32, float16 and bfloat16 alone"
    return load(name).available()
