"""What layers are fed on batches: the rows that their weights multiply."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sj_prune.network.layers import TRANSPOSED


@contextmanager
def feeding(net: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Keep what goes into layers in their last forward, as `LayerView.fed`.

    Args:
        net: the network.
        names: of the layers.

    Yields:
        Layer name -> rows ``[groups, T, places, K]``; the last call of a layer alone.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        found[name] = rows(name, layer, args[0].detach())

    with ExitStack() as stack:
        for name in names:
            hook = net.get_submodule(name).register_forward_pre_hook(partial(keep, name))
            stack.callback(hook.remove)
        yield found


def rows(name: str, layer: Any, x_seq: Tensor) -> Tensor:  # noqa: ANN401
    """Return what each output place of a layer multiplies with the weight.

    Args:
        name: for messages.
        layer: a linear layer or a 2d convolution, in multi-step mode.
        x_seq: its input, ``[T, N, *]``.

    Returns:
        ``[groups, T, places, weight.shape[1:].numel()]``, places over samples too.

    Raises:
        ValueError: for other layers, and without a dimension of time.
    """
    known = isinstance(layer, (nn.Linear, nn.Conv2d)) and not isinstance(layer, TRANSPOSED)
    if not known or x_seq.ndim != layer.weight.ndim + 1:
        raise ValueError(
            f"Expected {name!r} to be a Linear or Conv2d in multi-step mode, of inputs "
            f"[T, N, *], but got a {type(layer).__name__} of {tuple(x_seq.shape)}: name it in skip="
        )
    if isinstance(layer, nn.Linear):
        return x_seq[None]
    x = x_seq.flatten(0, 1)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode), (0, 0)
    else:
        padding = layer.padding
    columns = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
    steps, groups = x_seq.shape[0], layer.groups
    split = columns.view(steps, -1, groups, columns.shape[1] // groups, columns.shape[2])
    return split.permute(2, 0, 1, 4, 3).flatten(2, 3)
