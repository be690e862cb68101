"""What weighted layers, norms and neurons do to channel labels.

Every function gets the labels of the module's input (None without any) and returns those of its
output, or None if it has none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sj_prune import _host
from sj_prune.network.coupling.labels import Labels, Partition
from sj_prune.network.coupling.rest import why_not_silent
from sj_prune.network.coupling.traced import Traced
from sj_prune.network.layers import TRANSPOSED, is_weighted
from sj_prune.network.norms import is_channel_norm


def has_rule(module: nn.Module) -> bool:
    """Tell whether a rule of ours stands for what happens inside of a module."""
    if is_weighted(module):
        return _host.is_plain_layer(module)
    return is_channel_norm(module) or _host.is_neuron(module)


def relabel_module(
    traced: Traced, name: str, module: nn.Module, x: Tensor, labels: Labels | None, out: Tensor
) -> Labels | None:
    """Return the labels of what a module has returned, and note what it has met.

    Args:
        traced: is told of it.
        name: of the module.
        module: one that `has_rule`.
        x: its input.
        labels: of its input.
        out: its output.
    """
    if isinstance(module, nn.Linear):
        return _linear(traced, name, x, labels, out)
    if isinstance(module, TRANSPOSED):
        return _transposed(traced, name, module, x, labels)
    if is_weighted(module):
        return _convolution(traced, name, module, x, labels)
    if labels is None:
        return None
    if is_channel_norm(module):
        return _norm(traced, name, module, labels)
    return _neuron(traced, name, module, x, labels, out)


def _read(traced: Traced, name: str, labels: Labels | None, dim: int) -> None:
    """A weighted layer reads channels along `dim`."""
    if labels is None:
        return
    traced.bare.update(labels.raw)
    if labels.dim != dim:
        reason = f"{name} reads another dimension than its channels"
        traced.partition.freeze(labels.ids, reason)
    elif not labels.zero:
        traced.partition.freeze(labels.ids, f"{name} would not read 0 from a silent channel")
    else:
        traced.meet(traced.inputs, name, labels.ids)


def _linear(traced: Traced, name: str, x: Tensor, labels: Labels | None, out: Tensor) -> Labels:
    _read(traced, name, labels, x.ndim - 1)
    ids = traced.outputs_of(name, out.shape[-1])
    return Labels(out.ndim - 1, ids, True, frozenset({name}))


def _convolution(traced: Traced, name: str, conv: Any, x: Tensor, labels: Labels | None) -> Labels:  # noqa: ANN401
    dim = x.ndim - conv.weight.ndim + 1
    ids = traced.outputs_of(name, conv.out_channels)
    if conv.groups > 1 and conv.groups == conv.in_channels:
        return _depthwise(traced, name, conv, labels, dim, ids)
    _read(traced, name, labels, dim)
    if conv.groups > 1:  # as many channels leave every group
        _tie_groups(traced.partition, ids, conv.groups)
        if labels is not None:
            _tie_groups(traced.partition, labels.ids, conv.groups)
    return Labels(dim, ids, True, frozenset({name}))


def _transposed(traced: Traced, name: str, conv: Any, x: Tensor, labels: Labels | None) -> Labels:  # noqa: ANN401
    reason = f"{name} is a transposed convolution: single weights of it are pruned, no channels"
    traced.freeze(labels, reason)
    ids = traced.outputs_of(name, conv.out_channels)
    traced.partition.freeze(ids, reason)
    return Labels(x.ndim - conv.weight.ndim + 1, ids, True, frozenset({name}))


def _depthwise(
    traced: Traced,
    name: str,
    conv: Any,  # noqa: ANN401
    labels: Labels | None,
    dim: int,
    ids: Tensor,
) -> Labels:
    raw, partition = frozenset({name}), traced.partition
    if labels is None:
        partition.freeze(ids, "its input channels belong to no layer")
    elif labels.dim != dim:
        partition.freeze(ids, "its input channels are not where it reads them")
        partition.freeze(labels.ids, f"{name} reads another dimension than its channels")
    else:
        traced.meet(traced.inputs, name, labels.ids)
        own = labels.ids.repeat_interleave(conv.out_channels // conv.in_channels)
        partition.join(own, ids)
        raw = raw | labels.raw
    return Labels(dim, ids, True, raw)


def _tie_groups(partition: Partition, ids: Tensor, groups: int) -> None:
    rows = ids.view(groups, -1)
    for row in rows[1:]:
        partition.join(rows[0], row)


def _norm(traced: Traced, name: str, norm: Any, labels: Labels) -> Labels | None:  # noqa: ANN401
    multi_step = getattr(norm, "step_mode", "s") == "m"
    if labels.dim != 1 + multi_step or len(labels.ids) != norm.num_features:
        traced.freeze(labels, f"{name} norms another dimension than its channels")
        return None
    for layer in labels.raw:
        traced.norm_of.setdefault(layer, name)
    if norm._parameters.get("weight") is None or norm._parameters.get("bias") is None:
        traced.freeze(labels, f"{name} has no weight and bias to silence it by")
    traced.meet(traced.norms, name, labels.ids)
    return Labels(labels.dim, labels.ids)


def _neuron(
    traced: Traced, name: str, node: nn.Module, x: Tensor, labels: Labels, out: Tensor
) -> Labels | None:
    traced.bare.update(labels.raw)
    problem = why_not_silent(node, x)
    if problem or not labels.zero:
        traced.freeze(labels, problem or f"{name} is not given 0 by a silent channel")
    traced.meet(traced.neurons, name, labels.ids)
    traced.neuron_dims[name] = labels.dim - x.ndim
    if out.shape == x.shape:
        return Labels(labels.dim, labels.ids)
    traced.freeze(labels, f"{name} changes the shape of its input")
    return None
