"""A smaller copy of a network."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.compaction.slices import Cut, staying
from sj_prune.neurons.convert import to_stock

_TABLES = (dict, OrderedDict)

#: indices that stay along the first dimensions of a tensor, None for all
Index = tuple[Tensor | None, ...]


def copied(net: nn.Module) -> nn.Module:
    """Return a deep copy of `net` with stock nodes and reset memories; `net` stays as it is."""
    with _host.preserved_state(net):
        _host.reset_net(net)  # a memory that is part of a graph cannot be copied
        for module in net.modules():
            if vars(module).get("v_seq") is not None:
                vars(module)["v_seq"] = None
        # Ten tables of hooks a module, nearly all empty, are most of what a deep copy works on.
        tables = [t for m in net.modules() for t in vars(m).values() if type(t) in _TABLES]
        twin = to_stock(copy.deepcopy(net, {id(t): type(t)() for t in tables if not t}))
    _host.reset_net(twin)
    _host.invalidate_reset_cache(twin)
    return twin


def sliced(tensor: Tensor, index: Index) -> Tensor:
    """Return what stays of a tensor, in its own memory format."""
    out = tensor.detach()
    for dim, keep in enumerate(index):
        if keep is not None:
            out = out.index_select(dim, keep.to(out.device))
    return torch.empty(
        out.shape, dtype=out.dtype, device=out.device, memory_format=_memory_format(tensor)
    ).copy_(out)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    usual = torch.empty(tensor.shape, device="meta").stride()
    if last is not None and tensor.stride() != usual and tensor.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def shrink(net: nn.Module, cut: Cut) -> dict[str, Index]:
    """Take channels out of the layers of a network, in place.

    Args:
        net: a copy that may be changed.
        cut: what leaves.

    Returns:
        Parameter or buffer name -> the indices that stayed.
    """
    found: dict[str, Index] = {}
    for name in dict.fromkeys((*cut.outputs, *cut.inputs)):
        module: Any = net.get_submodule(name)
        if isinstance(module, nn.Linear):
            index = _shrink_linear(name, module, cut)
        else:
            index = _shrink_convolution(name, module, cut)
        found.update({f"{name}.{key}": value for key, value in index.items()})
    for name, leaving in cut.norms.items():
        index = _shrink_norm(net.get_submodule(name), leaving)
        found.update({f"{name}.{key}": value for key, value in index.items()})
    _host.invalidate_reset_cache(net)
    return found


@contextmanager
def borrowed(net: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Put modules that are cut in this block back: their widths, parameters and buffers."""
    modules = {net.get_submodule(name) for name in names}
    saved = [(vars(m), dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in modules]
    try:
        yield
    finally:
        for own, attributes, parameters, buffers in saved:
            own.clear()
            own.update(attributes)
            own["_parameters"].update(parameters)
            own["_buffers"].update(buffers)


def resize(module: nn.Module, key: str, index: Index) -> None:
    """Cut a parameter or buffer of a module; gradients and hooks of the old one are left behind."""
    if all(keep is None for keep in index):
        return
    parameter = module._parameters.get(key)
    if parameter is not None:
        module._parameters[key] = nn.Parameter(sliced(parameter, index), parameter.requires_grad)
    elif module._buffers.get(key) is not None:
        module._buffers[key] = sliced(module._buffers[key], index)  # type: ignore[arg-type]


def _shrink_linear(name: str, linear: nn.Linear, cut: Cut) -> dict[str, Index]:
    rows = staying(linear.out_features, cut.outputs.get(name))
    columns = staying(linear.in_features, cut.inputs.get(name))
    index: dict[str, Index] = {"weight": (rows, columns), "bias": (rows,)}
    for key, value in index.items():
        resize(linear, key, value)
    linear.out_features, linear.in_features = linear.weight.shape
    return index


def _shrink_convolution(name: str, conv: Any, cut: Cut) -> dict[str, Index]:  # noqa: ANN401
    rows = staying(conv.out_channels, cut.outputs.get(name))
    columns = staying(conv.in_channels, cut.inputs.get(name))
    if columns is not None and conv.groups > 1:
        if conv.groups == conv.in_channels:  # depthwise: a group leaves with its only channel
            conv.groups = len(columns)
            columns = None
        else:  # every group loses the same of its channels
            columns = (columns % (conv.in_channels // conv.groups)).unique()
    index: dict[str, Index] = {"weight": (rows, columns), "bias": (rows,)}
    for key, value in index.items():
        resize(conv, key, value)
    conv.out_channels = conv.weight.shape[0]
    conv.in_channels = conv.weight.shape[1] * conv.groups
    return index


def _shrink_norm(norm: Any, leaving: Tensor) -> dict[str, Index]:  # noqa: ANN401
    keep = staying(norm.num_features, leaving)
    index: dict[str, Index] = dict.fromkeys(
        ("weight", "bias", "running_mean", "running_var"), (keep,)
    )
    for key, value in index.items():
        resize(norm, key, value)
    if keep is not None:
        norm.num_features = len(keep)
    return index
