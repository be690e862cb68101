"""Layers that a forward does not run: another task's head, a matrix that a neuron reads itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from sj_prune.network.layers import Layer, is_weighted, weight_identity


@contextmanager
def noting_idle(net: nn.Module, layers: Mapping[str, Layer]) -> Iterator[set[str]]:
    """Yield the names of the layers that have not run in this block so far.

    Args:
        net: whose modules run; another one with the same weight counts.
        layers: by name.
    """
    idle = set(layers)
    by_weight = {weight_identity(layer): name for name, layer in layers.items()}

    def ran(name: str, *_: Any) -> None:  # noqa: ANN401
        idle.discard(name)

    with ExitStack() as stack:
        for module in net.modules():
            if is_weighted(module) and (name := by_weight.get(weight_identity(module))):
                stack.callback(module.register_forward_pre_hook(partial(ran, name)).remove)
        yield idle
