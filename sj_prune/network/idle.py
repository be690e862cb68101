"""Layers that a forward runs: not another task's head, nor a matrix that a neuron reads itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from sj_prune.network.layers import TRANSPOSED, Layer, is_weighted, weight_identity


@contextmanager
def noting_places(net: nn.Module, layers: Mapping[str, Layer]) -> Iterator[dict[str, float]]:
    """Yield, of the layers that run in this block, how many places of its input a weight meets.

    Args:
        net: whose modules run; another one with the same weight counts.
        layers: by name.
    """
    places: dict[str, float] = {}
    by_weight = {weight_identity(layer): name for name, layer in layers.items()}

    def ran(name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        places[name] = _places(layer, args[0] if args else next(iter(kwargs.values())))

    with ExitStack() as stack:
        for module in net.modules():
            if is_weighted(module) and (name := by_weight.get(weight_identity(module))):
                hook = module.register_forward_pre_hook(partial(ran, name), with_kwargs=True)
                stack.callback(hook.remove)
        yield places


def _places(layer: Any, x: Tensor) -> float:  # noqa: ANN401
    """Return ``H W / stride^2`` of an input; ``H W`` of a transposed layer, 1 of a linear one."""
    dims = layer.weight.ndim - 2
    size = math.prod(x.shape[x.ndim - dims :])
    whole = isinstance(layer, TRANSPOSED) or not dims
    return float(size) if whole else size / math.prod(layer.stride)
